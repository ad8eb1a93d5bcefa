"""What every movie score does first: check two movies and a mask, and hand them on in float64."""

from collections.abc import Sequence

import numpy as np

from neurorecon.errors import NeuroreconError

# Grey values come out of float32; a movie that varies by less than this share of its size does not vary.
CONSTANT = 1e-6


def checked_movie(name: str, movie: np.ndarray) -> np.ndarray:
    """The movie as float64 (time, height, width).

    Raises:
      NeuroreconError: not three axes, empty, not numbers, or NaN or infinity in it.
    """
    movie = np.asarray(movie)
    if movie.ndim != 3 or 0 in movie.shape:
        raise NeuroreconError(f"{name}: expected a movie (time, height, width), found shape {movie.shape}")
    if movie.dtype.kind not in "fiub":
        raise NeuroreconError(f"{name}: expected grey values, found an array of {movie.dtype}")
    movie = movie.astype(np.float64)
    if not np.isfinite(movie).all():
        bad = int((~np.isfinite(movie)).sum())
        raise NeuroreconError(f"{name}: expected finite grey values, found {bad} NaN or infinite; cut the padding")
    return movie


def checked_pair(truth: np.ndarray, movie: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both movies as float64, of one shape.

    Raises:
      NeuroreconError: as `checked_movie`, or the shapes differ.
    """
    truth, movie = checked_movie("truth", truth), checked_movie("movie", movie)
    if truth.shape != movie.shape:
        raise NeuroreconError(
            f"movie: expected the shape of the truth {truth.shape}, found {movie.shape}; "
            "cut both to the same frames and pixels"
        )
    return truth, movie


def checked_mask(mask: np.ndarray | None, shape: Sequence[int]) -> np.ndarray:
    """A boolean mask (height, width) or (time, height, width) for a movie of `shape`.

    None is the whole screen. A mask of numbers is read as a transparency (alpha) mask: a pixel counts where
    it is at least 1, the published evaluation mask. Threshold it yourself for any other.

    Raises:
      NeuroreconError: wrong shape, NaN, or no pixel left.
    """
    time, height, width = shape
    if mask is None:
        return np.ones((height, width), bool)
    mask = np.asarray(mask)
    if mask.shape == (1, height, width):
        mask = mask[0]
    if mask.shape not in ((height, width), (time, height, width)):
        raise NeuroreconError(f"mask: expected shape {(height, width)} or {(time, height, width)}, found {mask.shape}")
    if mask.dtype != bool:
        if mask.dtype.kind not in "fiu" or not np.isfinite(mask).all():
            raise NeuroreconError("mask: expected booleans or finite numbers, found NaN or other values")
        mask = mask >= 1
    if not mask.any():
        raise NeuroreconError("mask: expected at least one pixel inside (true, or alpha >= 1), found none")
    return mask


def inside(movie: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """All masked pixels of all frames, one axis; frame after frame."""
    return movie[mask] if mask.ndim == 3 else movie[:, mask].ravel()


def is_constant(values: np.ndarray) -> bool:
    """Whether values differ by no more than the rounding of float32."""
    return bool(np.ptp(values) <= CONSTANT * np.abs(values).max())


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation of two arrays of one size; NaN where either is constant (`is_constant`)."""
    if is_constant(x) or is_constant(y):
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float(np.vdot(x, y) / np.sqrt(np.vdot(x, x) * np.vdot(y, y)))
