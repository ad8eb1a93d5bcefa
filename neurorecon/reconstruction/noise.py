"""Measures what encoders leave unexplained, on trials that they were not fitted to: how much, and how it lasts.

Calcium outlasts a frame and gain drifts, so residuals of neighbouring frames say much the same. A likelihood that takes
them as independent trusts slow changes too much and quick ones too little; see `losses.autoregressive`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from neurorecon.errors import NeuroreconError


class ResponseNoise(NamedTuple):
    """Noise of each neuron: variance in proportion to the mean response, autoregressive in time.

    Attributes:
      dispersion: (neuron,) variance of the residuals over the mean response.
      floor: (neuron,) added to the predicted mean, so that a prediction of zero is not taken as certain.
      predictors: (order + 1, order, neuron): row k predicts a standardised residual from the k before it, the nearest
        first; the last row serves all later frames.
      innovation_std: (order + 1, neuron) standard deviation of what row k leaves.
    """

    dispersion: np.ndarray
    floor: np.ndarray
    predictors: np.ndarray
    innovation_std: np.ndarray


def check_trials(
    name: str, predictions: Sequence[np.ndarray], responses: Sequence[np.ndarray], *, more_than: int = 0
) -> None:
    """Raises NeuroreconError unless each prediction has finite responses of its shape, `more_than` frames and more."""
    if not predictions or len(predictions) != len(responses):
        raise NeuroreconError(
            f"{name}: expected responses for each of at least one prediction, found {len(responses)} for "
            f"{len(predictions)}"
        )
    for p, r in zip(predictions, responses):
        if p.shape != r.shape or len(p) <= more_than or not (np.isfinite(p).all() and np.isfinite(r).all()):
            raise NeuroreconError(
                f"{name}: expected finite responses and predictions of one shape and more than {more_than} frames, "
                f"found {r.shape} and {p.shape}"
            )


def fit_noise(
    predictions: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
    *,
    frame_step: int,
    order: int = 2,
    floor: float = 0.05,
) -> ResponseNoise:
    """Fits `ResponseNoise` to held-out trials (Yule-Walker equations by the Levinson-Durbin recursion).

    Args:
      predictions, responses: (time, neuron) of each trial, without the frames that encoders can't know.
      frame_step: distance of the frames that an encoder looks at; the autoregression is over these.
      order: residuals looked back at; 0 for independent frames.
      floor: share of a neuron's mean response that is added to every prediction.

    Raises:
      NeuroreconError: no trials, too short ones, or values that are not finite.
    """
    check_trials("fit_noise", predictions, responses, more_than=order * frame_step)
    num_frames = sum(len(p) for p in predictions)
    mean = sum(p.sum(0, dtype=np.float64) for p in predictions) / num_frames
    variance = sum(np.square(r - p, dtype=np.float64).sum(0) for p, r in zip(predictions, responses)) / num_frames
    # A neuron that was silent in these few trials has no dispersion of its own: it takes the population's.
    usable = (variance > 0) & (mean > 0)
    if not usable.any():
        raise NeuroreconError("fit_noise: every neuron's residual or prediction is zero; check the encoder")
    typical = np.median(variance[usable] / mean[usable])
    dispersion = np.where(usable, variance / np.maximum(mean, 1e-12), typical)
    mean = np.where(usable, mean, np.median(mean[usable]))
    products, counts = np.zeros((order + 1, len(mean))), np.zeros(order + 1)
    for p, r in zip(predictions, responses):
        residual = (r - p) / np.sqrt(dispersion * (p + floor * mean))
        for lag in range(order + 1):
            gap = lag * frame_step
            products[lag] += (residual[gap:] * residual[: len(residual) - gap]).sum(0)
            counts[lag] += len(residual) - gap
    covariance = products / counts[:, None]
    covariance[0] = np.where(usable, covariance[0], 1.0)
    covariance[1:] *= usable
    predictors, std = _levinson(covariance)
    return ResponseNoise(*(np.asarray(x, np.float32) for x in (dispersion, floor * mean, predictors, std)))


def simulate_responses(
    noise: ResponseNoise,
    prediction: np.ndarray,
    *,
    frame_step: int,
    seed: int | Sequence[int],
    num_samples: int = 1,
    scale: float = 1.0,
) -> np.ndarray:
    """Responses that a brain would give which is the encoder plus `noise`: (sample, time, neuron), float32.

    Gaussian, since only mean and covariance are fitted: single values can be negative. Neurons are independent. The
    frames in between those that `noise` links are independent too: fit it with `frame_step=1` and a higher order where
    the noise of neighbouring frames matters.

    Args:
      noise: from `fit_noise`.
      prediction: (time, neuron) mean responses.
      frame_step: that of the fit.
      seed: of the generator; a sequence of integers is one seed.
      num_samples: draws.
      scale: times the standard deviation.

    Raises:
      NeuroreconError: shapes that don't fit, values that are not finite, or arguments out of range.
    """
    prediction = np.asarray(prediction, np.float64)
    if prediction.ndim != 2 or prediction.shape[1] != len(noise.dispersion) or not np.isfinite(prediction).all():
        raise NeuroreconError(
            f"simulate_responses: expected finite predictions (time, {len(noise.dispersion)} neurons), "
            f"found {prediction.shape}"
        )
    for name, value in (("frame_step", frame_step), ("num_samples", num_samples)):
        if value < 1:
            raise NeuroreconError(f"simulate_responses, {name}: expected at least 1, found {value}")
    if not (np.isfinite(scale) and scale >= 0):
        raise NeuroreconError(f"simulate_responses, scale: expected 0 or more, found {scale}")
    order = noise.predictors.shape[1]
    residual = np.random.default_rng(seed).standard_normal((num_samples, *prediction.shape))
    for t in range(len(prediction)):
        known = min(t // frame_step, order)
        residual[:, t] *= noise.innovation_std[known]
        for lag in range(1, known + 1):
            residual[:, t] += noise.predictors[known, lag - 1] * residual[:, t - lag * frame_step]
    spread = np.sqrt(noise.dispersion * (np.maximum(prediction, 0.0) + noise.floor))
    return (prediction + scale * spread * residual).astype(np.float32)


def _levinson(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(lag, neuron) covariances -> the best predictors of every order up to the last, and what they leave."""
    order, num_neurons = len(covariance) - 1, covariance.shape[1]
    predictors, left = np.zeros((order + 1, order, num_neurons)), np.zeros((order + 1, num_neurons))
    left[0] = covariance[0]
    for k in range(1, order + 1):
        before = predictors[k - 1, : k - 1]
        partial = (covariance[k] - (before * covariance[k - 1 : 0 : -1]).sum(0)) / left[k - 1]
        # Covariances over unequally many pairs of frames need not be those of any process.
        partial = np.clip(partial, -0.99, 0.99)
        predictors[k, : k - 1] = before - partial * before[::-1]
        predictors[k, k - 1] = partial
        left[k] = left[k - 1] * (1 - partial**2)
    return predictors, np.sqrt(left)
