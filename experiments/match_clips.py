"""The reconstructed clips of a work folder beside their controls, and which of many movies each of them is like."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from experiments.evaluate import stored_clips
from experiments.inputs import recordings_of
from experiments.studies import screen_pixels_per_degree
from neurorecon import runs
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.identification import n_way_accuracy, similarity, true_ranks
from neurorecon.recordings import Recording

CONTROLS = ("linear_decoder", "shuffled_neurons", "ceiling")
SEED = 0  # of the choice of candidates


class Matched(NamedTuple):
    """A clip as every condition has it.

    Attributes:
      animal, trial: which.
      truth: (time, height, width), from config.skip_frames on.
      movies: condition -> the same.
      mask: (height, width) bool.
      frame_rate: Hz.
    """

    animal: str
    trial: str
    truth: np.ndarray
    movies: dict[str, np.ndarray]
    mask: np.ndarray
    frame_rate: float


def matched_clips(config: ml_collections.ConfigDict, workdir: Path) -> list[Matched]:
    """Every reconstructed clip of a work folder, with the controls that stand there for all of them.

    Raises:
      NeuroreconError: no clip, or one too short.
    """
    clips = list(stored_clips(str(workdir), config))

    def control(name: str, clip: Any) -> Path:
        return workdir / "controls" / name / clip.animal / f"{clip.trial}.npz"

    names = [name for name in CONTROLS if all(control(name, clip).is_file() for clip in clips)]
    found = []
    for clip in clips:
        stored = runs.load_arrays(clip.path)
        movies = {"reconstruction": stored["movie"]}
        movies |= {name: runs.load_arrays(control(name, clip))["movie"] for name in names}
        skip = config.skip_frames
        least = max(2 * config.match.max_lag + 3, round(config.match.segment_seconds * clip.frame_rate))
        if len(clip.truth) - skip < least:
            raise NeuroreconError(
                f"{clip.path}: expected {least} frames at least after config.skip_frames, found "
                f"{len(clip.truth) - skip}; lower --config.match.max_lag and --config.match.segment_seconds"
            )
        movies = {name: movie[skip:] for name, movie in movies.items()}
        found.append(Matched(clip.animal, clip.trial, clip.truth[skip:], movies, stored["mask"], clip.frame_rate))
    return found


def settings(config: ml_collections.ConfigDict, clip: Matched) -> dict[str, Any]:
    """Of `clip_match`."""
    return {
        "pixels_per_degree": screen_pixels_per_degree(config, clip.truth.shape[2]),
        "frame_rate": clip.frame_rate,
        "max_lag": config.match.max_lag,
        "segment_seconds": config.match.segment_seconds,
    }


def identify(
    config: ml_collections.ConfigDict, clips: Sequence[Matched], *, seconds: bool
) -> tuple[list[int], dict[str, dict[str, np.ndarray]]]:
    """Accuracy of n-way identification among movies of each animal's recording, all of them different.

    Args:
      clips: from `matched_clips`.
      seconds: asks which second of which movie it is, in place of which movie.

    Returns:
      Ways n, and condition -> animal -> (clip, way) accuracy; of seconds, the mean over a clip's.
    """
    recordings = {r.name: r for r in recordings_of(config)}
    conditions = list(clips[0].movies)
    ranks: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in conditions}
    sizes = []
    for animal in dict.fromkeys(c.animal for c in clips):
        mine = [c for c in clips if c.animal == animal]
        length = min(len(c.truth) for c in mine)
        candidates, places = _candidates(config, recordings[animal], mine, length)
        segment = round(mine[0].frame_rate) if seconds else None
        per_clip = length // segment if segment else 1
        if per_clip == 0:
            raise NeuroreconError(f"{animal}: expected clips of a second at least, found {length} frames")
        sizes.append(len(candidates) * per_clip)
        for name in conditions:
            movies = [c.movies[name][:length] for c in mine]
            scores = similarity(movies, candidates, mine[0].mask, segment_frames=segment)
            true = (np.array(places)[:, None] * per_clip + np.arange(per_clip)).ravel()
            ranks[name][animal] = list(true_ranks(scores, true).reshape(len(mine), per_clip))
    ways = _ways(min(sizes))
    accuracy = {
        name: {
            animal: np.stack([n_way_accuracy(r, size, ways).mean(0) for r in found])
            for (animal, found), size in zip(animals.items(), sizes)
        }
        for name, animals in ranks.items()
    }
    return ways, accuracy


def _candidates(
    config: ml_collections.ConfigDict, recording: Recording, clips: Sequence[Matched], length: int
) -> tuple[list[np.ndarray], list[int]]:
    """Different movies of one length, cut as the clips are, and which of them is each clip's."""
    numbers: dict[bytes, int] = {}
    movies: list[np.ndarray] = []

    def add(movie: np.ndarray) -> int:
        key = np.ascontiguousarray(movie, np.float32).tobytes()
        if key not in numbers:
            numbers[key] = len(movies)
            movies.append(movie)
        return numbers[key]

    places = [add(c.truth[:length]) for c in clips]
    others = [i for i in recording.trial_ids() if i not in {c.trial for c in clips}]
    for trial_id in np.random.default_rng(SEED).permutation(others):
        if len(movies) >= config.match.candidates:
            break
        movie = recording.stimulus(str(trial_id))[config.skip_frames :]
        if len(movie) >= length:
            add(movie[:length])
    return movies, places


def _ways(most: int) -> list[int]:
    ways = [n for n in (2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if n < 0.8 * most]
    return [*ways, most]
