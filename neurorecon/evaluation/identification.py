"""Identification: which of many clips, or which second of them, is a reconstruction of?

similarity -> true_ranks -> n_way_accuracy
"""

from collections.abc import Iterable, Sequence

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.movie_arrays import checked_mask, checked_movie


def similarity(
    movies: Sequence[np.ndarray],
    candidates: Iterable[np.ndarray],
    mask: np.ndarray | None,
    *,
    segment_frames: int | None = None,
) -> np.ndarray:
    """Pearson correlation of each reconstruction with each candidate over the pixels x frames inside a mask.

    Args:
      movies: reconstructions, (time, height, width) each, all of one shape.
      candidates: movies that may have been shown, of the same shape; gone through once, so that a generator may
        hold one at a time.
      mask: (height, width), true inside; None is the whole screen.
      segment_frames: cuts all into segments of so many frames, a shorter rest left out; None keeps them whole.

    Returns:
      (movie x segment, candidate x segment); a constant movie or segment has 0 with everything.

    Raises:
      NeuroreconError: no movies or candidates, shapes that differ, NaN, or a segment that doesn't fit.
    """
    if not len(movies):
        raise NeuroreconError("movies: expected at least one reconstruction, found none")
    shape = np.shape(movies[0])
    checked_movie("movies", movies[0])
    mask = checked_mask(mask, shape)
    length = shape[0] if segment_frames is None else segment_frames
    if not 1 <= length <= shape[0]:
        raise NeuroreconError(f"segment_frames: expected 1 to {shape[0]} frames, found {segment_frames}")
    rows = np.concatenate([_standardised("movies", m, shape, mask, length) for m in movies])
    columns = [rows @ _standardised("candidates", c, shape, mask, length).T for c in candidates]
    if not columns:
        raise NeuroreconError("candidates: expected at least one movie, found none")
    return np.concatenate(columns, axis=1)


def true_ranks(scores: np.ndarray, true: np.ndarray) -> np.ndarray:
    """How many candidates are more similar than the true one, (row,): 0 is identified. Equals count half.

    Args:
      scores: (row, candidate), from `similarity`.
      true: (row,) column of the true candidate.

    Raises:
      NeuroreconError: shapes that don't fit, or a column that there isn't.
    """
    scores, true = np.asarray(scores), np.asarray(true)
    if scores.ndim != 2 or true.shape != scores.shape[:1] or true.dtype.kind not in "iu":
        raise NeuroreconError(
            f"true: expected a column for each of the rows of scores {scores.shape}, found shape {true.shape}"
        )
    if true.size and not 0 <= true.min() <= true.max() < scores.shape[1]:
        raise NeuroreconError(f"true: expected columns 0 to {scores.shape[1] - 1}, found {true.min()} to {true.max()}")
    own = scores[np.arange(len(true)), true][:, None]
    return (scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2


def n_way_accuracy(ranks: np.ndarray, num_candidates: int, ways: Sequence[int]) -> np.ndarray:
    """Probability that the true one wins against n - 1 others drawn at random from the candidates, (row, way).

    With rank r among N candidates, the product over j < n - 1 of (N - 1 - r - j) / (N - 1 - j): no draws are needed.
    With n = N it is 1 for rank 0, else 0. Chance is 1 / n.

    Args:
      ranks: (row,), from `true_ranks`.
      num_candidates: N, the true one among them.
      ways: numbers n to choose from, 1 to N.

    Raises:
      NeuroreconError: a rank or a number of ways that N candidates can't have.
    """
    ranks = np.asarray(ranks, np.float64)
    if ranks.ndim != 1 or not ((ranks >= 0) & (ranks <= num_candidates - 1)).all():
        raise NeuroreconError(f"ranks: expected 0 to {num_candidates - 1} in one axis, found shape {ranks.shape}")
    for n in ways:
        if not 1 <= n <= num_candidates:
            raise NeuroreconError(f"ways: expected 1 to {num_candidates}, found {n}")
    found = np.ones((len(ranks), len(ways)))
    for column, n in enumerate(ways):
        j = np.arange(n - 1)
        others = num_candidates - 1 - j
        found[:, column] = (np.maximum(others - ranks[:, None], 0.0) / others).prod(axis=1)
    return found


def _standardised(name: str, movie: np.ndarray, shape: Sequence[int], mask: np.ndarray, length: int) -> np.ndarray:
    """(segment, frames x pixels) float32, of mean 0 and length 1; 0 where constant."""
    movie = checked_movie(name, movie)
    if movie.shape != tuple(shape):
        raise NeuroreconError(f"{name}: expected movies of one shape {tuple(shape)}, found {movie.shape}")
    count = len(movie) // length
    values = movie[: count * length, mask].reshape(count, -1) if mask.ndim == 2 else None
    if values is None:
        raise NeuroreconError(f"mask: expected one that stays, (height, width), found shape {mask.shape}")
    values = values - values.mean(axis=1, keepdims=True)
    size = np.linalg.norm(values, axis=1, keepdims=True)
    varies = size > 1e-6 * np.abs(movie).max() * np.sqrt(values.shape[1])
    return np.divide(values, size, out=np.zeros_like(values), where=varies).astype(np.float32)
