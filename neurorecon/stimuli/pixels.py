"""Single pixels that flash, for mapping receptive fields."""

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.stimuli.sizes import check_sizes


def single_pixel(
    row: int,
    column: int,
    *,
    value: float = 255.0,
    background: float = 127.5,
    before: int = 15,
    shown: int = 15,
    after: int = 15,
    height: int = 36,
    width: int = 64,
) -> np.ndarray:
    """One pixel at `value` for `shown` frames on an even background.

    Args:
      row, column: the pixel.
      value, background: grey values 0..255.
      before, shown, after: frames without, with and without the pixel.

    Returns:
      (before + shown + after, height, width) float32.

    Raises:
      NeuroreconError: a pixel off the screen, a grey value outside 0..255, or a negative number of frames.
    """
    check_sizes(height=height, width=width, shown=shown)
    if before < 0 or after < 0:
        raise NeuroreconError(f"before, after: expected 0 frames or more, found {before}, {after}; correct them")
    if not (0 <= row < height and 0 <= column < width):
        raise NeuroreconError(
            f"row, column: expected a pixel within {height} x {width}, found {row}, {column}; count from 0"
        )
    if not (0 <= value <= 255 and 0 <= background <= 255):
        raise NeuroreconError(f"value, background: expected 0..255, found {value}, {background}; correct them")
    movie = np.full((before + shown + after, height, width), background, np.float32)
    movie[before : before + shown, row, column] = value
    return movie
