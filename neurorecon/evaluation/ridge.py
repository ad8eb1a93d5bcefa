"""Ridge regression on lagged features, for a path of penalties, without the matrix of all lags.

The features of frame t are x(t), x(t + s), ..., x(t + (L - 1) s): L copies of one time series of N values,
zero beyond
the end of its trial. Their Gram matrix is block Toeplitz but for the first frames of each trial:

  block(i, j) = sum over t of x(t + i s) x(t + j s)^T,
  block(i + 1, j + 1) = block(i, j) - sum of x(u) x(u + (j - i) s)^T over i s <= u < (i + 1) s,

so L products of N x N make it instead of L (L + 1) / 2. A constant term is fitted and not penalised.
"""

import abc
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import linalg

from neurorecon.errors import NeuroreconError

# Trials are multiplied together until they have so many frames; sums over pieces are in float64.
PIECE = 4096


class RidgeProblem(abc.ABC):
    """What is left to solve once the trials have been read."""

    @abc.abstractmethod
    def solve(self, penalty: float, columns: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Weights (lag, neuron, pixel) and intercept (pixel,), float32, minimising
        sum of squares + penalty * frames * |weights|^2, for some columns of the target (None: all)."""


def ridge_problem(
    features: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    *,
    num_lags: int,
    lag_step: int,
    memory_limit_gib: float,
) -> RidgeProblem:
    """Chooses the smaller of the two Gram matrices: of the features, or of the frames.

    Args:
      features: (time, neuron) float32 for each trial.
      targets: (time, pixel) float32 for each trial, with mean 0 over all trials.
      num_lags: frames covered by the lags; num_lags / lag_step copies of the features.
      lag_step: frames between copies.
      memory_limit_gib: of the matrices.

    Raises:
      NeuroreconError: the matrices would need more than `memory_limit_gib`.
    """
    lags = np.arange(0, num_lags, lag_step)
    num_frames = sum(len(f) for f in features)
    num_features, num_pixels = len(lags) * features[0].shape[1], targets[0].shape[1]
    needed = bytes_needed(num_frames, num_features, num_pixels)
    if needed > memory_limit_gib * 2**30:
        raise NeuroreconError(
            f"linear decoder: {num_features} features (neurons x lags), {num_frames} frames and "
            f"{num_pixels} pixels need {needed / 2**30:.1f} GiB, more than {memory_limit_gib:g}; "
            "raise lag_step, decode the mask only, or give fewer trials"
        )
    problem = _FeatureGram if num_features <= num_frames else _FrameGram
    return problem(features, targets, lags)


def bytes_needed(num_frames: int, num_features: int, num_pixels: int) -> int:
    """Of the smaller Gram matrix and its factor in float64; right-hand side, solution, weights."""
    size = min(num_frames, num_features)
    return 16 * size**2 + 16 * size * num_pixels + 4 * num_features * num_pixels


def principal_components(features: Iterable[np.ndarray], number: int) -> np.ndarray:
    """(neuron, component) orthonormal directions in which features (time, neuron) vary most, most first, float32."""
    covariance: Any = 0.0
    for x in joined(features, 0):
        covariance += (x.T @ x).astype(np.float64)
    size = len(covariance)
    _, vectors = linalg.eigh(
        covariance, subset_by_index=(size - number, size - 1), overwrite_a=True, check_finite=False
    )
    return np.ascontiguousarray(vectors[:, ::-1], np.float32)


class _FeatureGram(RidgeProblem):
    def __init__(self, features: Sequence[np.ndarray], targets: Sequence[np.ndarray], lags: np.ndarray):
        self.num_lags, self.num_neurons = len(lags), features[0].shape[1]
        self.num_frames = sum(len(f) for f in features)
        self.mean = feature_means(features, lags)
        # Centred: sum of (x - mean)(x - mean)^T = sum of x x^T - frames * mean mean^T; targets have mean 0.
        self.gram = lagged_gram(features, lags)
        self.gram -= self.num_frames * np.outer(self.mean, self.mean)
        cross = np.zeros((self.num_lags, self.num_neurons, targets[0].shape[1]))
        for x, y in zip(joined(features, lags[-1]), joined(targets, lags[-1]), strict=True):
            for i, lag in enumerate(lags):
                cross[i] += x[lag:].T @ y[: len(y) - lag]
        self.cross = cross.reshape(-1, targets[0].shape[1])

    def solve(self, penalty: float, columns: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        system = self.gram.copy()
        system[np.diag_indices_from(system)] += penalty * self.num_frames
        factor = linalg.cho_factor(system, lower=True, overwrite_a=True, check_finite=False)
        cross = self.cross if columns is None else self.cross[:, columns]
        weights = linalg.cho_solve(factor, cross, check_finite=False)
        intercept = -(self.mean @ weights)
        shape = (self.num_lags, self.num_neurons, -1)
        return weights.astype(np.float32).reshape(shape), intercept.astype(np.float32)


class _FrameGram(RidgeProblem):
    def __init__(self, features: Sequence[np.ndarray], targets: Sequence[np.ndarray], lags: np.ndarray):
        self.features, self.targets, self.lags = features, np.concatenate(targets), lags
        self.mean = feature_means(features, lags)
        n = len(self.targets)
        self.kernel = np.zeros((n, n))
        for lag in lags:
            shifted = self._shifted(lag)
            self.kernel += shifted @ shifted.T
        # Centring in feature space: H K H with H = I - 1 1^T / n.
        rows = self.kernel.mean(axis=0)
        self.kernel += rows.mean() - rows[:, None] - rows[None, :]

    def _shifted(self, lag: int) -> np.ndarray:
        parts = []
        for x in self.features:
            part = np.zeros_like(x)
            if lag < len(x):
                part[: len(x) - lag] = x[lag:]
            parts.append(part)
        return np.concatenate(parts)

    def solve(self, penalty: float, columns: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        n = len(self.targets)
        system = self.kernel.copy()
        system[np.diag_indices_from(system)] += penalty * n
        factor = linalg.cho_factor(system, lower=True, overwrite_a=True, check_finite=False)
        targets = self.targets if columns is None else self.targets[:, columns]
        dual = linalg.cho_solve(factor, targets.astype(np.float64), check_finite=False)
        # In exact arithmetic the dual sums to 0 over frames, so that the features need no centring; rounding.
        dual = (dual - dual.mean(axis=0)).astype(np.float32)
        weights = np.stack([self._shifted(lag).T @ dual for lag in self.lags])
        intercept = -(self.mean @ weights.reshape(-1, dual.shape[1]))
        return weights, intercept.astype(np.float32)


def feature_means(features: Sequence[np.ndarray], lags: np.ndarray) -> np.ndarray:
    """Mean of every lagged feature over all frames, (lag * neuron,) float64 (ends make it not 0)."""
    num_frames = sum(len(f) for f in features)
    return np.concatenate([sum(f[lag:].sum(axis=0, dtype=np.float64) for f in features) / num_frames for lag in lags])


def joined(trials: Iterable[np.ndarray], gap: int) -> Iterator[np.ndarray]:
    """Trials (time, n) one after the other, `gap` frames of zeros after each, in pieces of a few thousand.

    Products of few long matrices take a fraction of the time of many short ones, and with zeros between
    them trials don't mix. The pieces depend on the trials' lengths alone.
    """
    pieces: list[np.ndarray] = []
    for trial in trials:
        pieces += [trial, np.zeros((gap, trial.shape[1]), np.float32)]
        if sum(len(p) for p in pieces) >= PIECE:
            yield np.concatenate(pieces)
            pieces = []
    if pieces:
        yield np.concatenate(pieces)


def lagged_gram(features: Sequence[np.ndarray], lags: np.ndarray) -> np.ndarray:
    """Gram matrix of the lagged features, (lag * neuron, lag * neuron) float64, lags the slower index.

    Args:
      features: (time, neuron) for each trial.
      lags: 0, s, 2 s, ...
    """
    n, count = features[0].shape[1], len(lags)
    step = int(lags[1]) if count > 1 else 1
    gram = np.zeros((count * n, count * n))
    heads = np.zeros((len(features), step * count, n), np.float32)  # the first frames of each trial
    for head, x in zip(heads, features, strict=True):
        head[: min(len(head), len(x))] = x[: len(head)]

    def block(i: int, j: int) -> np.ndarray:
        return gram[i * n : (i + 1) * n, j * n : (j + 1) * n]

    for x in joined(features, lags[-1]):
        for j, lag in enumerate(lags):
            block(0, j)[:] += x[: len(x) - lag].T @ x[lag:]
    for i in range(count - 1):
        early = heads[:, i * step : (i + 1) * step].reshape(-1, n)
        for j in range(i, count - 1):
            late = heads[:, j * step : (j + 1) * step].reshape(-1, n)
            block(i + 1, j + 1)[:] = block(i, j) - early.T @ late
    for i in range(count):
        for j in range(i):
            block(i, j)[:] = block(j, i).T
    return gram
