"""Calibration of reconstructed movies on validation clips: how far each spatiotemporal frequency can be trusted.

A maximum a posteriori movie is overconfident where the encoder is wrong, above all in what is coarse and slow; a
linear decoder is timid where detail matters. For each band of frequencies the best linear combination of both is fitted
to the true movies of validation clips (stacking, Wolpert 1992; with one movie alone it is the Wiener filter).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.fft

from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction.priors import frequency_bands


class Calibration(NamedTuple):
    """What `fit_calibration` found.

    Attributes:
      weights: (band, estimate) weight of each estimate's deviation from `mean`, in each band of frequencies.
      mean: grey value that deviations are taken from.
      bins: bands on each axis of frequencies.
    """

    weights: np.ndarray
    mean: float
    bins: int

    def apply(self, *estimates: np.ndarray) -> np.ndarray:
        """The calibrated movie, (time, height, width), clipped to 0..255.

        Args:
          *estimates: the movies, in the order in which they were fitted, each (time, height, width).

        Raises:
          NeuroreconError: another number of estimates than was fitted.
        """
        if len(estimates) != self.weights.shape[1]:
            raise NeuroreconError(f"estimates: expected {self.weights.shape[1]} movies, found {len(estimates)}")
        bands = frequency_bands(estimates[0].shape, self.bins)
        total = sum(weight[bands] * _coefficients(movie, self.mean) for weight, movie in zip(self.weights.T, estimates))
        return np.clip(self.mean + scipy.fft.idctn(total, norm="ortho"), 0.0, 255.0).astype(np.float32)


def fit_calibration(
    truths: Sequence[np.ndarray],
    estimates: Sequence[Sequence[np.ndarray]],
    *,
    mean: float,
    mask: np.ndarray,
    bins: int = 6,
    borrowed: float = 50.0,
) -> Calibration:
    """Fits the weight of each estimate in each band of frequencies, by least squares on validation clips.

    Args:
      truths: the true movies of validation clips, each (time, height, width).
      estimates: for each clip its estimates, e.g. (reconstruction, linear decoder's movie).
      mean: grey value that deviations are taken from.
      mask: (height, width) bool; only what lies inside is fitted.
      bins: bands on each of the two axes, spatial and temporal frequency.
      borrowed: weights are drawn towards those of all bands together as if by so many coefficients: the coarsest and
        slowest bands hold few.

    Raises:
      NeuroreconError: no clips, or shapes that differ.
    """
    if not truths or len(truths) != len(estimates):
        raise NeuroreconError(
            f"estimates: expected those of {len(truths)} clips (at least one), found {len(estimates)}"
        )
    count, num_bands = len(estimates[0]), (bins + 1) ** 2
    gram, cross, sizes = np.zeros((num_bands, count, count)), np.zeros((num_bands, count)), np.zeros(num_bands)
    for truth, movies in zip(truths, estimates):
        if len(movies) != count or any(movie.shape != truth.shape for movie in movies):
            raise NeuroreconError(f"estimates: expected {count} movies of {truth.shape} for each clip")
        bands = frequency_bands(truth.shape, bins).reshape(-1)
        sizes += np.bincount(bands, minlength=num_bands)
        target, *parts = (_coefficients(movie, mean, mask).reshape(-1) for movie in (truth, *movies))
        for i, x in enumerate(parts):
            cross[:, i] += np.bincount(bands, x * target, num_bands)
            for j, y in enumerate(parts):
                gram[:, i, j] += np.bincount(bands, x * y, num_bands)
    together = np.linalg.lstsq(gram.sum(0), cross.sum(0), rcond=None)[0]
    energy = np.trace(gram, axis1=1, axis2=2) / np.maximum(sizes, 1) / count
    pull = (borrowed * energy + 1e-9)[:, None]
    weights = np.linalg.solve(gram + pull[..., None] * np.eye(count), (cross + pull * together)[..., None])[..., 0]
    return Calibration(weights, mean, bins)


def _coefficients(movie: np.ndarray, mean: float, mask: np.ndarray | float = 1.0) -> np.ndarray:
    return scipy.fft.dctn((np.asarray(movie, np.float64) - mean) * mask, norm="ortho")
