"""Scores that need repeats of a stimulus: how much of a response can be explained, and how much is.

Responses are a list with one (repeat, time, neuron) array for each movie; predictions one (time, neuron)
array for each movie, the same for all repeats. A still image is a movie of one frame. Every (movie, frame)
is one "image". Numbers of repeats may differ between movies. All in float64; every function returns one
value for each neuron, (neuron,).

Formulas: neuralpredictors and sensorium (Sinz lab), ViV1T (correlation to average by movie, normalised
correlation, after Schoppe et al. 2016).
"""

from collections.abc import Sequence

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.response_metrics import correlation

# Neurons of which less than this share of the variance can be explained are left out of the benchmarks' FEVE.
FEV_THRESHOLD = 0.15

Repeats = Sequence[np.ndarray]
Predictions = Sequence[np.ndarray]


def group_repeats(responses: np.ndarray, stimulus_ids: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Trials (trial, neuron) or (trial, time, neuron) -> (list of (repeat, time, neuron), sorted ids)."""
    responses, stimulus_ids = np.asarray(responses), np.asarray(stimulus_ids)
    if responses.ndim not in (2, 3) or stimulus_ids.shape != responses.shape[:1]:
        raise NeuroreconError(
            f"stimulus_ids: expected one for each trial of {responses.shape}, found {stimulus_ids.shape}"
        )
    if responses.ndim == 2:
        responses = responses[:, None]
    ids = np.unique(stimulus_ids)
    return [responses[stimulus_ids == i] for i in ids], ids


def fraction_explainable_variance(responses: Repeats) -> np.ndarray:
    """FEV, the share of a neuron's variance that the stimulus can explain: (total - noise) / total.

    total: variance (ddof 1) over all images and repeats; noise: mean over images of the variance over
    repeats (ddof 1).

    Raises:
      NeuroreconError: no movies, wrong shapes, NaN, or a movie without a repeat.
    """
    total, noise = _variances(responses)
    with np.errstate(invalid="ignore"):  # a neuron that never answers: 0 / 0, NaN
        return (total - noise) / total


def explainable_variance(responses: Repeats, *, epsilon: float = 1e-9) -> np.ndarray:
    """FEV with `epsilon` added to the total variance: 0 instead of NaN for a neuron that never answers."""
    total, noise = _variances(responses)
    return (total - noise) / (total + epsilon)


def fraction_explainable_variance_explained(
    responses: Repeats, predictions: Predictions, *, min_fev: float | None = None
) -> np.ndarray:
    """FEVE, the share of the explainable variance that is predicted: 1 - (MSE - noise) / (total - noise).

    The mean squared error is over all images and repeats.

    Args:
      responses: (repeat, time, neuron) for each movie.
      predictions: (time, neuron) for each movie.
      min_fev: only neurons with at least this FEV are returned, a shorter array (benchmarks:
        `FEV_THRESHOLD`).

    Raises:
      NeuroreconError: as `fraction_explainable_variance`, or predictions of other shapes.
    """
    total, noise = _variances(responses)
    _check_predictions(responses, predictions)
    count = sum(r.shape[0] * r.shape[1] for r in responses)
    squares = sum(
        ((np.asarray(r, np.float64) - p) ** 2).sum(axis=(0, 1)) for r, p in zip(responses, predictions, strict=True)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        feve = 1 - (squares / count - noise) / (total - noise)
        fev = (total - noise) / total
    return feve if min_fev is None else feve[fev >= min_fev]


def oracle_correlation(responses: Repeats) -> np.ndarray:
    """Jackknife oracle: correlation of each response with the mean of the other repeats, all pooled."""
    _check(responses)
    single, others = [], []
    for r in responses:
        r = np.asarray(r, np.float64)
        single.append(r.reshape(-1, r.shape[2]))
        others.append(((r.sum(axis=0) - r) / (len(r) - 1)).reshape(-1, r.shape[2]))
    return correlation(np.concatenate(single), np.concatenate(others))


def conservative_oracle_correlation(responses: Repeats) -> np.ndarray:
    """Correlation that the mean over repeats would have with single responses: v_mean / sqrt(v_mean (v_mean
    + v_noise)).

    v_mean: variance over images of the mean over repeats; v_noise: mean over images of the variance over
    repeats (ddof 0, both). NaN for a neuron that never answers.
    """
    _check(responses)
    means = np.concatenate([_mean_response(r) for r in responses])
    noise = np.concatenate([np.var(r, axis=0, dtype=np.float64) for r in responses]).mean(axis=0)
    signal = means.var(axis=0)
    with np.errstate(invalid="ignore"):
        return signal / np.sqrt(signal * (signal + noise))


def correlation_to_average(responses: Repeats, predictions: Predictions) -> np.ndarray:
    """Correlation of the mean over repeats with the prediction, all (movie, frame) points pooled.

    Movies without a repeat count too: their mean is their one response.
    """
    _check(responses, min_repeats=1)
    _check_predictions(responses, predictions)
    means = [_mean_response(r) for r in responses]
    return correlation(np.concatenate(means), np.concatenate([np.asarray(p) for p in predictions]))


def correlation_to_average_by_movie(responses: Repeats, predictions: Predictions) -> np.ndarray:
    """Correlation over time of mean response and prediction, mean over movies with at least 2 repeats."""
    _check(responses, min_repeats=1)
    _check_predictions(responses, predictions)
    values = [correlation(_mean_response(r), p) for r, p in zip(responses, predictions, strict=True) if len(r) > 1]
    if not values:
        raise NeuroreconError("responses: expected a movie with at least two repeats, found none")
    return np.mean(values, axis=0)


def normalised_correlation(
    responses: Repeats, predictions: Predictions, *, min_signal_power: float = 1e-4, epsilon: float = 1e-8
) -> np.ndarray:
    """CC_norm of Schoppe et al. 2016, mean over movies: correlation relative to the best possible one.

    By movie: cov(mean response, prediction) / (sqrt(var(prediction) SP) + epsilon), with the signal power
    SP = (var(sum of repeats) - sum of var of repeats) / (R (R - 1)); variances over time with ddof 1. A
    movie in which a neuron's SP is at most `min_signal_power` is left out for it; NaN where none is left.
    """
    _check(responses)
    _check_predictions(responses, predictions)
    values = []
    for r, p in zip(responses, predictions, strict=True):
        r, p = np.asarray(r, np.float64), np.asarray(p, np.float64)
        n = len(r)
        power = (r.sum(axis=0).var(axis=0, ddof=1) - r.var(axis=1, ddof=1).sum(axis=0)) / (n * (n - 1))
        mean = r.mean(axis=0)
        covariance = ((mean - mean.mean(axis=0)) * (p - p.mean(axis=0))).sum(axis=0) / (len(p) - 1)
        usable = power > min_signal_power
        scale = np.sqrt(p.var(axis=0, ddof=1) * np.where(usable, power, np.nan)) + epsilon
        values.append(covariance / scale)
    stack = np.array(values)
    usable = ~np.isnan(stack)
    counts = usable.sum(axis=0)
    sums = np.where(usable, stack, 0.0).sum(axis=0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _mean_response(responses: np.ndarray) -> np.ndarray:
    return np.asarray(responses, np.float64).mean(axis=0)


def _variances(responses: Repeats) -> tuple[np.ndarray, np.ndarray]:
    """(variance over all images and repeats, mean over images of that over repeats), both ddof 1."""
    _check(responses)
    flat = np.concatenate([np.asarray(r, np.float64).reshape(-1, r.shape[2]) for r in responses])
    noise = np.concatenate([np.var(r, axis=0, ddof=1, dtype=np.float64) for r in responses])
    return flat.var(axis=0, ddof=1), noise.mean(axis=0)


def _check(responses: Repeats, min_repeats: int = 2) -> None:
    if len(responses) == 0:
        raise NeuroreconError("responses: expected at least one movie, found none")
    for i, r in enumerate(responses):
        if np.ndim(r) != 3 or 0 in np.shape(r) or np.shape(r)[2] != np.shape(responses[0])[2]:
            raise NeuroreconError(
                f"responses[{i}]: expected (repeat, time, neuron), one number of neurons throughout; "
                f"found {np.shape(r)}"
            )
        if len(r) < min_repeats:
            raise NeuroreconError(
                f"responses[{i}]: expected at least {min_repeats} repeats, found {len(r)}; leave it out"
            )
        if not np.isfinite(r).all():
            raise NeuroreconError(f"responses[{i}]: expected finite values, found NaN or infinity")


def _check_predictions(responses: Repeats, predictions: Predictions) -> None:
    found, expected = [np.shape(p) for p in predictions], [np.shape(r)[1:] for r in responses]
    if found != expected:
        raise NeuroreconError(f"predictions: expected (time, neuron) {expected[:3]}..., found {found[:3]}...")
