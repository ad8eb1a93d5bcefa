"""Recordings and encoders that a config names."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from experiments.cli import listed
from neurorecon.encoders import build_encoder, load_encoder, load_published
from neurorecon.errors import NeuroreconError
from neurorecon.files import read_json
from neurorecon.recordings import Recording, open_recording


class Ensemble(NamedTuple):
    """Encoders and the animals that their readouts belong to.

    Attributes:
      members: (encoder, variables) of each.
      animals: names in the order of the readouts; None where the encoders don't tell (published weights).
    """

    members: list[tuple[Any, Any]]
    animals: list[str] | None

    def readout(self, recording: Recording, index: int) -> int:
        """The readout of a recording: by name where known, by order where every readout has its recording, otherwise by
        the number of neurons.

        Raises:
          NeuroreconError: no readout fits, or several do.
        """
        sizes = list(self.members[0][0].num_neurons)
        if self.animals is not None and recording.name in self.animals:
            named = self.animals.index(recording.name)
            fitting = [named] if sizes[named] == recording.num_neurons else []
        elif index < len(sizes) and sizes[index] == recording.num_neurons:
            return index
        else:
            fitting = [i for i, n in enumerate(sizes) if n == recording.num_neurons]
        if len(fitting) != 1:
            raise NeuroreconError(
                f"{recording.name}: {recording.num_neurons} neurons, but the encoders' readouts have {sizes}; "
                "use encoders trained on this recording"
            )
        return fitting[0]


def recordings_of(config: ml_collections.ConfigDict) -> list[Recording]:
    """Opens `config.recordings`.

    Raises:
      NeuroreconError: none is named, two have one name, or one can't be read.
    """
    paths = listed(config.recordings)
    if not paths:
        raise NeuroreconError("--config.recordings: expected one or more folders, found none")
    recordings = [open_recording(path) for path in paths]
    names = [r.name for r in recordings]
    for name in names:
        if names.count(name) > 1:
            raise NeuroreconError(f"--config.recordings: two recordings are called {name!r}; rename one folder")
    return recordings


def ensemble_of(paths: list[str]) -> Ensemble:
    """Loads encoders from work folders of trainings, encoder folders or published `.pth` files.

    Raises:
      NeuroreconError: nothing is there, or it can't be read.
    """
    members: list[tuple[Any, Any]] = []
    animals: list[str] | None = None
    for path in map(Path, paths):
        if path.is_file():
            members.append(load_published(path))
            continue
        folder = path / "encoders" if (path / "encoders").is_dir() else path
        numbered = (
            sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
            if folder.is_dir()
            else []
        )
        if not numbered and not (folder / "architecture.json").is_file():
            raise NeuroreconError(f"{path}: expected a work folder of a training or an encoder, found neither")
        members += [load_encoder(p) for p in numbered or [folder]]
        if (folder / "animals.json").is_file():
            animals = read_json(folder / "animals.json")
    return Ensemble(members, animals)


def check_architecture(config: ml_collections.ConfigDict) -> None:
    """Raises NeuroreconError where `config.encoder` is no architecture."""
    names = ("factorized", "linear_nonlinear", "dwiseneuro")
    if config.encoder not in names:
        raise NeuroreconError(f"--config.encoder: expected one of {', '.join(names)}, found {config.encoder!r}")


def encoder_of(config: ml_collections.ConfigDict, **fields: Any) -> Any:
    """The untrained encoder that the config describes; `fields` come from the recordings.

    Raises:
      NeuroreconError: no such architecture, or fields that it doesn't take.
    """
    check_architecture(config)
    return build_encoder(config.encoder, **config[config.encoder].to_dict(), **fields)


def thin(tree: Any) -> Any:
    """Variables on the host."""
    return jax.tree.map(np.asarray, tree)
