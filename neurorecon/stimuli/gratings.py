"""Sinusoidal gratings, drifting or still."""

import math

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.stimuli.sizes import check_sizes


def grating(
    *,
    spatial_frequency: float,
    temporal_frequency: float = 0.0,
    direction: float = 0.0,
    phase: float = 0.0,
    contrast: float = 1.0,
    num_frames: int = 300,
    height: int = 36,
    width: int = 64,
    frame_rate: float = 30.0,
    degrees_per_pixel: float = 3.4,
) -> np.ndarray:
    """A full-screen grating around grey 127.5.

    Args:
      spatial_frequency: cycles per degree.
      temporal_frequency: Hz; 0 stands still.
      direction: radians, where it drifts to; 0 to the right (higher columns), pi / 2 down (higher rows).
      phase: radians, at the middle of the screen in the first frame.
      contrast: Michelson, 0..1.
      degrees_per_pixel: 3.4 at 36 x 64 in the Sensorium recordings.

    Returns:
      (time, height, width) float32, 0..255.

    Raises:
      NeuroreconError: a size or rate that is not positive, a frequency below 0, or a contrast outside 0..1.
    """
    check_sizes(
        num_frames=num_frames,
        height=height,
        width=width,
        frame_rate=frame_rate,
        degrees_per_pixel=degrees_per_pixel,
    )
    for name, value in (("spatial_frequency", spatial_frequency), ("temporal_frequency", temporal_frequency)):
        if not (math.isfinite(value) and value >= 0):
            raise NeuroreconError(f"{name}: expected 0 or more, found {value}; turn `direction` to drift backwards")
    if not 0 <= contrast <= 1:
        raise NeuroreconError(f"contrast: expected 0..1, found {contrast}; 1 goes from black to white")
    y = (np.arange(height)[:, None] + 0.5 - height / 2) * degrees_per_pixel
    x = (np.arange(width)[None] + 0.5 - width / 2) * degrees_per_pixel
    time = np.arange(num_frames)[:, None, None] / frame_rate
    place = spatial_frequency * (math.cos(direction) * x + math.sin(direction) * y)
    wave = np.cos(2 * np.pi * (place - temporal_frequency * time) + phase)
    return (127.5 * (1 + contrast * wave)).astype(np.float32)
