"""Recordings that come as arrays -> a tree in the Sensorium layout."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.recordings.array_files import load_array
from neurorecon.recordings.cuts import Splits, plan_cuts
from neurorecon.recordings.sensorium import Recording, open_recording
from neurorecon.recordings.sensorium_writer import write_sensorium
from neurorecon.recordings.trial import BEHAVIOUR, Trial
from neurorecon.recordings.validation import check_finite

ArrayLike = np.ndarray | str | os.PathLike


def import_arrays(
    path: str | os.PathLike,
    *,
    stimulus: ArrayLike,
    responses: ArrayLike,
    behaviour: ArrayLike | None = None,
    stimulus_axes: str = "time,height,width",
    response_axes: str = "time,neuron",
    behaviour_axes: str = "time,channel",
    packed_bits_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
    pool: int = 1,
    frame_rate: float,
    trial_frames: int,
    splits: Splits | None = None,
    gap: int = 0,
    lead_in: int = 0,
    min_trial_frames: int = 1,
    unit_ids: np.ndarray | None = None,
    cell_motor_coordinates: np.ndarray | None = None,
) -> Recording:
    """Cuts one continuous recording into trials and writes them as a tree; one trial is in memory at a time.

    Args:
      path: the folder to make, named after the animal; must not exist, or be empty.
      stimulus: the movie, an array or a file (see `load_array`), one frame for each frame of the responses.
      responses: one number for each neuron and frame, not negative as a rule (spikes, deconvolved calcium).
      behaviour: pupil dilation, running speed, pupil x, pupil y; zeros if not given.
      stimulus_axes: order of the movie's axes, for example "time,width,height".
      response_axes: order of the responses' axes, "time,neuron" or "neuron,time".
      behaviour_axes: order of the behaviour's axes, "time,channel" or "channel,time".
      packed_bits_shape: the movie is black and white, each frame a row of packed bits (`np.packbits`) which
        unpack to this shape; `stimulus_axes` then names the axes after unpacking, time first.
      value_range: the values that mean black and white, scaled to 0 and 255; None: grey values 0..255
        already, or 0 and 1 for packed bits.
      pool: pixels averaged in each direction.
      frame_rate: frames per second.
      trial_frames: frames of a trial; the last one of a range keeps what is left.
      splits: tier -> ranges [start, stop) of frames; everything is `train` if not given. Frames that another
        tier claims are taken out of `train`; no other frame may be claimed twice.
      gap: frames between `train` and any other tier that are used by neither.
      lead_in: frames shown before each trial's own, except in `train`: so that scores which skip the first
        frames of a trial still cover every frame of the range.
      min_trial_frames: shorter remainders are left out.
      unit_ids, cell_motor_coordinates: as in `write_sensorium`.

    Returns:
      The recording written; `.extra["cuts"]` lists (tier, start, stop, lead_in) of each trial.

    Raises:
      NeuroreconError: shapes that don't fit the named axes or each other, non-finite numbers, values outside
        the range, splits that overlap or leave the recording, no trial, or a tree that can't be written.
    """
    movie = _Movie(stimulus, stimulus_axes, packed_bits_shape, value_range, pool)
    kept = _Series(responses, "responses", response_axes, "neuron", movie.num_frames)
    states = None if behaviour is None else _Series(behaviour, "behaviour", behaviour_axes, "channel", movie.num_frames)
    if states is not None and states.width != len(BEHAVIOUR):
        raise NeuroreconError(f"{states.name}: expected the 4 channels {', '.join(BEHAVIOUR)}, found {states.width}")
    splits = {"train": [(0, movie.num_frames)]} if splits is None else splits
    cuts = plan_cuts(
        splits, movie.num_frames, trial_frames, gap=gap, lead_in=lead_in, min_trial_frames=min_trial_frames
    )

    def trials() -> Iterator[Trial]:
        for number, cut in enumerate(cuts):
            frames = slice(cut.start - cut.lead_in, cut.stop)
            count = frames.stop - frames.start
            yield Trial(
                id=str(number),
                animal=Path(path).name,
                tier=cut.tier,
                stimulus=movie[frames],
                responses=kept[frames],
                behaviour=np.zeros((count, len(BEHAVIOUR)), np.float32) if states is None else states[frames],
            )
        movie.check_whole_range()

    write_sensorium(
        path,
        trials(),
        unit_ids=unit_ids,
        cell_motor_coordinates=cell_motor_coordinates,
        frame_rate=frame_rate,
        extra={"cuts": [list(dataclasses.astuple(cut)) for cut in cuts], "pool": pool},
    )
    return open_recording(path)


class _Movie:
    """The stimulus as grey values (time, height, width), made a slice of frames at a time."""

    def __init__(
        self,
        stimulus: ArrayLike,
        axes: str,
        packed_bits_shape: Sequence[int] | None,
        value_range: tuple[float, float] | None,
        pool: int,
    ) -> None:
        self.array, self.name = _loaded(stimulus, "stimulus")
        self.order = _order(axes, ("time", "height", "width"), "stimulus_axes")
        self.bits = None if packed_bits_shape is None else tuple(packed_bits_shape)
        if self.bits is not None:
            self._check_packed(self.bits)
        elif self.array.ndim != 3:
            raise NeuroreconError(f"{self.name}: expected axes ({axes}), found shape {self.array.shape}")
        self.num_frames = self.array.shape[self.order[0]]
        sizes = (self.num_frames, *self.bits) if self.bits is not None else self.array.shape
        height, width = sizes[self.order[1]], sizes[self.order[2]]
        if pool < 1 or height % pool or width % pool:
            raise NeuroreconError(f"pool: expected a divisor of {height} x {width} pixels, found {pool}")
        self.pool = pool
        self.given = value_range is not None
        self.low, self.high = value_range or ((0.0, 1.0) if self.bits is not None else (0.0, 255.0))
        if not self.low < self.high:
            raise NeuroreconError(f"value_range: expected black below white, found {self.low}, {self.high}")
        self.largest = -np.inf

    def _check_packed(self, bits: tuple[int, ...]) -> None:
        if self.order[0] != 0:
            raise NeuroreconError("stimulus_axes: expected time first for packed bits; one row is one frame")
        need = -(-int(np.prod(bits)) // 8)
        if self.array.dtype != np.uint8 or self.array.ndim != 2 or len(bits) != 2 or self.array.shape[1] != need:
            raise NeuroreconError(
                f"{self.name}: expected packed bits (time, {need}) of uint8 for frames of shape {bits}, "
                f"found shape {self.array.shape} of {self.array.dtype}"
            )

    def __getitem__(self, frames: slice) -> np.ndarray:
        if self.bits is not None:
            flat = np.unpackbits(self.array[frames], axis=1, count=int(np.prod(self.bits)))
            movie = flat.reshape(-1, *self.bits).transpose(self.order).astype(np.float32)
        else:
            index = tuple(frames if axis == self.order[0] else slice(None) for axis in range(3))
            with np.errstate(over="ignore"):  # an overflow becomes infinity, which is reported below
                movie = self.array[index].transpose(self.order).astype(np.float32)
        check_finite(movie, f"{self.name} from frame {frames.start}", "time, height, width")
        low, high = float(movie.min()), float(movie.max())
        slack = 1e-3 * (self.high - self.low)
        if low < self.low - slack or high > self.high + slack:
            raise NeuroreconError(
                f"{self.name}: expected values {self.low:g}..{self.high:g}, found {low:g}..{high:g}; say "
                "what black and white are with value_range"
            )
        self.largest = max(self.largest, high)
        if (self.low, self.high) != (0.0, 255.0):
            movie = (movie - self.low) * (255.0 / (self.high - self.low))
        if self.pool > 1:
            time, height, width = movie.shape
            movie = movie.reshape(time, height // self.pool, self.pool, width // self.pool, self.pool)
            movie = movie.mean(axis=(2, 4), dtype=np.float32)
        return np.clip(movie, 0.0, 255.0)

    def check_whole_range(self) -> None:
        """Raises if the movie, taken as 0..255, never leaves 0..1: most likely, white then was 1."""
        if not self.given and self.bits is None and self.largest <= 1.0:
            raise NeuroreconError(
                f"{self.name}: expected grey values 0..255, but none is above {self.largest:g}; give "
                "value_range (0, 1, if white is 1)"
            )


class _Series:
    """Responses or behaviour as (time, channel), a slice of frames at a time."""

    def __init__(self, source: ArrayLike, argument: str, axes: str, channel: str, num_frames: int) -> None:
        self.array, self.name = _loaded(source, argument)
        self.order = _order(axes, ("time", channel), f"{argument.removesuffix('s')}_axes")
        self.channel = channel
        if self.array.ndim != 2:
            raise NeuroreconError(f"{self.name}: expected axes ({axes}), found shape {self.array.shape}")
        found = self.array.shape[self.order[0]]
        self.width = self.array.shape[self.order[1]]
        if found != num_frames:
            hint = "; the axes look turned round" if self.width == num_frames else ""
            amount = "fewer" if found < num_frames else "more"
            raise NeuroreconError(
                f"{self.name}: {amount} frames than the movie: expected {num_frames} along time of ({axes}), "
                f"found {found}{hint}"
            )

    def __getitem__(self, frames: slice) -> np.ndarray:
        part = self.array[frames] if self.order[0] == 0 else self.array[:, frames].T
        with np.errstate(over="ignore"):
            part = np.ascontiguousarray(part, np.float32)
        check_finite(part, f"{self.name} from frame {frames.start}", f"time, {self.channel}")
        return part


def _loaded(source: ArrayLike, argument: str) -> tuple[np.ndarray, str]:
    if isinstance(source, str | os.PathLike):
        return load_array(source), f"{argument} ({os.fspath(source)})"
    array = np.asarray(source)
    if array.dtype.kind not in "fiub":
        raise NeuroreconError(f"{argument}: expected an array of real numbers, found dtype {array.dtype}")
    return array, argument


def _order(axes: str, wanted: tuple[str, ...], argument: str) -> tuple[int, ...]:
    """Where each wanted axis lies in `axes`."""
    found = [axis.strip() for axis in axes.split(",")]
    if sorted(found) != sorted(wanted):
        raise NeuroreconError(f"{argument}: expected an order of {','.join(wanted)}, found {axes!r}")
    return tuple(found.index(axis) for axis in wanted)
