"""Scoring where the screen can be decoded at all, and at a slower pace than it flickers.

The protocol for white noise, where most pixels and single frames carry next to nothing: choose the share of
the pixels that decode best on validation movies, then correlate other movies there, as they are or smoothed
in time. The same pixels must be used for every method that is compared.
"""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter1d

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.movie_arrays import checked_movie, checked_pair
from neurorecon.evaluation.movie_metrics import movie_correlation


def pixel_correlations(truths: Sequence[np.ndarray], decoded: Sequence[np.ndarray]) -> np.ndarray:
    """Pearson correlation over all frames of all movies at each pixel, (height, width); NaN where constant.

    Args:
      truths, decoded: movies (time, height, width), one of each for a clip.

    Raises:
      NeuroreconError: no movies, shapes that don't match, NaN or infinity.
    """
    if len(truths) == 0 or len(truths) != len(decoded):
        raise NeuroreconError(
            f"decoded: expected one for each of the {len(truths)} (at least one) truths, found {len(decoded)}"
        )
    pairs = [checked_pair(t, d) for t, d in zip(truths, decoded, strict=True)]
    if len({t.shape[1:] for t, _ in pairs}) != 1:
        raise NeuroreconError("truths: expected movies of one frame size, found several")
    x, y = (np.concatenate(movies) for movies in zip(*pairs, strict=True))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    scale = np.sqrt((x * x).sum(axis=0) * (y * y).sum(axis=0))
    return np.where(scale > 0, (x * y).sum(axis=0) / np.where(scale > 0, scale, 1), np.nan)


def decodable_mask(truths: Sequence[np.ndarray], decoded: Sequence[np.ndarray], fraction: float = 0.25) -> np.ndarray:
    """The `fraction` of the pixels that decode best on validation movies, (height, width) bool.

    By `pixel_correlations`; round(fraction * pixels) of them, at least one; the first in reading order of
    equal ones.

    Raises:
      NeuroreconError: fraction not in (0, 1], or as `pixel_correlations`.
    """
    if not 0 < fraction <= 1:
        raise NeuroreconError(f"fraction: expected more than 0 and at most 1, found {fraction}")
    values = pixel_correlations(truths, decoded)
    values = np.where(np.isnan(values), -np.inf, values)
    count = max(1, round(fraction * values.size))
    mask = np.zeros(values.size, bool)
    mask[np.argsort(-values, axis=None, kind="stable")[:count]] = True
    return mask.reshape(values.shape)


def smoothed_movie(movie: np.ndarray, sigma: float) -> np.ndarray:
    """The movie with a Gaussian over time, sigma in frames, cut at 4 sigma, mirrored at the ends; float64."""
    return gaussian_filter1d(checked_movie("movie", movie), sigma, axis=0)


def smoothed_correlation(truth: np.ndarray, decoded: np.ndarray, mask: np.ndarray | None, sigma: float = 2.0) -> float:
    """Movie correlation in the mask after the same smoothing in time of both movies (`smoothed_movie`)."""
    truth, decoded = checked_pair(truth, decoded)
    return movie_correlation(smoothed_movie(truth, sigma), smoothed_movie(decoded, sigma), mask)
