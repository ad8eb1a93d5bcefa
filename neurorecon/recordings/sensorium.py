"""Reading a recording in the Sensorium 2023 layout: one folder per animal, see `open_recording`."""

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.files import read_json
from neurorecon.recordings.npy import load_numbers, load_strings, numbered_files, read_header
from neurorecon.recordings.trial import Trial
from neurorecon.recordings.validation import (
    as_target,
    check_finite,
    check_tier,
    check_trial,
    nearest_tier_line,
)

KINDS = ("videos", "responses", "behavior", "pupil_center")
STATISTICS = ("mean", "std", "median", "min", "max")
DEFAULT_FRAME_RATE = 30.0


class Recording:
    """One animal's trials, read from disk one at a time, when asked for.

    Attributes:
      path: the folder.
      name: its name, the animal.
      num_neurons: neurons in every trial.
      num_trials: trials in all tiers.
      frame_shape: (height, width) of the movies in pixels.
      frame_rate: frames per second.
      extra: whatever else `meta/recording.json` holds, as the writer put it there.
    """

    def __init__(
        self,
        path: Path,
        files: Mapping[str, Mapping[int, Path]],
        tiers: list[str],
        num_neurons: int,
        frame_shape: tuple[int, int],
        frame_rate: float,
        extra: dict,
    ) -> None:
        self.path = path
        self.name = path.name
        self.num_neurons = num_neurons
        self.num_trials = len(tiers)
        self.frame_shape = frame_shape
        self.frame_rate = frame_rate
        self.extra = extra
        self._files = files
        self._tiers = tiers
        self._behaviour_mean: np.ndarray | None = None

    def __repr__(self) -> str:
        height, width = self.frame_shape
        return (
            f"Recording({self.name}: {self.num_trials} trials, {self.num_neurons} neurons, "
            f"{height} x {width} pixels, {self.frame_rate:g} Hz)"
        )

    def trial_ids(self, tier: str | None = None) -> list[str]:
        """Names of the trials of a tier (None: of all), in numerical order.

        Raises:
          NeuroreconError: the tier is unknown, or no trial has it.
        """
        if tier is None:
            return [str(n) for n in range(self.num_trials)]
        check_tier(tier, str(self.path))
        ids = [str(n) for n, t in enumerate(self._tiers) if t == tier]
        if not ids:
            raise NeuroreconError(nearest_tier_line(tier, self._tiers, str(self.path)))
        return ids

    def tier(self, trial_id: str) -> str:
        """The tier of a trial. Raises NeuroreconError if there is no such trial."""
        return self._tiers[self._number(trial_id)]

    @property
    def tier_counts(self) -> dict[str, int]:
        """Tier -> number of trials, for the tiers that occur."""
        return {t: self._tiers.count(t) for t in dict.fromkeys(self._tiers)}

    def trial(self, trial_id: str) -> Trial:
        """Reads one trial, cut to its valid length: the first NaN of `responses[0]` and of `behavior[0]`.

        Raises:
          NeuroreconError: no such trial; or its arrays are unreadable, have wrong axes or unequal lengths,
            are empty, or hold NaN before their end or infinity anywhere.
        """
        number = self._number(trial_id)
        # Mapped: padding is then never read, and the transposed copies below are the only ones made.
        videos, responses, behavior, pupil = (load_numbers(self._files[k][number], mapped=True) for k in KINDS)
        self._check_axes(number, videos.shape, responses.shape, behavior.shape, pupil.shape)
        length = self._valid_length(number, responses[0], behavior[0])

        def cut(array: np.ndarray) -> np.ndarray:
            with np.errstate(over="ignore"):  # an overflow becomes infinity, which check_trial reports
                # Always a copy: a view would keep the file open and change with it.
                return np.moveaxis(array[..., :length], -1, 0).astype(np.float32, order="C")

        kept = cut(responses)
        trial = Trial(
            id=str(number),
            animal=self.name,
            tier=self._tiers[number],
            stimulus=cut(videos),
            responses=kept,
            behaviour=np.concatenate([cut(behavior), cut(pupil)], axis=1),
            withheld=not kept.any(),
        )
        names = {"stimulus": "videos", "responses": "responses", "behaviour": "behavior"}
        if np.isfinite(trial.behaviour[:, :2]).all():
            names["behaviour"] = "pupil_center"
        check_trial(trial, lambda kind: str(self._files[names[kind]][number]))
        return trial

    def target(self, trial_id: str) -> Trial:
        """As `trial`, for fitting or scoring. Raises NeuroreconError if its responses are withheld."""
        return as_target(self.trial(trial_id))

    def num_frames(self, trial_id: str) -> int:
        """Valid length of a trial, from one neuron and one behaviour channel only."""
        number = self._number(trial_id)
        responses = load_numbers(self._files["responses"][number], mapped=True)
        behavior = load_numbers(self._files["behavior"][number], mapped=True)
        if responses.ndim != 2 or behavior.ndim != 2:
            raise NeuroreconError(f"{self._files['responses'][number]}: expected axes (neuron, time)")
        return self._valid_length(number, responses[0], behavior[0])

    def stimulus(self, trial_id: str) -> np.ndarray:
        """The movie of a trial alone, (time, height, width) float32, cut to the trial's valid length."""
        videos = load_numbers(self._files["videos"][self._number(trial_id)], mapped=True)
        length = self.num_frames(trial_id)
        if videos.ndim != 3 or videos.shape[:2] != self.frame_shape or videos.shape[2] < length:
            self.trial(trial_id)  # says what is wrong
        return np.moveaxis(videos[..., :length], -1, 0).astype(np.float32, order="C")

    def behaviour(self, trial_id: str) -> np.ndarray:
        """The behaviour of a trial alone, (time, 4) float32, cut to the trial's valid length."""
        number, length = self._number(trial_id), self.num_frames(trial_id)
        arrays = [load_numbers(self._files[kind][number]) for kind in ("behavior", "pupil_center")]
        if any(a.ndim != 2 or len(a) != 2 or a.shape[1] < length for a in arrays):
            return self.trial(trial_id).behaviour  # says what is wrong
        behaviour = np.concatenate([a[:, :length] for a in arrays]).T.astype(np.float32)
        check_finite(behaviour, f"behaviour of trial {number} in {self.path}", "time, channel")
        return behaviour

    def repeats(self, tier: str | None = None) -> list[list[str]]:
        """Groups of two trials or more with the same movie, byte for byte (for correlation to average)."""
        groups: dict[bytes, list[str]] = {}
        for trial_id in self.trial_ids(tier):
            movie = self.stimulus(trial_id)
            digest = hashlib.blake2b(repr(movie.shape).encode(), digest_size=16)
            digest.update(movie.data)
            groups.setdefault(digest.digest(), []).append(trial_id)
        return [group for group in groups.values() if len(group) > 1]

    def behaviour_mean(self) -> np.ndarray:
        """Mean behaviour (4,) over the frames of the training trials (of all, if none is for training)."""
        if self._behaviour_mean is None:
            total, count = np.zeros(4), 0
            for trial_id in self.trial_ids("train" if "train" in self._tiers else None):
                behaviour = self.behaviour(trial_id)
                total += behaviour.sum(axis=0, dtype=np.float64)
                count += len(behaviour)
            self._behaviour_mean = (total / count).astype(np.float32)
        return self._behaviour_mean.copy()

    @property
    def unit_ids(self) -> np.ndarray | None:
        """Names of the neurons (neuron,), if the recording has them."""
        return self._neuron_array("unit_ids.npy", 1)

    @property
    def cell_motor_coordinates(self) -> np.ndarray | None:
        """Positions of the neurons (neuron, 3) in micrometres, if measured: None where all are zero."""
        places = self._neuron_array("cell_motor_coordinates.npy", 2)
        return places if places is not None and places.any() else None

    def statistics(self, kind: str) -> dict[str, np.ndarray]:
        """Statistic (of `STATISTICS`) -> array, for `kind` of `KINDS`; empty if the recording has none."""
        if kind not in KINDS:
            raise NeuroreconError(f"statistics of {kind!r}: expected one of {', '.join(KINDS)}")
        folder = self.path / "meta" / "statistics" / kind / "all"
        return {s: load_numbers(folder / f"{s}.npy") for s in STATISTICS if (folder / f"{s}.npy").exists()}

    def _number(self, trial_id: str | int) -> int:
        text = str(trial_id)
        if not (text.isascii() and text.isdigit()) or int(text) >= self.num_trials:
            raise NeuroreconError(f"{self.path}: no trial {text!r}; they are 0 to {self.num_trials - 1}")
        return int(text)

    def _neuron_array(self, name: str, ndim: int) -> np.ndarray | None:
        path = self.path / "meta" / "neurons" / name
        if not path.exists():
            return None
        array = load_numbers(path)
        if array.ndim != ndim or len(array) != self.num_neurons:
            raise NeuroreconError(
                f"{path}: expected {ndim} axes, {self.num_neurons} neurons first, found shape {array.shape}"
            )
        return array

    def _check_axes(self, number: int, *shapes: tuple[int, ...]) -> None:
        """Raises unless each array has its axes in the published order (time last), all of one length."""
        axes = (
            ("(height, width, time)", self.frame_shape),
            ("(neuron, time)", (self.num_neurons,)),
            ("(2, time)", (2,)),
            ("(2, time)", (2,)),
        )
        for kind, shape, (order, lead) in zip(KINDS, shapes, axes, strict=True):
            path = self._files[kind][number]
            if len(shape) != len(lead) + 1:
                raise NeuroreconError(f"{path}: expected axes {order}, found shape {shape}")
            if shape[:-1] != lead:
                hint = "the axes look turned round: time comes last" if shape[1:] == lead else "other sizes"
                sizes = ", ".join(map(str, lead))
                raise NeuroreconError(f"{path}: expected axes {order} = ({sizes}, T), found shape {shape}: {hint}")
        num_frames = shapes[0][-1]
        for kind, shape in zip(KINDS, shapes, strict=True):
            if shape[-1] != num_frames:
                amount = "fewer" if shape[-1] < num_frames else "more"
                raise NeuroreconError(
                    f"{self._files[kind][number]}: {amount} frames than the movie: expected {num_frames}, "
                    f"found {shape[-1]}"
                )

    def _valid_length(self, number: int, responses: np.ndarray, behavior: np.ndarray) -> int:
        lengths = []
        for kind, row in (("responses", responses), ("behavior", behavior)):
            path, missing = self._files[kind][number], np.isnan(row)
            length = int(np.argmax(missing)) if missing.any() else len(row)
            if not len(row):
                raise NeuroreconError(f"{path}: expected at least one frame, found none (zero-length trial)")
            if length == 0 and missing.all():
                raise NeuroreconError(
                    f"{path}: expected finite numbers, found all NaN in the first row: no valid frame"
                )
            if not missing[length:].all():
                raise NeuroreconError(
                    f"{path}: NaN at frame {length} and numbers after it; NaN may only pad the end of a trial"
                )
            lengths.append(length)
        return min(lengths)


def open_recording(path: str | os.PathLike) -> Recording:
    """Opens one animal's folder in the Sensorium 2023 layout; only the first trial's headers are looked at.

    The folder holds `data/{videos,responses,behavior,pupil_center}/N.npy` with axes (height, width, time),
    (neuron, time), (2, time), (2, time); `meta/trials/tiers.npy`, one string per trial; optionally
    `meta/neurons`, `meta/statistics` and `meta/recording.json` ({"frame_rate": ...}; 30 Hz without it).

    Raises:
      NeuroreconError: a folder or file is missing or has another name, the tiers don't match the trials, or
        the first trial's arrays have wrong axes.
    """
    path = Path(path)
    if not path.is_dir():
        raise NeuroreconError(f"{path}: expected the folder of a recording, found {_what(path)}")
    path = Path(os.path.abspath(path))  # not resolved: a link's own name is the animal's
    if not (path / "data").is_dir():
        inside = sorted(p.name for p in path.iterdir() if (p / "data").is_dir())
        hint = f"; it holds recordings, name one of them: {', '.join(inside[:3])}" if inside else ""
        raise NeuroreconError(f"{path}: expected the folders data/ and meta/ of a recording, found no data/{hint}")
    files = {kind: numbered_files(path / "data" / kind) for kind in KINDS}
    tiers_path = path / "meta" / "trials" / "tiers.npy"
    tiers = load_strings(tiers_path)
    for number, tier in enumerate(tiers):
        check_tier(tier, f"{tiers_path}: entry {number}")
    num_trials = len(files["videos"])
    if not num_trials:
        raise NeuroreconError(f"{path / 'data' / 'videos'}: expected at least one trial N.npy, found none")
    if len(tiers) != num_trials:
        raise NeuroreconError(
            f"{tiers_path}: expected one tier per trial in data/videos ({num_trials}), found {len(tiers)}"
        )
    for kind in KINDS:
        for number in range(num_trials):
            if number not in files[kind]:
                raise NeuroreconError(f"{path / 'data' / kind / f'{number}.npy'}: no such file; a trial is missing")
        if len(files[kind]) != num_trials:
            odd = next(files[kind][n] for n in files[kind] if n >= num_trials)
            raise NeuroreconError(f"{odd}: data/videos has no such trial; the trials there are 0 to {num_trials - 1}")
    shapes = {kind: read_header(files[kind][0])[0] for kind in KINDS}
    num_neurons, frame_shape = _sizes(path, files, shapes)
    frame_rate, extra = _read_meta(path / "meta" / "recording.json", num_neurons)
    recording = Recording(path, files, tiers, num_neurons, frame_shape, frame_rate, extra)
    recording._check_axes(0, *(shapes[kind] for kind in KINDS))
    return recording


def _sizes(path: Path, files: Mapping, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, tuple[int, int]]:
    """Number of neurons and frame shape, by the first trial and by what else fixes them."""
    for kind, ndim, order in zip(KINDS, (3, 2, 2, 2), ("height, width", "neuron", "2", "2"), strict=True):
        if len(shapes[kind]) != ndim:
            raise NeuroreconError(f"{files[kind][0]}: expected axes ({order}, time), found shape {shapes[kind]}")
    length = shapes["behavior"][1]
    if shapes["behavior"][0] != 2:  # then the neurons and pixels can't be told from time: say so first
        hint = ": the axes look turned round: time comes last" if length == 2 else ""
        raise NeuroreconError(
            f"{files['behavior'][0]}: expected axes (2, time), found shape {shapes['behavior']}{hint}"
        )
    for kind, order in (("videos", "(height, width, time)"), ("responses", "(neuron, time)")):
        shape = shapes[kind]
        if shape[-1] != length and shape[0] == length:
            raise NeuroreconError(
                f"{files[kind][0]}: expected axes {order} with the {length} frames of behavior, found shape "
                f"{shape}: the axes look turned round: time comes last"
            )
    num_neurons = shapes["responses"][0]
    units = path / "meta" / "neurons" / "unit_ids.npy"
    if units.exists():
        named = math.prod(read_header(units)[0])
        if named != num_neurons:
            raise NeuroreconError(
                f"{files['responses'][0]}: expected axes (neuron, time) for {named} neurons (unit_ids.npy), "
                f"found shape {shapes['responses']}"
            )
    if not num_neurons or 0 in shapes["videos"][:2]:
        raise NeuroreconError(
            f"{path}: expected neurons and pixels, found responses of shape {shapes['responses']} and videos "
            f"of shape {shapes['videos']}"
        )
    return num_neurons, (shapes["videos"][0], shapes["videos"][1])


def _read_meta(path: Path, num_neurons: int) -> tuple[float, dict]:
    if not path.exists():
        return DEFAULT_FRAME_RATE, {}
    meta = read_json(path)
    if not isinstance(meta, dict):
        raise NeuroreconError(f"{path}: expected an object with frame_rate, found a {type(meta).__name__}")
    rate = meta.get("frame_rate", DEFAULT_FRAME_RATE)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
        raise NeuroreconError(f"{path}: expected frame_rate in Hz, above 0, found {rate!r}")
    if meta.get("num_neurons", num_neurons) != num_neurons:
        raise NeuroreconError(
            f"{path}: it promises {meta['num_neurons']} neurons, but the first trial has {num_neurons}"
        )
    return float(rate), {k: v for k, v in meta.items() if k not in ("frame_rate", "num_neurons")}


def _what(path: Path) -> str:
    return "a file" if path.exists() else "nothing"
