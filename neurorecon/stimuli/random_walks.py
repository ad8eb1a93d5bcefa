"""Smooth random processes in time."""

import numpy as np
from scipy.signal import lfilter


def ornstein_uhlenbeck(
    rng: np.random.Generator, num_frames: int, channels: int, *, seconds: float, frame_rate: float
) -> np.ndarray:
    """Stationary Ornstein-Uhlenbeck process of zero mean and unit variance, (time, channels).

    Args:
      seconds: correlation time.
      frame_rate: Hz.
    """
    keep = np.exp(-1.0 / (seconds * frame_rate))
    noise = rng.standard_normal((num_frames, channels))
    noise[1:] *= np.sqrt(1.0 - keep**2)
    return lfilter([1.0], [1.0, -keep], noise, axis=0)
