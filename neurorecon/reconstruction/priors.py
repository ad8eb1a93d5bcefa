"""Movie priors: what movies look like before a single spike was seen."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft

from neurorecon.errors import NeuroreconError

MoviePrior = Callable[[jax.Array], jax.Array]


def natural_power(
    shape: tuple[int, int, int],
    *,
    std: float = 55.0,
    spatial_exponent: float = 2.2,
    temporal_exponent: float = 1.6,
    corner_cycles: tuple[float, float] = (0.6, 0.25),
    frame_rate: float = 30.0,
) -> np.ndarray:
    """(time, height, width) variance of each cosine coefficient under the 1/f spectrum of natural movies.

    Power falls with spatial frequency as 1 / (1 + (f / f0)^2)^(a / 2) and with temporal frequency likewise (Dong &
    Atick 1995: near 1/f^2 in space, 1/f to 1/f^2 in time), scaled to the given standard deviation of a pixel.

    Args:
      shape: (time, height, width).
      std: standard deviation of a pixel, grey values.
      spatial_exponent, temporal_exponent: slopes of the power.
      corner_cycles: where the fall begins: cycles per frame height, and Hz.
    """
    time, height, width = shape
    f_t = np.arange(time) * frame_rate / (2 * time)
    f_y = np.arange(height) / 2
    f_x = np.arange(width) * height / (2 * width)
    radius = np.sqrt(f_y[:, None] ** 2 + f_x[None] ** 2)
    space = (1 + (radius / corner_cycles[0]) ** 2) ** (-spatial_exponent / 2)
    slow = (1 + (f_t / corner_cycles[1]) ** 2) ** (-temporal_exponent / 2)
    power = slow[:, None, None] * space[None]
    return power * (std**2 * time * height * width / power.sum())


def measured_power(movies: Iterable[np.ndarray], shape: tuple[int, int, int], *, bins: int = 24) -> np.ndarray:
    """(time, height, width) variance of each cosine coefficient, measured on training movies.

    Each movie is cut into pieces of `shape[0]` frames. The mean power is smoothed over bins of equal spatial and
    temporal frequency on logarithmic axes, since single coefficients of a few dozen movies are noise. The mean over
    movies of the grey level is part of the lowest coefficient's variance.

    Args:
      movies: each (time, height, width), at least `shape[0]` frames, grey values 0..255.
      shape: (time, height, width) of the movies to reconstruct.
      bins: per axis.

    Raises:
      NeuroreconError: no movie is as long as `shape[0]`, or one has another frame size or NaN.
    """
    total, count = np.zeros(shape), 0
    for movie in movies:
        if movie.shape[1:] != tuple(shape[1:]):
            raise NeuroreconError(f"movies: expected frames of {tuple(shape[1:])}, found {movie.shape[1:]}")
        if not np.isfinite(movie).all():
            raise NeuroreconError("movies: expected finite grey values, found NaN or infinity")
        for start in range(0, movie.shape[0] - shape[0] + 1, shape[0]):
            piece = np.asarray(movie[start : start + shape[0]], np.float64) - 127.5
            total += scipy.fft.dctn(piece, norm="ortho") ** 2
            count += 1
    if not count:
        raise NeuroreconError(f"movies: expected at least one of {shape[0]} frames or more, found none")
    power = total / count
    index = frequency_bands(shape, bins).reshape(-1)
    sums = np.bincount(index, power.reshape(-1))
    sizes = np.maximum(np.bincount(index), 1)
    smooth = (sums / sizes)[index].reshape(shape)
    return np.maximum(smooth, 1e-6 * smooth.max())


def frequency_bands(shape: tuple[int, ...], bins: int, *, num_frames: int | None = None) -> np.ndarray:
    """(time, height, width) int: the band of each cosine coefficient, temporal band * (bins + 1) + spatial band.

    Band 0 of each axis is frequency zero; the other `bins` are evenly wide on a logarithmic axis.

    Args:
      shape: (time, height, width).
      bins: per axis.
      num_frames: of the movies whose lowest frequency begins the temporal bands; left out: these.
    """
    time, height, width = shape
    radius = np.sqrt((np.arange(height)[:, None] / height) ** 2 + (np.arange(width)[None] / width) ** 2)
    lowest = None if num_frames is None else 1 / num_frames
    spatial = _log_bins(radius, bins)[None]
    temporal = _log_bins(np.arange(time) / time, bins, lowest)[:, None, None]
    return temporal * (bins + 1) + spatial


def _log_bins(frequency: np.ndarray, bins: int, lowest: float | None = None) -> np.ndarray:
    """Bin 0 holds frequency zero alone; the others divide the rest evenly on a logarithmic axis."""
    positive = frequency[frequency > 0]
    if positive.size == 0:
        return np.zeros(frequency.shape, int)
    lowest, highest = (positive.min(), positive.max()) if lowest is None else (lowest, 1 - lowest)
    edges = np.geomspace(lowest, highest * 1.0001, bins + 1)
    return np.where(frequency > 0, np.clip(np.digitize(frequency, edges), 1, bins), 0)


def smoothing_transfer(shape: tuple[int, int, int], sigma: float | tuple[float, float, float]) -> np.ndarray:
    """(time, height, width) what a Gaussian of `sigma` (frames, pixels; mirrored borders) leaves of each cosine."""
    sigmas = np.broadcast_to(sigma, 3)
    courses = [np.exp(-0.5 * (s * np.pi * np.arange(n) / n) ** 2) for s, n in zip(sigmas, shape)]
    return courses[0][:, None, None] * courses[1][:, None] * courses[2]


def smoothed_power(
    power: Callable[[tuple[int, int, int]], np.ndarray], sigma: float | tuple[float, float, float]
) -> Callable[[tuple[int, int, int]], np.ndarray]:
    """The spectrum under which descent ends where it ends with the likelihood's pixel gradient smoothed by `sigma`.

    With movie = mean + A z the descent rests at z = -A g, g the gradient of the pixels in the cosine basis. Smoothing
    multiplies g by a transfer S, diagonal there: movie - mean = -A S A g, as under the prior variance A S A.

    Args:
      power: shape -> prior variance of each cosine coefficient.
      sigma: of a Gaussian over time, height and width, in frames and pixels.
    """

    def smoothed(shape: tuple[int, int, int]) -> np.ndarray:
        variance = np.asarray(power(shape))
        return np.maximum(variance * smoothing_transfer(shape, sigma), 1e-6 * variance.max())

    return smoothed


def flat_power(shape: tuple[int, int, int], *, std: float) -> np.ndarray:
    """(time, height, width) variance of each cosine coefficient of white noise with `std` grey values a pixel."""
    return np.full(shape, float(std) ** 2)


def temporal_smoothness(movie: jax.Array) -> jax.Array:
    """Half the squared difference of neighbouring frames, in units of 10 grey values, summed."""
    return 0.5 * jnp.sum((jnp.diff(movie, axis=0) / 10.0) ** 2)


def total_variation(movie: jax.Array) -> jax.Array:
    """Isotropic total variation of each frame (Rudin, Osher & Fatemi 1992), in units of 10 grey values, summed.

    The small constant keeps the gradient finite in flat regions.
    """
    down = jnp.diff(movie, axis=1)[:, :, :-1] / 10.0
    right = jnp.diff(movie, axis=2)[:, :-1, :] / 10.0
    return jnp.sum(jnp.sqrt(down**2 + right**2 + 1e-4))
