"""The movie prior of one clip: its spectrum, estimated from a first reconstruction (empirical Bayes).

A prior measured on many movies is too wide for a still scene and too narrow for a fast one, or for a kind of movie that
was not among them. Under a Gaussian prior, a reconstruction z' of whitened coefficients z is a share l of them, and
noise: where the clip's variance in a band of frequencies is e^x times the prior's, E[z'^2] = l^2 e^x + remainder. Share
and remainder are measured on validation clips, whose movies are known; from the energy of the reconstruction of another
clip then follows x, and a second descent under the prior of that spectrum. Frequency zero of either axis is left alone.

Energies of one clip err together, since its noise does, and they say nothing where l is small. So x is found for all
bands at once, with the covariance that it has among training movies, which is mostly level and slope over spatial and
temporal frequency (maximum a posteriori; Morris 1983 is the ancestor of such estimates). The first descent may have a
whiter prior than the second (`whitened_std`), so that fine and fast scales show in it.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import scipy.fft
from scipy.optimize import minimize

from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction.priors import frequency_bands

BINS = 4  # of each axis, besides frequency zero
BOUND = 4.0  # of x, either way
SHRINK = 0.6  # share of x that is kept: too wide a prior costs more than too narrow a one gains
HETEROGENEITY = 1.5  # mean square over squared mean of l within a band
BAND_VARIANCE = 0.3  # of x beyond level and slopes, at most
# Standard deviation of a clip's remainder over its mean: in all bands together, in those of one temporal frequency
# together, in each.
REMAINDER_STD = (0.3, 0.3, 0.3)


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """What a first reconstruction tells of a clip's spectrum; see `fit_adaptation`. Arrays are over bands in use.

    Attributes:
      power: shape (time, height, width) -> prior variance of each cosine coefficient.
      num_frames: of the clips whose frequencies set the bands' edges.
      bands: which of `frequency_bands` they are.
      transfer: l^2, the share of a band's energy that is reconstructed.
      remainder: energy that a reconstruction has of itself.
      covariance: (band, band) of x among training movies.
    """

    power: Callable[[tuple[int, int, int]], np.ndarray]
    num_frames: int
    bands: np.ndarray
    transfer: np.ndarray
    remainder: np.ndarray
    covariance: np.ndarray

    def log_variance(self, deviation: np.ndarray) -> np.ndarray:
        """(band,) x of a clip, from its first reconstruction less the prior's mean (time, height, width)."""
        energy, sizes = _energies(deviation, self.power, self.num_frames, self.bands)
        # A clip of another length may lack a band.
        here = sizes > 0
        energy, transfer, remainder = energy[here], self.transfer[here], self.remainder[here]
        everywhere, of_time, alone = REMAINDER_STD
        temporal = self.bands[here] // (BINS + 1)
        together = everywhere**2 + of_time**2 * (temporal[:, None] == temporal) + alone**2 * np.eye(here.sum())
        errors = np.outer(remainder, remainder) * together + np.diag(2 * energy**2 / sizes[here])
        by_error, by_prior = np.linalg.inv(errors), np.linalg.inv(self.covariance[np.ix_(here, here)])

        def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
            explained = transfer * np.exp(x)
            off = by_error @ (explained + remainder - energy)
            value = 0.5 * (explained + remainder - energy) @ off + 0.5 * x @ by_prior @ x
            return float(value), off * explained + by_prior @ x

        found = np.zeros(len(self.bands))
        start = np.zeros(int(here.sum()))
        found[here] = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=[(-BOUND, BOUND)] * len(start)).x
        return found

    def relative_std(self, deviation: np.ndarray) -> np.ndarray:
        """Standard deviation of each cosine coefficient of the clip over the prior's: (time, height, width) float32.

        Args:
          deviation: (time, height, width) the first reconstruction less the prior's mean, grey values.

        Raises:
          NeuroreconError: other axes, another frame size, or values that are not finite.
        """
        _check("deviation", deviation)
        x = np.zeros((BINS + 1) ** 2)
        x[self.bands] = SHRINK * self.log_variance(deviation)
        bands = frequency_bands(deviation.shape, BINS, num_frames=self.num_frames)
        return np.exp(0.5 * x)[bands].astype(np.float32)


def fit_adaptation(
    true: Sequence[np.ndarray],
    reconstructed: Sequence[np.ndarray],
    training: Sequence[np.ndarray],
    power: Callable[[tuple[int, int, int]], np.ndarray],
) -> Adaptation:
    """Measures on validation clips how the energy of a reconstruction goes with that of the movie.

    All movies (time, height, width) are deviations from the prior's mean, grey values.

    Args:
      true: of validation clips.
      reconstructed: from their responses, by the recipe that makes the first reconstruction of other clips.
      training: on which the prior was measured; they tell how clips differ.
      power: the prior: shape (time, height, width) -> variance of each cosine coefficient.

    Raises:
      NeuroreconError: fewer than 2 clips or training movies, movies of unequal shapes, or values that are not finite.
    """
    if len(true) < 2 or len(training) < 2 or len(true) != len(reconstructed):
        raise NeuroreconError(
            "adaptation: expected at least 2 validation clips, each with its reconstruction, and 2 training movies, "
            f"found {len(true)}, {len(reconstructed)} and {len(training)}"
        )
    for one, other in zip(true, reconstructed):
        _check("true", one)
        _check("reconstructed", other)
        if one.shape != other.shape:
            raise NeuroreconError(f"adaptation: expected a reconstruction of shape {one.shape}, found {other.shape}")
    num_frames = min(len(movie) for movie in true)
    used = np.unique(frequency_bands((num_frames, *true[0].shape[1:]), BINS))
    used = used[(used // (BINS + 1) > 0) & (used % (BINS + 1) > 0)]
    seen, shown, both = (np.zeros(len(used)) for _ in range(3))
    for one, other in zip(true, reconstructed):
        seen = seen + _energies(other, power, num_frames, used)[0]
        shown = shown + _energies(one, power, num_frames, used)[0]
        both = both + _energies(one, power, num_frames, used, other)[0]
    seen, shown, both = (np.maximum(total / len(true), 1e-9) for total in (seen, shown, both))
    transfer = np.minimum(HETEROGENEITY * np.maximum(both / shown, 1e-3) ** 2, seen / shown)
    remainder = np.maximum(seen - transfer * shown, 1e-6)
    logs = [
        np.log(np.maximum(_energies(piece, power, num_frames, used)[0], 1e-6))
        for movie in training
        for piece in _pieces(movie, num_frames)
    ]
    if len(logs) < 2:
        raise NeuroreconError(f"adaptation: expected 2 training movies of {num_frames} frames, found {len(logs)}")
    return Adaptation(power, num_frames, used, transfer, remainder, _smooth_covariance(np.stack(logs), used))


def whitened_std(power: np.ndarray, exponent: float) -> np.ndarray:
    """Standard deviation of each coefficient where its variance is power^exponent, over the one where it is power.

    Both priors have the same total variance; an exponent of 1 changes nothing, of 0 makes white noise. (time, height,
    width) float32.

    Args:
      power: (time, height, width) prior variance of each cosine coefficient.
      exponent: from 0 to 1.

    Raises:
      NeuroreconError: another exponent, or a variance that is not above 0.
    """
    power = np.asarray(power, np.float64)
    if not 0 <= exponent <= 1:
        raise NeuroreconError(f"exponent: expected 0 to 1, found {exponent}")
    if not (np.isfinite(power) & (power > 0)).all():
        raise NeuroreconError("power: expected finite variances above 0, found others")
    whiter = power**exponent
    return np.sqrt(whiter * (power.sum() / whiter.sum()) / power).astype(np.float32)


def _smooth_covariance(logs: np.ndarray, used: np.ndarray) -> np.ndarray:
    """(band, band) of level and slopes over both frequencies among movies, and some of each band's own."""
    temporal, spatial = np.divmod(used, BINS + 1)
    basis = np.stack(
        [np.ones(len(used)), (temporal - temporal.mean()) / BINS, (spatial - spatial.mean()) / BINS], axis=1
    )
    weights = logs @ np.linalg.pinv(basis).T
    own = np.minimum((logs - weights @ basis.T).var(0), BAND_VARIANCE)
    return basis @ np.cov(weights.T) @ basis.T + np.diag(np.maximum(own, 1e-3))


def _energies(
    movie: np.ndarray,
    power: Callable[[tuple[int, int, int]], np.ndarray],
    num_frames: int,
    used: np.ndarray,
    other: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean square (or product with another movie's) of the whitened coefficients in each band, and their number."""
    shape = (movie.shape[0], movie.shape[1], movie.shape[2])
    first = scipy.fft.dctn(np.asarray(movie, np.float64), norm="ortho")
    second = first if other is None else scipy.fft.dctn(np.asarray(other, np.float64), norm="ortho")
    bands = frequency_bands(shape, BINS, num_frames=num_frames).ravel()
    sizes = np.bincount(bands, minlength=(BINS + 1) ** 2)
    sums = np.bincount(bands, (first * second / power(shape)).ravel(), minlength=(BINS + 1) ** 2)
    return (sums / np.maximum(sizes, 1))[used], sizes[used]


def _pieces(movie: np.ndarray, num_frames: int) -> list[np.ndarray]:
    return [movie[start : start + num_frames] for start in range(0, len(movie) - num_frames + 1, num_frames)]


def _check(name: str, movie: np.ndarray) -> None:
    if np.ndim(movie) != 3 or not np.isfinite(movie).all():
        raise NeuroreconError(f"adaptation, {name}: expected finite (time, height, width), found {np.shape(movie)}")
