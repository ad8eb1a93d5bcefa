"""Is the spread of a reconstruction honest? Coverage of its intervals, and the factor that makes it so.

A tempered likelihood, encoders that are wrong, and a handful of samples leave a posterior's standard deviation right in
its pattern at best. One factor, fitted on validation clips and never on those reported, sets its size.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm

from neurorecon.errors import NeuroreconError


def interval_coverage(
    truth: np.ndarray,
    movie: np.ndarray,
    std: np.ndarray,
    mask: np.ndarray,
    *,
    levels: Sequence[float] = (0.5, 0.9),
    scale: float = 1.0,
) -> dict[float, float]:
    """Share of pixels x frames inside the mask whose true value lies in the central Gaussian interval around the movie.

    Args:
      truth, movie, std: (time, height, width), grey values; cut off the frames that are not scored.
      mask: (height, width) bool.
      levels: of the intervals, between 0 and 1.
      scale: times `std`, see `fit_spread_scale`.

    Returns:
      level -> coverage; equal to the level where the spread is honest.

    Raises:
      NeuroreconError: shapes that differ, values that are not finite, negative spread, an empty mask, or a level
        outside (0, 1).
    """
    _check_levels(levels)
    if not (np.isfinite(scale) and scale > 0):
        raise NeuroreconError(f"interval_coverage, scale: expected above 0, found {scale}")
    error, std = _inside(truth, movie, std, mask)
    return {level: float(np.mean(error <= _quantile(level) * scale * std)) for level in levels}


def fit_spread_scale(
    truths: Sequence[np.ndarray],
    movies: Sequence[np.ndarray],
    stds: Sequence[np.ndarray],
    mask: np.ndarray,
    *,
    level: float = 0.9,
) -> float:
    """The factor of the standard deviation at which intervals of `level` hold the truth that often.

    Give it validation clips: fitted on the clips that are reported, coverage would be right by construction. Errors of
    one clip go together, so a factor from few clips is known only roughly; take at least four.

    Args:
      truths, movies, stds: of each clip, (time, height, width), grey values.
      mask: (height, width) bool.
      level: of the interval to be right.

    Raises:
      NeuroreconError: no clips, or what `interval_coverage` raises; also a spread of 0 inside the mask.
    """
    _check_levels([level])
    if not truths or len({len(truths), len(movies), len(stds)}) > 1:
        raise NeuroreconError(
            f"fit_spread_scale: expected movies and stds for each of at least one clip, found {len(movies)} and "
            f"{len(stds)} for {len(truths)}"
        )
    ratios = []
    for truth, movie, std in zip(truths, movies, stds):
        error, spread = _inside(truth, movie, std, mask)
        if not spread.all():
            raise NeuroreconError("fit_spread_scale, stds: expected above 0 inside the mask; draw more samples")
        # Every clip counts the same, however long it is.
        ratios.append(np.quantile(error / spread, np.linspace(0, 1, 4001)))
    scale = float(np.quantile(np.concatenate(ratios), level) / _quantile(level))
    if scale <= 0:
        raise NeuroreconError("fit_spread_scale: the movies are the truths themselves; give the reconstructions")
    return scale


def _quantile(level: float) -> float:
    return float(norm.ppf(0.5 + level / 2))


def _check_levels(levels: Sequence[float]) -> None:
    for level in levels:
        if not 0 < level < 1:
            raise NeuroreconError(f"levels: expected between 0 and 1, found {level}")


def _inside(truth: np.ndarray, movie: np.ndarray, std: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Absolute error and spread of the pixels x frames inside the mask, one axis."""
    mask = np.asarray(mask)
    arrays = {"truth": np.asarray(truth), "movie": np.asarray(movie), "std": np.asarray(std)}
    shape = arrays["truth"].shape
    if mask.dtype != bool or len(shape) != 3 or shape[1:] != mask.shape or not mask.any() or not shape[0]:
        raise NeuroreconError(
            f"coverage: expected a truth (time, height, width) and a mask (height, width) of booleans that is not "
            f"empty, found {shape} and {mask.dtype} {mask.shape} with {int(mask.sum())} pixels"
        )
    inside = {}
    for name, array in arrays.items():
        if array.shape != shape:
            raise NeuroreconError(f"coverage, {name}: expected shape {shape}, found {array.shape}")
        inside[name] = array[:, mask].astype(np.float64).ravel()
        if not np.isfinite(inside[name]).all():
            raise NeuroreconError(f"coverage, {name}: expected finite values inside the mask")
    if (inside["std"] < 0).any():
        raise NeuroreconError("coverage, std: expected 0 or more, found negative values")
    return np.abs(inside["truth"] - inside["movie"]), inside["std"]
