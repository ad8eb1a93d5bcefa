"""Degrees of visual angle on a flat screen, whose centre is nearest to the eye and square to the line of sight."""

import numpy as np

from neurorecon.stimuli.sizes import check_sizes


def pixels_per_degree(num_pixels: int, *, width_cm: float, distance_cm: float) -> float:
    """Pixels in a degree of visual angle at the screen's centre.

    The slope of the exact angle atan(x / distance) there, which is what the small-angle formula x / distance gives
    everywhere. Seen from the eye, pixels shrink away from the centre as 1 / (1 + (x / distance)^2); lengths that reach
    far want `visual_angle`. The Sensorium screen (64 pixels on 56.5 cm, 15 cm away) has 0.297, or 3.37 degrees a pixel.

    Args:
      num_pixels: across the screen's width; pixels are square.
      width_cm: of the screen.
      distance_cm: from the eye to the screen's centre.

    Raises:
      NeuroreconError: a size that is not a positive number.
    """
    check_sizes(num_pixels=num_pixels, width_cm=width_cm, distance_cm=distance_cm)
    return float(np.radians(1.0) * distance_cm * num_pixels / width_cm)


def visual_angle(pixels: np.ndarray | float, per_degree: float) -> np.ndarray:
    """Exact angle, in degrees, of places on a line through the screen's centre.

    Args:
      pixels: of any shape, from the screen's centre, either sign.
      per_degree: from `pixels_per_degree`.

    Returns:
      The shape of `pixels`: 0 at the centre, below `pixels / per_degree` away from it.

    Raises:
      NeuroreconError: `per_degree` is not a positive number.
    """
    check_sizes(per_degree=per_degree)
    return np.degrees(np.arctan(np.radians(np.asarray(pixels, np.float64) / per_degree)))
