"""How much of the visual field a part of a flat screen covers."""

from typing import NamedTuple

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.stimuli.degrees import visual_angle


class ScreenArea(NamedTuple):
    """A part of the screen, seen from the eye.

    Attributes:
      share: of the screen's pixels.
      square_degrees: solid angle.
      width, height: degrees from its leftmost to its rightmost edge and from top to bottom, along the screen's middle
        lines.
    """

    share: float
    square_degrees: float
    width: float
    height: float


def screen_area(mask: np.ndarray, *, per_degree: float) -> ScreenArea:
    """The size of a mask in degrees of visual angle.

    A pixel at (x, y) on a screen at distance d is seen at a solid angle of a^2 d / (x^2 + y^2 + d^2)^(3/2), with a its
    side: pixels at the screen's border are smaller to the eye than those in its middle.

    Args:
      mask: (height, width) bool, of the whole screen.
      per_degree: pixels per degree at the screen's centre, from `degrees.pixels_per_degree`.

    Raises:
      NeuroreconError: no mask of booleans.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != bool or mask.size == 0:
        raise NeuroreconError(f"mask: expected (height, width) booleans, found {mask.dtype} {mask.shape}")
    if not mask.any():
        return ScreenArea(0.0, 0.0, 0.0, 0.0)
    distance = np.degrees(1.0) * per_degree  # in pixels
    y, x = (np.arange(n) - (n - 1) / 2 for n in mask.shape)
    solid = distance / (x[None] ** 2 + y[:, None] ** 2 + distance**2) ** 1.5
    extents = []
    for axis in (0, 1):
        inside = np.flatnonzero(mask.any(axis=axis))
        edges = np.array([inside[0], inside[-1] + 1]) - mask.shape[1 - axis] / 2
        extents.append(float(np.diff(visual_angle(edges, per_degree))[0]))
    return ScreenArea(float(mask.mean()), float(solid[mask].sum() * np.degrees(1.0) ** 2), *extents)
