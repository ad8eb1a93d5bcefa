"""Movies as colour panels (time, height, width, 3) uint8, which films and film strips put side by side."""

import numpy as np
from matplotlib import colormaps

from neurorecon.errors import NeuroreconError

DIFFERENCE_LIMIT = 128.0
DIFFERENCE_COLOURS = "RdBu_r"
UNCERTAINTY_COLOURS = "cividis"
DEVIATION_LIMIT = 4.0  # standard deviations
DEVIATION_COLOURS = "PuOr_r"
NEUTRAL = 127  # grey value where there is no deviation to show


def check_movie(movie: np.ndarray, name: str) -> np.ndarray:
    """Returns `movie` as an array if it is (time, height, width), not empty, numeric and finite.

    Raises:
      NeuroreconError: it is not; `name` says which panel or file.
    """
    movie = np.asarray(movie)
    if movie.ndim != 3 or 0 in movie.shape or movie.dtype.kind not in "fiub":
        raise NeuroreconError(
            f"{name}: expected a movie (time, height, width) of numbers, found shape {movie.shape} of "
            f"{movie.dtype}; put time first"
        )
    if movie.dtype.kind == "f" and not np.isfinite(movie).all():
        frame = int(np.argmin(np.isfinite(movie).all(axis=(1, 2))))
        raise NeuroreconError(
            f"{name}: expected finite pixels, found NaN or infinity first in frame {frame}; "
            "cut or reconstruct the movie again"
        )
    return movie


def check_mask(mask: np.ndarray, shape: tuple[int, int], name: str) -> np.ndarray:
    """Returns `mask` (height, width) as bool.

    Raises:
      NeuroreconError: its shape is not `shape`.
    """
    mask = np.asarray(mask)
    if mask.shape != tuple(shape):
        raise NeuroreconError(
            f"{name}: expected a mask of the movie's frame {tuple(shape)}, found {mask.shape}; use the same screen"
        )
    return mask.astype(bool)


def grey_panel(movie: np.ndarray, name: str = "movie") -> np.ndarray:
    """Grey values 0..255 (time, height, width) as colours; beyond 0..255 shows black or white."""
    grey = np.clip(np.rint(check_movie(movie, name)), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def difference_panel(truth: np.ndarray, movie: np.ndarray, limit: float = DIFFERENCE_LIMIT) -> np.ndarray:
    """Reconstruction minus truth: blue too dark, white equal, red too bright, full at `limit` grey values."""
    truth, movie = check_movie(truth, "true movie"), check_movie(movie, "reconstructed movie")
    difference = movie.astype(np.float32) - truth.astype(np.float32)
    return _coloured(difference / (2.0 * limit) + 0.5, DIFFERENCE_COLOURS)


def uncertainty_panel(movie_std: np.ndarray, limit: float) -> np.ndarray:
    """Standard deviation in grey values, dark blue at 0 and yellow at `limit`."""
    return _coloured(check_movie(movie_std, "movie_std").astype(np.float32) / limit, UNCERTAINTY_COLOURS)


def uncertainty_limit(movie_std: np.ndarray) -> float:
    """A round upper end for `uncertainty_panel`: the 99th percentile, up to the next multiple of 5."""
    return max(5.0, 5.0 * float(np.ceil(np.percentile(check_movie(movie_std, "movie_std"), 99) / 5.0)))


def check_deviation(deviation: np.ndarray, name: str) -> np.ndarray:
    """Returns `deviation` (time, height, width) if it is finite, or NaN where it is not defined.

    Raises:
      NeuroreconError: it is not; `name` says which.
    """
    deviation = np.asarray(deviation)
    if deviation.dtype.kind == "f" and not np.isinf(deviation).any():
        check_movie(np.where(np.isnan(deviation), 0, deviation), name)  # only to look at its shape
        return deviation
    return check_movie(deviation, name)


def deviation_panel(deviation: np.ndarray, limit: float = DEVIATION_LIMIT) -> np.ndarray:
    """z-scores: purple below, white as expected, orange above, full at `limit`; mid grey where NaN."""
    known = np.isfinite(deviation)
    colours = _coloured(np.where(known, deviation, 0.0) / (2.0 * limit) + 0.5, DEVIATION_COLOURS)
    colours[~known] = NEUTRAL
    return colours


def enlarge(frame: np.ndarray, scale: int) -> np.ndarray:
    """(height, width, ...) -> (height * scale, width * scale, ...): every pixel a block, nothing smoothed."""
    return frame.repeat(scale, axis=0).repeat(scale, axis=1)


def mask_edge(mask: np.ndarray) -> np.ndarray:
    """Pixels of `mask` (height, width) that touch its outside; the border of the screen doesn't count."""
    padded = np.pad(mask, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _coloured(unit: np.ndarray, colours: str) -> np.ndarray:
    table = (colormaps[colours](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)
    return table[np.clip(np.rint(unit * 255), 0, 255).astype(np.uint8)]
