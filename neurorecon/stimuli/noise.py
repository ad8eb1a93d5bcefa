"""Gaussian noise movies with a length constant in space and one in time."""

import math

import numpy as np
from scipy.ndimage import gaussian_filter

from neurorecon.errors import NeuroreconError
from neurorecon.stimuli.sizes import check_seed, check_sizes


def gaussian_noise(
    seed: int,
    *,
    spatial_sigma: float,
    temporal_sigma: float,
    contrast: float = 0.4,
    num_frames: int = 300,
    height: int = 36,
    width: int = 64,
) -> np.ndarray:
    """White noise smoothed by a Gaussian, scaled to one standard deviation, clipped at black and white.

    Args:
      seed: non-negative.
      spatial_sigma: of the Gaussian, pixels; 0 for none.
      temporal_sigma: frames; 0 for none.
      contrast: standard deviation before clipping, as a share of 127.5.

    Returns:
      (time, height, width) float32, 0..255, around 127.5.

    Raises:
      NeuroreconError: a size that is not positive, a sigma or contrast below 0, or a negative seed.
    """
    check_sizes(num_frames=num_frames, height=height, width=width)
    check_seed(seed)
    for name, value in (
        ("spatial_sigma", spatial_sigma),
        ("temporal_sigma", temporal_sigma),
        ("contrast", contrast),
    ):
        if not (math.isfinite(value) and value >= 0):
            raise NeuroreconError(f"{name}: expected 0 or more, found {value}; 0 smooths nothing")
    sigma = (temporal_sigma, spatial_sigma, spatial_sigma)
    margin = [math.ceil(3 * s) for s in sigma]  # so that the edges are like the middle
    rng = np.random.default_rng([0x6E6F69, seed])
    shape = [n + 2 * m for n, m in zip((num_frames, height, width), margin)]
    noise = gaussian_filter(rng.standard_normal(shape, np.float32), sigma, mode="wrap", truncate=3.0)
    noise = noise / _kept(sigma)
    inner = noise[tuple(slice(m, m + n) for n, m in zip((num_frames, height, width), margin))]
    return np.clip(127.5 * (1 + contrast * inner), 0, 255).astype(np.float32)


def _kept(sigma: tuple[float, ...]) -> float:
    """Standard deviation that smoothing leaves of white noise: the norm of the sampled Gaussian."""
    norm = 1.0
    for s in sigma:
        if s > 0:
            reach = int(3.0 * s + 0.5)
            kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / s) ** 2)
            norm *= float(np.linalg.norm(kernel / kernel.sum()))
    return norm
