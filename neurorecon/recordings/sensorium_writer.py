"""Writing a recording in the Sensorium 2023 layout."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.files import atomic_path, save_json
from neurorecon.recordings.sensorium import KINDS
from neurorecon.recordings.trial import Trial
from neurorecon.recordings.validation import check_trial

# Grey values are counted in bins of 1/256: the median is exact for whole grey values, else within 1/512.
_BINS_PER_GREY = 256
# Bytes of responses held at once for the median over trials.
_MEDIAN_BYTES = 128 << 20


def write_sensorium(
    path: str | os.PathLike,
    trials: Iterable[Trial],
    *,
    unit_ids: np.ndarray | None = None,
    cell_motor_coordinates: np.ndarray | None = None,
    frame_rate: float = 30.0,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes one animal's trials as a tree that every reader of the Sensorium 2023 layout can read.

    `trials` is gone through once, one trial in memory at a time; the tree appears under `path` complete or
    not at all. Arrays are float32 without padding. Statistics are over all trials, withheld responses left
    out: one number for videos; for the time series (channel, T), T the longest trial, over the trials at
    each frame.

    Args:
      path: the folder to make; must not exist, or be empty. Its name is the animal's.
      trials: their ids must be 0 .. n - 1, in any order; all of one frame shape and one number of neurons.
      unit_ids: (neuron,) integers; 0 .. n - 1 if not given.
      cell_motor_coordinates: (neuron, 3) in micrometres; zeros if not given.
      frame_rate: frames per second.
      extra: further JSON values for `meta/recording.json`.

    Raises:
      NeuroreconError: a trial that `check_trial` refuses, differing shapes, missing or duplicate ids, `path`
        not empty, no trial at all, or a disk that can't be written.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise NeuroreconError(f"{path}: exists already and isn't empty; remove it or choose another folder")
    if not 0 < frame_rate < np.inf:
        raise NeuroreconError(f"frame_rate: expected Hz above 0, found {frame_rate!r}")
    with atomic_path(path, directory=True) as folder:
        statistics = {kind: _Moments() for kind in KINDS}
        grey = np.zeros(258 * _BINS_PER_GREY, np.int64)  # the grey values -1..256 that check_trial lets pass
        tiers: dict[int, str] = {}
        withheld: set[int] = set()
        shape: tuple[int, ...] | None = None
        for kind in KINDS:
            (folder / "data" / kind).mkdir(parents=True)
        for given in trials:
            trial = _float32(given)
            check_trial(trial, f"%s of trial {trial.id}".__mod__)
            number = _number(trial.id, tiers)
            found = (*trial.stimulus.shape[1:], trial.responses.shape[1])
            shape = shape or found
            if found != shape:
                raise NeuroreconError(
                    f"trial {trial.id}: expected (height, width, neurons) = {shape} as in the first trial, "
                    f"found {found}"
                )
            tiers[number] = trial.tier
            if not trial.responses.any():
                withheld.add(number)
            for kind, array in _on_disk(trial).items():
                np.save(folder / "data" / kind / f"{number}.npy", array, allow_pickle=False)
                if kind != "responses" or number not in withheld:
                    statistics[kind].add(array.reshape(1, -1) if kind == "videos" else array)
            bins = np.rint((trial.stimulus + 1) * _BINS_PER_GREY).astype(np.int64)
            grey += np.bincount(np.clip(bins, 0, len(grey) - 1).ravel(), minlength=len(grey))
        if shape is None:
            raise NeuroreconError(f"{path}: expected at least one trial to write, found none")
        num_neurons = shape[2]
        if sorted(tiers) != list(range(len(tiers))):
            raise NeuroreconError(
                f"{path}: expected trial ids 0 to {len(tiers) - 1}, found {max(tiers)} among {len(tiers)} "
                "trials; number them without gaps"
            )
        _write_meta(folder, [tiers[n] for n in range(len(tiers))], num_neurons, unit_ids, cell_motor_coordinates)
        _write_statistics(folder, statistics, grey, len(tiers), withheld)
        save_json(
            folder / "meta" / "recording.json",
            {**(extra or {}), "frame_rate": float(frame_rate), "num_neurons": num_neurons},
        )


class _Moments:
    """Mean, deviation, minimum and maximum over trials at each (channel, frame), in one pass (Welford).

    For the videos, the whole movie is one channel whose frames are pooled: see `pooled`.
    """

    def __init__(self) -> None:
        self.count = np.zeros(0)
        self.mean = self.squares = self.low = self.high = np.zeros((0, 0))

    def add(self, array: np.ndarray) -> None:
        """Adds a trial (channel, time), of any length."""
        longer = array.shape[1] - len(self.count)
        if not self.mean.size or longer > 0:
            self._extend(len(array), max(longer, 0))
        part = np.s_[:, : array.shape[1]]
        self.count[: array.shape[1]] += 1
        delta = array - self.mean[part]
        self.mean[part] += delta / self.count[: array.shape[1]]
        self.squares[part] += delta * (array - self.mean[part])
        self.low[part] = np.minimum(self.low[part], array)
        self.high[part] = np.maximum(self.high[part], array)

    def _extend(self, channels: int, frames: int) -> None:
        def longer(old: np.ndarray, fill: float) -> np.ndarray:
            new = np.full((channels, old.shape[1] + frames), fill)
            new[:, : old.shape[1]] = old if old.size else fill
            return new

        self.count = np.concatenate([self.count, np.zeros(frames)])
        self.mean, self.squares = longer(self.mean, 0.0), longer(self.squares, 0.0)
        self.low, self.high = longer(self.low, np.inf), longer(self.high, -np.inf)

    def per_frame(self) -> dict[str, np.ndarray]:
        """(channel, T) each; the deviation is over trials with divisor n."""
        return {
            "mean": self.mean,
            "std": np.sqrt(self.squares / self.count),
            "min": self.low,
            "max": self.high,
        }

    def pooled(self) -> dict[str, np.ndarray]:
        """One number each, over all channels, frames and trials."""
        count = np.broadcast_to(self.count, self.mean.shape)
        mean = np.average(self.mean, weights=count)
        variance = (self.squares.sum() + (count * (self.mean - mean) ** 2).sum()) / count.sum()
        values = {"mean": mean, "std": np.sqrt(variance), "min": self.low.min(), "max": self.high.max()}
        return {k: np.asarray(v) for k, v in values.items()}


def _float32(trial: Trial) -> Trial:
    with np.errstate(over="ignore"):  # an overflow becomes infinity, which check_trial reports
        arrays = [np.asarray(a, np.float32) for a in (trial.stimulus, trial.responses, trial.behaviour)]
    if trial.withheld and arrays[1].any():
        raise NeuroreconError(f"trial {trial.id}: withheld, but its responses aren't all zeros; zero them")
    return dataclasses.replace(trial, stimulus=arrays[0], responses=arrays[1], behaviour=arrays[2])


def _on_disk(trial: Trial) -> dict[str, np.ndarray]:
    """The four arrays of a trial with the axes of the published layout: time last."""
    arrays = (
        np.moveaxis(trial.stimulus, 0, -1),
        trial.responses.T,
        trial.behaviour[:, :2].T,
        trial.behaviour[:, 2:].T,
    )
    return {k: np.ascontiguousarray(a, dtype=np.float32) for k, a in zip(KINDS, arrays, strict=True)}


def _number(trial_id: str, taken: Mapping[int, str]) -> int:
    if not (trial_id.isascii() and trial_id.isdigit()):
        raise NeuroreconError(f"trial {trial_id!r}: expected a number as the name of its files; rename it")
    if int(trial_id) in taken:
        raise NeuroreconError(f"trial {trial_id!r}: duplicate: two trials have this number; number them anew")
    return int(trial_id)


def _write_meta(
    folder: Path,
    tiers: list[str],
    num_neurons: int,
    unit_ids: np.ndarray | None,
    cell_motor_coordinates: np.ndarray | None,
) -> None:
    units = np.arange(num_neurons) if unit_ids is None else np.asarray(unit_ids)
    places = np.zeros((num_neurons, 3)) if cell_motor_coordinates is None else np.asarray(cell_motor_coordinates)
    if units.shape != (num_neurons,) or units.dtype.kind not in "iu":
        raise NeuroreconError(f"unit_ids: expected {num_neurons} integers, found shape {units.shape} of {units.dtype}")
    if places.shape != (num_neurons, 3) or places.dtype.kind not in "fiu" or not np.isfinite(places).all():
        raise NeuroreconError(
            f"cell_motor_coordinates: expected ({num_neurons}, 3) finite numbers, found shape {places.shape}"
        )
    for part in ("trials", "neurons"):
        (folder / "meta" / part).mkdir(parents=True)
    np.save(folder / "meta" / "trials" / "tiers.npy", _tier_array(tiers), allow_pickle=False)
    np.save(folder / "meta" / "neurons" / "unit_ids.npy", units, allow_pickle=False)
    np.save(
        folder / "meta" / "neurons" / "cell_motor_coordinates.npy",
        places.astype(np.float32),
        allow_pickle=False,
    )


def _tier_array(tiers: list[str]) -> np.ndarray:
    # Wide enough for what other readers write into it: the published one puts "fold_0" in the place of "train".
    return np.array(tiers, dtype=f"<U{max(16, *map(len, tiers))}")


def _write_statistics(
    folder: Path, statistics: Mapping[str, _Moments], grey: np.ndarray, num_trials: int, withheld: set[int]
) -> None:
    for kind, moments in statistics.items():
        if not len(moments.count):  # every response withheld: nothing to summarise
            continue
        if kind == "videos":
            values = moments.pooled()
            half = np.searchsorted(np.cumsum(grey), [(grey.sum() + 1) // 2, grey.sum() // 2 + 1])
            values["median"] = np.asarray(half.mean() / _BINS_PER_GREY - 1)
        else:
            values = moments.per_frame()
            numbers = [n for n in range(num_trials) if kind != "responses" or n not in withheld]
            values["median"] = _median(folder / "data" / kind, numbers, *moments.mean.shape)
        target = folder / "meta" / "statistics" / kind / "all"
        target.mkdir(parents=True)
        for name, value in values.items():
            np.save(target / f"{name}.npy", value.astype(np.float32), allow_pickle=False)


def _median(folder: Path, numbers: list[int], channels: int, frames: int) -> np.ndarray:
    """Median over trials at each (channel, frame), a few channels at a time from the files just written."""
    median = np.empty((channels, frames), np.float32)
    step = max(1, _MEDIAN_BYTES // (4 * len(numbers) * frames))
    for start in range(0, channels, step):
        rows = slice(start, start + step)
        # Copied, so that no file stays open: a recording may have more trials than a process may have files.
        arrays = [np.array(np.load(folder / f"{n}.npy", mmap_mode="r")[rows]) for n in numbers]
        # Trials end at different frames: between two ends, the same trials take part.
        ends = sorted({array.shape[1] for array in arrays})
        for first, last in zip([0, *ends], ends, strict=False):
            part = [array[:, first:last] for array in arrays if array.shape[1] >= last]
            median[rows, first:last] = np.median(np.stack(part), axis=0, overwrite_input=True)
    return median
