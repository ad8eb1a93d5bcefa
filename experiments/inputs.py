"""Recordings, encoders and clips that a config names."""

import functools
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
from neurorecon.recordings.subset import subset_of
from neurorecon.training.folds import NUM_FOLDS, fold

FOLD_TIERS = ("train", "oracle")  # those that get folds in the five published recordings


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


def located(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with `recordings` found in the folder `data`, `encoders` in the folder `weights`, where it has them.

    Raises:
      NeuroreconError: an animal's folder is missing, there is another number of weights than `num_models`, or both ways
        are used at once.
    """
    config = config.copy_and_resolve_references()  # ConfigDict(config) would share the nested parts
    for folder, names in (("data", "recordings"), ("weights", "encoders")):
        if config[folder] and config[names]:
            raise NeuroreconError(f"--config.{folder}, --config.{names}: expected one of the two, found both")
        if config[folder] and not Path(config[folder]).is_dir():
            raise NeuroreconError(f"--config.{folder} {config[folder]}: expected a folder, found none there")
    animals = listed(config.animals)
    if animals and not config.data and not config.recordings:
        raise NeuroreconError(f"--config.data: expected the folder that holds {animals[0]} and the others, found none")
    if config.data:
        if not animals:
            raise NeuroreconError("--config.animals: expected the names of the folders in --config.data, found none")
        for animal in animals:
            if not (Path(config.data) / animal).is_dir():
                raise NeuroreconError(f"--config.data {config.data}: expected the animal's folder {animal}, found none")
        config.recordings = ",".join(str(Path(config.data) / animal) for animal in animals)
    if config.weights:
        files = sorted(str(path) for path in Path(config.weights).rglob("*.pth"))
        if len(files) != config.num_models:
            raise NeuroreconError(
                f"--config.weights {config.weights}: expected {config.num_models} .pth files (--config.num_models), "
                f"found {len(files)}"
            )
        config.encoders = ",".join(files)
    return config


@functools.lru_cache(maxsize=16)
def _folds(recording: Recording) -> dict[str, int]:
    tiers = [tier for tier in FOLD_TIERS if recording.tier_counts.get(tier)]
    ids = sorted((i for tier in tiers for i in recording.trial_ids(tier)), key=int)
    return {i: fold(recording.stimulus(i)) for i in ids}


def fold_trials(recording: Recording, number: int) -> list[str]:
    """Trials of one published perceptual-hash fold, in numerical order; every movie of the tiers is hashed, once.

    Raises:
      NeuroreconError: no such fold, or no trial is in it.
    """
    if not 0 <= number < NUM_FOLDS:
        raise NeuroreconError(f"--config.fold: expected 0 to {NUM_FOLDS - 1}, found {number}")
    ids = [i for i, found in _folds(recording).items() if found == number]
    if not ids:
        raise NeuroreconError(f"{recording.path}: no trial of the tiers {', '.join(FOLD_TIERS)} is in fold {number}")
    return ids


def fold_clips(config: ml_collections.ConfigDict, recording: Recording) -> list[str]:
    """The trials that `config.fold_clips` chooses from the fold; all of it where the key is empty.

    Raises:
      NeuroreconError: the key can't be read, leaves the animal out, or asks for more than the fold holds.
    """
    ids = fold_trials(recording, config.fold)
    if not config.fold_clips:
        return ids
    places: dict[str, list[int]] = {}
    for entry in listed(config.fold_clips):
        animal, colon, numbers = entry.partition(":")
        try:
            places[animal.strip()] = [int(n) for n in (numbers if colon else entry).split()]
        except ValueError:
            raise NeuroreconError(f"--config.fold_clips: expected 'ANIMAL: 0 1 2', found {entry!r}") from None
    if not places.get(recording.name):
        raise NeuroreconError(f"--config.fold_clips: expected places for {recording.name}, found none")
    for place in places[recording.name]:
        if not 0 <= place < len(ids):
            raise NeuroreconError(
                f"{recording.path}: place {place} in fold {config.fold} is asked for (--config.fold_clips), "
                f"but the fold holds {len(ids)} trials"
            )
    return [ids[place] for place in places[recording.name]]


def recordings_of(config: ml_collections.ConfigDict) -> list[Recording]:
    """Opens `config.recordings`, or the part of each that `config.subset` takes.

    Raises:
      NeuroreconError: none is named, two have one name, one can't be read, or a share is out of its range.
    """
    paths = listed(config.recordings)
    if not paths:
        raise NeuroreconError("--config.recordings: expected one or more folders, found none")
    recordings = [open_recording(path) for path in paths]
    names = [r.name for r in recordings]
    for name in names:
        if names.count(name) > 1:
            raise NeuroreconError(f"--config.recordings: two recordings are called {name!r}; rename one folder")
    return [subset_of(r, **config.subset.to_dict()) for r in recordings]


def ensemble_of(paths: list[str]) -> Ensemble:
    """Loads encoders from work folders of trainings, encoder folders or published `.pth` files.

    Raises:
      NeuroreconError: nothing is there, or it can't be read.
    """
    members: list[tuple[Any, Any]] = []
    animals: list[str] | None = None
    for path in map(Path, paths):
        if path.is_file() or path.suffix == ".pth":
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
