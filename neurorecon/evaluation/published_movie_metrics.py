"""Movie scores as the published code of Bauer, Margrie & Clopath (2026) computes them, quirks included.

They differ from `movie_metrics` in these: a pixel counts where the mask is EXACTLY 1 (an alpha mask above 1
does not); for a moving mask (time, height, width), frame correlations and motion energy use its first frame
only; "SSIM" is one global value without windows and with k1 = k2 = 1, which is close to 1 for almost any
two movies; constants give NaN. All in float64.
"""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.movie_arrays import checked_mask, checked_movie, checked_pair, inside


def published_mask(mask: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The pixels that the published code scores: those where the mask is exactly 1.

    Raises:
      NeuroreconError: as `movie_arrays.checked_mask`.
    """
    mask = np.asarray(mask)
    return checked_mask(mask if mask.dtype == bool else mask == 1, shape)


def _plain_pearson(x: np.ndarray, y: np.ndarray) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def published_movie_correlation(truth: np.ndarray, movie: np.ndarray, mask: np.ndarray) -> float:
    """ "Video correlation": Pearson over all masked pixels and frames; NaN for a constant movie."""
    truth, movie = checked_pair(truth, movie)
    mask = published_mask(mask, truth.shape)
    return _plain_pearson(inside(truth, mask), inside(movie, mask))


def published_frame_correlation(truth: np.ndarray, movie: np.ndarray, mask: np.ndarray) -> float:
    """Mean Pearson per frame, constant frames left out; a moving mask counts with its first frame."""
    truth, movie = checked_pair(truth, movie)
    mask = _first_frame(published_mask(mask, truth.shape))
    values = np.array([_plain_pearson(t[mask], r[mask]) for t, r in zip(truth, movie, strict=True)])
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def published_rmse(truth: np.ndarray, movie: np.ndarray, mask: np.ndarray) -> float:
    """Root of the mean squared difference over masked pixels and frames."""
    truth, movie = checked_pair(truth, movie)
    mask = published_mask(mask, truth.shape)
    return float(np.sqrt(np.mean((inside(truth, mask) - inside(movie, mask)) ** 2)))


def published_psnr(truth: np.ndarray, movie: np.ndarray, mask: np.ndarray, *, max_value: float = 255.0) -> float:
    """10 log10(max_value^2 / MSE) over masked pixels and frames; infinite without error."""
    error = published_rmse(truth, movie, mask)
    return float(20 * np.log10(max_value / error)) if error > 0 else float("inf")


def published_ssim(truth: np.ndarray, movie: np.ndarray, mask: np.ndarray, *, max_value: float = 255.0) -> float:
    """The published "SSIM": one window over all masked pixels and frames, k1 = k2 = 1.

    luminance (2ab + C1) / (a^2 + b^2 + C1), contrast (2 s_a s_b + C2) / (s_a^2 + s_b^2 + C2), structure
    (cov + C3) / (s_a s_b + C3), multiplied; C1 = C2 = max_value^2, C3 = C2 / 2; standard deviations with
    ddof 0, the covariance with ddof 1. Not comparable with the standard index (`movie_metrics.ssim`).
    """
    truth, movie = checked_pair(truth, movie)
    mask = published_mask(mask, truth.shape)
    x, y = inside(truth, mask), inside(movie, mask)
    if x.size < 2:
        raise NeuroreconError("mask: expected at least two values inside for the published SSIM, found one")
    c1 = c2 = max_value**2
    c3 = c2 / 2
    covariance = np.vdot(x - x.mean(), y - y.mean()) / (x.size - 1)
    luminance = (2 * x.mean() * y.mean() + c1) / (x.mean() ** 2 + y.mean() ** 2 + c1)
    contrast = (2 * x.std() * y.std() + c2) / (x.var() + y.var() + c2)
    structure = (covariance + c3) / (x.std() * y.std() + c3)
    return float(luminance * contrast * structure)


def published_motion_energy(movie: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean absolute change of the masked pixels from frame to frame, (time - 1,)."""
    movie = checked_movie("movie", movie)
    mask = _first_frame(published_mask(mask, movie.shape))
    return np.abs(np.diff(movie, axis=0))[:, mask].mean(axis=1)


def published_luminance_contrast_match(
    truth: np.ndarray, movie: np.ndarray, alpha: np.ndarray, *, threshold: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """The reconstruction at the truth's mean and contrast, and the truth, both grey (127.5) outside the mask.

    Args:
      truth, movie: (time, height, width).
      alpha: (height, width) or (1, height, width) transparency mask; inside where alpha >= threshold. The
        published code takes only the second form.

    Returns:
      (movie, truth), float64; the movie clipped to 0..255.
    """
    truth, movie = checked_pair(truth, movie)
    mask = checked_mask(np.asarray(alpha) >= threshold, truth.shape)
    x, y = inside(truth, mask), inside(movie, mask)
    matched = (movie - y.mean()) / y.std() * x.std() + x.mean()
    return np.where(mask, np.clip(matched, 0, 255), 127.5), np.where(mask, truth, 127.5)


def average_movies(movies: Sequence[np.ndarray], *, smoothing: float = 0.0) -> np.ndarray:
    """Mean of several reconstructions of one clip, then a Gaussian over time, height and width.

    Args:
      movies: each (time, height, width); NaN (a frame that a model lacks) is left out of the mean.
      smoothing: sigma in frames and pixels, 0 for none; the published value is 0.5. Edges are repeated, the
        window is cut at 4 sigma.

    Returns:
      (time, height, width) float64.

    Raises:
      NeuroreconError: no movies, shapes differ, or a pixel that is NaN in all of them.
    """
    if len(movies) == 0 or len({np.shape(m) for m in movies}) != 1 or np.ndim(movies[0]) != 3:
        shapes = [np.shape(m) for m in movies]
        raise NeuroreconError(f"movies: expected (time, height, width) of one shape, found {shapes}")
    stack = np.asarray(movies, np.float64)
    valid = ~np.isnan(stack)
    if not valid.any(axis=0).all():
        raise NeuroreconError("movies: expected every pixel in at least one movie, found pixels NaN in all")
    mean = np.where(valid, stack, 0.0).sum(axis=0) / valid.sum(axis=0)
    return gaussian_filter(mean, smoothing) if smoothing > 0 else mean


def _first_frame(mask: np.ndarray) -> np.ndarray:
    mask = mask if mask.ndim == 2 else mask[0]
    if not mask.any():
        raise NeuroreconError("mask: expected pixels inside in its first frame, found none")
    return mask
