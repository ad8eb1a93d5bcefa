"""All trials of a recording end to end in memory-mapped arrays: random windows at the speed of a copy."""

import hashlib
import logging
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.files import atomic_path, read_json, save_json
from neurorecon.recordings.sensorium import Recording
from neurorecon.recordings.subset import RecordingSubset
from neurorecon.recordings.trial import BEHAVIOUR, Trial
from neurorecon.recordings.validation import as_target, check_tier, nearest_tier_line

_FORMAT = 1  # raise it when the files below change
_ARRAYS = ("stimulus", "responses", "behaviour")
_SAMPLED_FILES = 16
_SAMPLED_BYTES = 4096
_CHECKED_TRIALS = 4


class Windows(NamedTuple):
    """A batch of windows.

    Attributes:
      stimulus: (window, time, height, width), grey values 0..255.
      responses: (window, time, neuron) float32.
      behaviour: (window, time, 4) float32.
    """

    stimulus: np.ndarray
    responses: np.ndarray
    behaviour: np.ndarray


class PreparedRecording:
    """A recording whose frames lie end to end, one array each for stimulus, responses and behaviour.

    Attributes:
      name, num_neurons, num_trials, frame_shape, frame_rate: as in `Recording`.
      stimulus: (frame, height, width), uint8 where the whole movie has whole grey values, else float32.
      responses: (frame, neuron) float32.
      behaviour: (frame, 4) float32.
      offsets: (num_trials + 1,) first frame of each trial, then the number of frames.
    """

    def __init__(self, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self.name: str = meta["name"]
        self.num_neurons: int = meta["num_neurons"]
        self.num_trials: int = len(meta["tiers"])
        self.frame_shape: tuple[int, int] = tuple(meta["frame_shape"])
        self.frame_rate: float = meta["frame_rate"]
        self.fingerprint: str = meta["fingerprint"]
        self.stimulus, self.responses, self.behaviour = (arrays[name] for name in _ARRAYS)
        self.offsets = np.asarray(meta["offsets"], np.int64)
        self._tiers: list[str] = meta["tiers"]
        self._withheld = np.asarray(meta["withheld"], bool)
        self._checksums: list[list[int]] = meta["checksums"]

    def trial_ids(self, tier: str | None = None) -> list[str]:
        """As `Recording.trial_ids`."""
        return [str(n) for n in self._numbers(tier)]

    def tier(self, trial_id: str) -> str:
        """As `Recording.tier`."""
        return self._tiers[self._number(trial_id)]

    def trial(self, trial_id: str) -> Trial:
        """As `Recording.trial`."""
        number = self._number(trial_id)
        frames = slice(self.offsets[number], self.offsets[number + 1])
        return Trial(
            id=str(number),
            animal=self.name,
            tier=self._tiers[number],
            stimulus=self.stimulus[frames].astype(np.float32),
            responses=np.array(self.responses[frames]),
            behaviour=np.array(self.behaviour[frames]),
            withheld=bool(self._withheld[number]),
        )

    def target(self, trial_id: str) -> Trial:
        """As `Recording.target`."""
        return as_target(self.trial(trial_id))

    def windows(
        self, tier: str | None, num_frames: int, step: int = 1, *, trial_ids: list[str] | None = None
    ) -> np.ndarray:
        """Every window that lies inside one trial, for fitting: withheld trials have none.

        Args:
          tier: the tier whose trials are used (None: every tier).
          num_frames: frames of a window.
          step: distance between its frames, so that it spans (num_frames - 1) * step + 1 frames.
          trial_ids: only these trials, of that tier (as for a fold); all of them if not given.

        Returns:
          (number of windows, 2) int64: number of the trial, first frame within the trial.

        Raises:
          NeuroreconError: unknown tier or trial, or no trial is long enough and has responses.
        """
        span = _span(num_frames, step)
        numbers = self._numbers(tier)
        if trial_ids is not None:
            wanted = {self._number(t) for t in trial_ids}
            odd = sorted(wanted - set(numbers))
            if odd:
                raise NeuroreconError(f"{self.name}: trial {odd[0]} isn't of tier {tier!r}")
            numbers = sorted(wanted)
        starts = [
            np.stack([np.full(count, number), np.arange(count)], axis=1)
            for number in numbers
            if not self._withheld[number]
            and (count := int(self.offsets[number + 1] - self.offsets[number]) - span + 1) > 0
        ]
        if not starts:
            raise NeuroreconError(
                f"{self.name}: no trial of tier {tier or 'any'} has responses and the {span} frames of a "
                f"window ({num_frames} frames, step {step}); take shorter windows or another tier"
            )
        return np.concatenate(starts).astype(np.int64)

    def gather(self, windows: np.ndarray, num_frames: int, step: int = 1, *, raw: bool = False) -> Windows:
        """Copies windows out.

        Args:
          windows: (window, 2) rows of `windows()`: number of the trial, first frame within it.
          num_frames: frames of a window.
          step: distance between its frames.
          raw: leave the stimulus in its stored type (uint8 is four times less to send to a device).

        Raises:
          NeuroreconError: a window leaves its trial.
        """
        windows = np.asarray(windows)
        if windows.ndim != 2 or windows.shape[1] != 2 or windows.dtype.kind not in "iu":
            raise NeuroreconError(
                f"windows: expected (window, 2) integers, found shape {windows.shape} of {windows.dtype}"
            )
        number, start = windows[:, 0], windows[:, 1]
        span = _span(num_frames, step)
        inside = (number >= 0) & (number < self.num_trials)
        first = self.offsets[np.where(inside, number, 0)] + start
        inside &= (start >= 0) & (first + span <= self.offsets[np.where(inside, number, 0) + 1])
        if not inside.all():
            bad = windows[np.argmin(inside)]
            raise NeuroreconError(
                f"windows: a window of {span} frames from frame {bad[1]} leaves trial {bad[0]} of {self.name}"
            )
        frames = first[:, None] + step * np.arange(num_frames)
        stimulus = self.stimulus[frames]
        return Windows(
            stimulus if raw else stimulus.astype(np.float32, copy=False),
            self.responses[frames],
            self.behaviour[frames],
        )

    def verify(self) -> None:
        """Reads everything and compares checksums. Raises NeuroreconError if a trial has changed."""
        for number in range(self.num_trials):
            if not self._intact(number):
                raise NeuroreconError(f"prepared {self.name}: trial {number} is damaged; remove the cache folder")

    def _intact(self, number: int) -> bool:
        frames = slice(self.offsets[number], self.offsets[number + 1])
        arrays = (self.stimulus, self.responses, self.behaviour)
        return [_checksum(array[frames]) for array in arrays] == self._checksums[number]

    def _numbers(self, tier: str | None) -> list[int]:
        if tier is None:
            return list(range(self.num_trials))
        check_tier(tier, self.name)
        numbers = [n for n, t in enumerate(self._tiers) if t == tier]
        if not numbers:
            raise NeuroreconError(nearest_tier_line(tier, self._tiers, self.name))
        return numbers

    def _number(self, trial_id: str) -> int:
        text = str(trial_id)
        if not (text.isascii() and text.isdigit()) or int(text) >= self.num_trials:
            raise NeuroreconError(f"{self.name}: no trial {text!r}; they are 0 to {self.num_trials - 1}")
        return int(text)


def prepare(recording: Recording, cache_folder: str | os.PathLike | None) -> PreparedRecording:
    """Lays a recording's trials end to end, once; later calls with the same source open what is there.

    The cache is `cache_folder/NAME-FINGERPRINT/`: a changed source has another fingerprint, so a stale cache
    is never read (and is removed); an incomplete or damaged one is made again. Made one trial at a time, it
    takes the memory of one trial.

    Args:
      recording: the source.
      cache_folder: where caches lie. None holds the arrays in memory instead, which suits small recordings.

    Raises:
      NeuroreconError: a trial can't be read, or the cache can't be written.
    """
    source = fingerprint(recording)
    if cache_folder is None:
        return _in_memory(recording, source)
    folder = Path(cache_folder) / f"{recording.name}-{source[:16]}"
    prepared = _open_cache(folder, source)
    if prepared is not None:
        return prepared
    if folder.exists():
        logging.info("%s: incomplete or damaged; made again", folder)
        shutil.rmtree(folder, ignore_errors=True)
    logging.info("%s: preparing %d trials", folder, recording.num_trials)
    try:
        with atomic_path(folder, directory=True) as temporary:
            _write_cache(recording, source, temporary)
    except NeuroreconError:
        prepared = _open_cache(folder, source)  # another process was quicker
        if prepared is None:
            raise
        return prepared
    _remove_stale(folder, str(recording.path))
    prepared = _open_cache(folder, source)
    if prepared is None:
        raise NeuroreconError(f"{folder}: what was just written doesn't read back; check the disk")
    return prepared


def fingerprint(recording: Recording) -> str:
    """A hash of the source: names, sizes and times of all files, the contents of a few, and what a subset takes."""
    root = recording.path
    files = sorted(p for part in ("data", "meta/trials") for p in (root / part).rglob("*.npy"))
    meta = root / "meta" / "recording.json"
    files += [meta] if meta.exists() else []
    digest = hashlib.blake2b(f"{_FORMAT} {root}\n".encode(), digest_size=16)
    if isinstance(recording, RecordingSubset):
        digest.update(f"{recording.neurons.tolist()} {recording.trial_ids('train')}\n".encode())
    try:
        for path in files:
            status = path.stat()
            digest.update(f"{path.relative_to(root)} {status.st_size} {status.st_mtime_ns}\n".encode())
        # Sizes and times miss a file edited in place with its time put back; a look at contents may not.
        for path in [*files[:: max(1, len(files) // _SAMPLED_FILES)], root / "meta" / "trials" / "tiers.npy"]:
            with open(path, "rb") as handle:
                digest.update(handle.read(_SAMPLED_BYTES))
                handle.seek(max(0, path.stat().st_size - _SAMPLED_BYTES))
                digest.update(handle.read(_SAMPLED_BYTES))
    except OSError as error:
        raise NeuroreconError(f"{error.filename}: can't be read ({error.strerror or error})") from error
    return digest.hexdigest()


class _Frames:
    """Trials as frames of the stored types, with everything about them that isn't a frame."""

    def __init__(self, recording: Recording, source: str, whole_greys: bool) -> None:
        self.recording = recording
        self.stimulus_type = np.dtype(np.uint8 if whole_greys else np.float32)
        self.meta: dict[str, Any] = {
            "format": _FORMAT,
            "fingerprint": source,
            "source": str(recording.path),
            "name": recording.name,
            "num_neurons": recording.num_neurons,
            "frame_shape": list(recording.frame_shape),
            "frame_rate": recording.frame_rate,
            "stimulus_type": self.stimulus_type.name,
            "tiers": [recording.tier(t) for t in recording.trial_ids()],
            "offsets": [0],
            "withheld": [],
            "checksums": [],
        }

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for trial_id in self.recording.trial_ids():
            trial = self.recording.trial(trial_id)
            if self.stimulus_type == np.uint8 and not _whole_greys(trial.stimulus):
                raise _NotWholeGreys
            arrays = (trial.stimulus.astype(self.stimulus_type), trial.responses, trial.behaviour)
            self.meta["offsets"].append(self.meta["offsets"][-1] + trial.num_frames)
            self.meta["withheld"].append(trial.withheld)
            self.meta["checksums"].append([_checksum(a) for a in arrays])
            yield arrays


class _NotWholeGreys(Exception):
    """A later trial isn't of whole grey values, as the first was."""


def _whole_greys(stimulus: np.ndarray) -> bool:
    return bool((stimulus >= 0).all() and (stimulus <= 255).all() and (stimulus == np.floor(stimulus)).all())


def _in_memory(recording: Recording, source: str) -> PreparedRecording:
    whole = _whole_greys(recording.trial("0").stimulus)
    try:
        frames = _Frames(recording, source, whole)
        parts = list(frames)
    except _NotWholeGreys:
        frames = _Frames(recording, source, False)
        parts = list(frames)
    arrays = {name: np.concatenate(part) for name, part in zip(_ARRAYS, zip(*parts, strict=True), strict=True)}
    return PreparedRecording(frames.meta, arrays)


def _write_cache(recording: Recording, source: str, folder: Path) -> None:
    whole = _whole_greys(recording.trial("0").stimulus)
    try:
        frames = _Frames(recording, source, whole)
        _write_frames(frames, folder)
    except _NotWholeGreys:  # rare: begin again with floats
        frames = _Frames(recording, source, False)
        _write_frames(frames, folder)
    save_json(folder / "meta.json", frames.meta)


def _write_frames(frames: _Frames, folder: Path) -> None:
    files: list[BinaryIO] = []
    try:
        for name in _ARRAYS:
            files.append(open(folder / f"{name}.raw", "wb"))  # noqa: SIM115 - closed below, all three
        for arrays in frames:
            for handle, array in zip(files, arrays, strict=True):
                handle.write(array.data)
        for handle in files:
            handle.flush()
            os.fsync(handle.fileno())
    finally:
        for handle in files:
            handle.close()


def _open_cache(folder: Path, source: str) -> PreparedRecording | None:
    """The cache in a folder, or None if it isn't there, incomplete, stale or damaged."""
    try:
        meta = read_json(folder / "meta.json")
        if meta["format"] != _FORMAT or meta["fingerprint"] != source:
            return None
        frames = meta["offsets"][-1]
        shapes = {
            "stimulus": (frames, *meta["frame_shape"]),
            "responses": (frames, meta["num_neurons"]),
            "behaviour": (frames, len(BEHAVIOUR)),
        }
        arrays: dict[str, np.ndarray] = {}
        for name in _ARRAYS:
            dtype = np.dtype(meta["stimulus_type"] if name == "stimulus" else np.float32)
            path = folder / f"{name}.raw"
            if path.stat().st_size != int(np.prod(shapes[name])) * dtype.itemsize:
                return None
            arrays[name] = np.asarray(np.memmap(path, dtype, "r", shape=shapes[name]))
        prepared = PreparedRecording(meta, arrays)
        # Sizes are right; the contents of a few trials, first and last among them, are looked at each time.
        checked = np.unique(np.linspace(0, prepared.num_trials - 1, _CHECKED_TRIALS).astype(int))
        return prepared if all(prepared._intact(int(n)) for n in checked) else None
    except (NeuroreconError, OSError, KeyError, IndexError, TypeError, ValueError):
        return None


def _remove_stale(folder: Path, source_path: str) -> None:
    """Removes older caches of the same source beside `folder`."""
    for other in folder.parent.iterdir():
        if other == folder or not (other / "meta.json").exists():
            continue
        try:
            meta = read_json(other / "meta.json")
        except NeuroreconError:
            continue
        if isinstance(meta, dict) and meta.get("source") == source_path:
            shutil.rmtree(other, ignore_errors=True)


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)


def _span(num_frames: int, step: int) -> int:
    if num_frames < 1 or step < 1:
        raise NeuroreconError(f"windows: expected num_frames and step of at least 1, found {num_frames}, {step}")
    return (num_frames - 1) * step + 1
