"""Receptive fields of one recording's neurons, as its encoders have them; goes on where it was killed."""

import shutil
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from tqdm import tqdm

from experiments.inputs import Ensemble
from neurorecon import runs
from neurorecon.errors import NeuroreconError
from neurorecon.files import atomic_path, save_npy, save_npz
from neurorecon.reconstruction.receptive_fields import (
    PUBLISHED_PADDING,
    PixelResponses,
    ReceptiveFieldMaps,
    population_receptive_field,
    probe_pixels,
    probe_shape,
    receptive_field_maps,
)
from neurorecon.recordings import Recording

SINGLE = ("responsive", "peaks", "strength", "population_peaks")  # kept of every encoder


def mapped_fields(
    config: ml_collections.ConfigDict, folder: Path, ensemble: Ensemble, recording: Recording, index: int
) -> dict[str, np.ndarray]:
    """What stands in FOLDER/ANIMAL.npz; maps the fields first where it isn't there.

    The file holds, for the mean over encoders, `maps`, `responsive`, `peaks` and `strength` (`ReceptiveFieldMaps`),
    `population_peaks` and `population_mean`; for each encoder, the same under `model_` but for the maps. With
    `keep_responses`, ANIMAL_modelK.npy holds what `probe_pixels` found.

    Args:
      config: of the study.
      folder: of the study.
      ensemble: the encoders.
      recording: whose neurons; its number among the recordings is `index`.

    Raises:
      NeuroreconError: anything that can't be read or written or doesn't fit, or no neuron responds.
    """
    path = folder / f"{recording.name}.npz"
    if not path.is_file():
        _map(config, folder, ensemble, recording, ensemble.readout(recording, index))
    return runs.load_arrays(path)


def _map(
    config: ml_collections.ConfigDict, folder: Path, ensemble: Ensemble, recording: Recording, readout: int
) -> None:
    asked = config.receptive_fields
    reference = "before" if asked.published else "blank"
    behaviour = _published_behaviour(recording) if asked.published else recording.behaviour_mean()
    progress = folder / "progress"
    mean: list[Any] = []
    single = []
    total = sum(probe_shape([m], readout, asked.spot_pixels)[1] for m in ensemble.members)
    with tqdm(total=total, desc=f"receptive fields {recording.name}", unit="square", mininterval=2.0) as bar:
        for model, member in enumerate(ensemble.members):  # one at a time: their responses are large
            before = bar.n
            found = probe_pixels(
                [member],
                behaviour,
                readout=readout,
                padding=PUBLISHED_PADDING if asked.published else None,
                spot=asked.spot_pixels,
                chunk=asked.chunk,
                found=_store(
                    progress / f"{recording.name}_model{model}.npy", probe_shape([member], readout, asked.spot_pixels)
                ),
                on_chunk=lambda done, _, before=before: bar.update(before + done - bar.n),  # type: ignore[misc]
            )
            if asked.keep_responses:
                save_npy(folder / f"{recording.name}_model{model}.npy", found.responses[0])
            fields = receptive_field_maps(found, reference=reference, smoothing=asked.smoothing)
            single.append((fields.responsive, fields.peaks, fields.strength, _population(fields)))
            share = [np.asarray(x) / len(ensemble.members) for x in found]
            mean = [a + b for a, b in zip(mean, share)] if mean else share
    fields = receptive_field_maps(PixelResponses(*mean), reference=reference, smoothing=asked.smoothing)
    population = {f"population_{name}": population_receptive_field(fields, name) for name in ("peaks", "mean")}
    by_model = {f"model_{name}": np.stack(values) for name, values in zip(SINGLE, zip(*single))}
    save_npz(folder / f"{recording.name}.npz", **fields._asdict(), **population, **by_model)
    shutil.rmtree(progress)


def _store(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A mapped file of NaN, filled chunk by chunk; what a killed run filled stays."""
    if not path.is_file():
        with atomic_path(path) as temporary:
            np.lib.format.open_memmap(temporary, "w+", np.float32, shape)[...] = np.nan
    try:
        store = np.load(path, mmap_mode="r+")
    except (OSError, ValueError) as error:
        raise NeuroreconError(f"{path}: damaged ({error}); remove it and run the same command again") from error
    if store.shape != shape or store.dtype != np.float32:
        raise NeuroreconError(f"{path}: expected shape {shape}, found {store.shape}; remove it to start again")
    return store


def _population(fields: ReceptiveFieldMaps) -> np.ndarray:
    """Peaks of one encoder; zeros where none of its neurons responds, as the others' may."""
    if not fields.responsive.any():
        return np.zeros(fields.maps.shape[:3], np.float32)
    return population_receptive_field(fields, "peaks")


def _published_behaviour(source: Recording) -> np.ndarray:
    """The means that the published code reads; where they keep a time axis, their maximum over it."""
    means = []
    for kind in ("behavior", "pupil_center"):
        statistics = source.statistics(kind)
        if "mean" not in statistics:
            raise NeuroreconError(
                f"{source.path}/meta/statistics/{kind}/all/mean.npy: expected it for "
                "--config.receptive_fields.published, found no such file"
            )
        mean = statistics["mean"]
        means.append(np.nanmax(mean.reshape(len(mean), -1), axis=1))
    return np.concatenate(means)
