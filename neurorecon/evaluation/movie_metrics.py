"""How close a reconstructed movie is to the movie that the animal saw.

Movies are (time, height, width), grey values 0..255; masks (height, width) or (time, height, width), true
inside (`movie_arrays.checked_mask`). Everything is computed in float64. The scores exactly as the published
code computes them, quirks included, are in `published_movie_metrics`.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.movie_arrays import checked_mask, checked_movie, checked_pair, inside, pearson
from neurorecon.evaluation.published_movie_metrics import published_ssim


def movie_metrics(truth: np.ndarray, movie: np.ndarray, mask: np.ndarray | None) -> dict[str, float]:
    """All scores of one clip. Frames to be left out (the first 30, say) are cut off by the caller.

    Args:
      truth: (time, height, width), what the animal saw.
      movie: (time, height, width), the reconstruction.
      mask: (height, width) or (time, height, width), true inside; a transparency mask counts where it is at
        least 1; None is the whole screen.

    Returns:
      `movie_correlation`, `frame_correlation`, `rmse`, `psnr`, `ssim` (standard, Gaussian window) and
      `published_ssim` (one window, k1 = k2 = 1). A constant reconstruction (a grey screen) has no
      correlation with anything; because it says nothing of the truth, both correlations are 0 for it here,
      and NaN in `movie_correlation` itself. A constant truth leaves them NaN: there is nothing to correlate
      with. `psnr` of a perfect reconstruction is infinite.

    Raises:
      NeuroreconError: shapes differ, NaN or infinity in a movie, or an empty mask.
    """
    truth, movie = checked_pair(truth, movie)
    mask = checked_mask(mask, truth.shape)
    correlation = movie_correlation(truth, movie, mask)
    frames = frame_correlation(truth, movie, mask)
    # A reconstruction without contrast, not a truth without it: the truth correlates with itself.
    if np.isnan(correlation) and np.isfinite(movie_correlation(truth, truth, mask)):
        correlation = 0.0
    if np.isnan(frames) and np.isfinite(frame_correlation(truth, truth, mask)):
        frames = 0.0
    return {
        "movie_correlation": correlation,
        "frame_correlation": frames,
        "rmse": rmse(truth, movie, mask),
        "psnr": psnr(truth, movie, mask),
        "ssim": ssim(truth, movie, mask),
        "published_ssim": published_ssim(truth, movie, mask),
    }


def movie_correlation(truth: np.ndarray, movie: np.ndarray, mask: np.ndarray | None) -> float:
    """Pearson correlation over all masked pixels and frames together; NaN where either is constant."""
    truth, movie = checked_pair(truth, movie)
    mask = checked_mask(mask, truth.shape)
    return pearson(inside(truth, mask), inside(movie, mask))


def frame_correlations(truth: np.ndarray, movie: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Pearson correlation of each frame, (time,); NaN where it is constant in the mask."""
    truth, movie = checked_pair(truth, movie)
    mask = np.broadcast_to(checked_mask(mask, truth.shape), truth.shape)
    return np.array([pearson(t[m], r[m]) if m.any() else np.nan for t, r, m in zip(truth, movie, mask, strict=True)])


def frame_correlation(truth: np.ndarray, movie: np.ndarray, mask: np.ndarray | None) -> float:
    """Mean of `frame_correlations` over the frames that have one; NaN where none has."""
    values = frame_correlations(truth, movie, mask)
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else float("nan")


def rmse(truth: np.ndarray, movie: np.ndarray, mask: np.ndarray | None) -> float:
    """Root of the mean squared difference in the mask, in grey values."""
    truth, movie = checked_pair(truth, movie)
    mask = checked_mask(mask, truth.shape)
    return float(np.sqrt(np.mean((inside(truth, mask) - inside(movie, mask)) ** 2)))


def psnr(truth: np.ndarray, movie: np.ndarray, mask: np.ndarray | None, *, max_value: float = 255.0) -> float:
    """Peak signal-to-noise ratio in the mask, 20 log10(max_value / RMSE), in dB; infinite without error."""
    error = rmse(truth, movie, mask)
    return float(20 * np.log10(max_value / error)) if error > 0 else float("inf")


def ssim(truth: np.ndarray, movie: np.ndarray, mask: np.ndarray | None, *, max_value: float = 255.0) -> float:
    """Mean of `ssim_map` over the masked pixels and frames. Windows at the mask's border look outside it."""
    truth, movie = checked_pair(truth, movie)
    mask = checked_mask(mask, truth.shape)
    return float(inside(ssim_map(truth, movie, max_value=max_value), mask).mean())


def ssim_map(truth: np.ndarray, movie: np.ndarray, *, max_value: float = 255.0) -> np.ndarray:
    """Structural similarity of every pixel's surrounding in its own frame, (time, height, width).

    Wang et al. 2004: Gaussian window of sigma 1.5 cut at 11 x 11 pixels, k1 = 0.01, k2 = 0.03, moments
    without Bessel's correction, frames mirrored at their edges. Equals scikit-image's full map with the
    same settings; filtering all frames at once also takes frames smaller than the window.
    """
    truth, movie = checked_pair(truth, movie)

    def local(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, (0, 1.5, 1.5), truncate=3.5)

    mean_t, mean_m = local(truth), local(movie)
    var_t = local(truth * truth) - mean_t**2
    var_m = local(movie * movie) - mean_m**2
    covariance = local(truth * movie) - mean_t * mean_m
    c1, c2 = (0.01 * max_value) ** 2, (0.03 * max_value) ** 2
    return ((2 * mean_t * mean_m + c1) * (2 * covariance + c2)) / ((mean_t**2 + mean_m**2 + c1) * (var_t + var_m + c2))


def motion_energy(movie: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Mean absolute difference of consecutive frames over the masked pixels, (time - 1,).

    With a mask that moves, a pixel counts in a step when it is inside in both frames; a step without one is
    NaN.

    Raises:
      NeuroreconError: fewer than two frames, or as `movie_metrics`.
    """
    movie = checked_movie("movie", movie)
    mask = checked_mask(mask, movie.shape)
    if len(movie) < 2:
        raise NeuroreconError("movie: expected at least two frames for its motion energy, found one")
    change = np.abs(np.diff(movie, axis=0))
    if mask.ndim == 2:
        return change[:, mask].mean(axis=1)
    both = mask[1:] & mask[:-1]
    return np.array([c[m].mean() if m.any() else np.nan for c, m in zip(change, both, strict=True)])


def luminance_contrast_match(truth: np.ndarray, movie: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """The reconstruction at the truth's mean and contrast in the mask, clipped to 0..255; grey outside.

    For looking at, not for scoring: it uses the truth. Mean and standard deviation are over all masked
    pixels and frames.

    Raises:
      NeuroreconError: a constant reconstruction, whose contrast can't be scaled; or as `movie_metrics`.
    """
    truth, movie = checked_pair(truth, movie)
    mask = checked_mask(mask, truth.shape)
    target, values = inside(truth, mask), inside(movie, mask)
    if np.ptp(values) == 0:
        raise NeuroreconError("movie: expected contrast inside the mask, found a constant reconstruction")
    matched = (movie - values.mean()) / values.std() * target.std() + target.mean()
    return np.where(mask, np.clip(matched, 0, 255), 127.5)
