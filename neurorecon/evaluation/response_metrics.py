"""How well predicted responses follow recorded ones.

Trials come as lists of (time, neuron) arrays, which may differ in length. All sums are taken trial by trial
in float64, so that a recording of thousands of neurons needs no copy of its trials. Scores that need
repeats of a stimulus are in `repeat_metrics`.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from neurorecon.errors import NeuroreconError

# Added to both standard deviations, as the Sensorium competition does: a neuron that never answers gets 0.
EPSILON = 1e-8

Trials = Sequence[np.ndarray]


def correlation(x: np.ndarray, y: np.ndarray, axis: int = 0) -> np.ndarray:
    """Correlation along an axis as the field's benchmarks take it: ddof 0, 1e-8 added to each deviation.

    mean of (x - mean x) / (std x + 1e-8) * (y - mean y) / (std y + 1e-8): 0, not NaN, for constants.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    x = x - x.mean(axis=axis, keepdims=True)
    y = y - y.mean(axis=axis, keepdims=True)
    covariance = (x * y).mean(axis=axis)
    deviations = [np.sqrt((z * z).mean(axis=axis)) + EPSILON for z in (x, y)]
    return covariance / (deviations[0] * deviations[1])


def single_trial_correlation(predictions: Trials, targets: Trials, skip: int = 50) -> float:
    """The Sensorium 2023 score of one animal: mean of `neuron_correlations` over neurons.

    Args:
      predictions, targets: one (time, neuron) array for each trial.
      skip: frames at the start of every trial that don't count.

    Raises:
      NeuroreconError: as `neuron_correlations`.
    """
    return float(neuron_correlations(predictions, targets, skip=skip).mean())


def neuron_correlations(
    predictions: Trials,
    targets: Trials,
    *,
    skip: int = 50,
    max_frames: int | None = None,
    drop_last: int = 0,
) -> np.ndarray:
    """`correlation` of each neuron over all trials and frames together, (neuron,).

    A neuron with a NaN anywhere in the frames that count gets 0, as in the competition.

    Args:
      predictions, targets: one (time, neuron) array for each trial.
      skip: frames left out at the start of every trial.
      max_frames: every trial is first cut to so many frames.
      drop_last: frames then left out at the end of every trial.

    Raises:
      NeuroreconError: no trials, shapes that differ between predictions and targets, no frame left, or
        targets that are zero throughout (the competition withholds the responses of its test tiers so).
    """
    check_trials(predictions, targets)
    if not any(np.any(t) for t in targets):
        raise NeuroreconError("targets: expected recorded responses, found only zeros (withheld?); choose another tier")

    def pairs() -> Iterable[tuple[np.ndarray, np.ndarray]]:
        for p, t in zip(predictions, targets, strict=True):
            end = len(t) if max_frames is None else min(len(t), max_frames)
            if end - drop_last > skip:
                yield p[skip : end - drop_last], t[skip : end - drop_last]

    return _pooled_correlation(pairs, skip)


def out_of_fold_correlations(predictions: Trials, targets: Trials) -> np.ndarray:
    """`neuron_correlations` as DwiseNeuro scores its held-out folds, (neuron,).

    Trials cut to 300 frames, then without their first 50 and their last frame.
    """
    return neuron_correlations(predictions, targets, skip=50, max_frames=300, drop_last=1)


def competition_correlation(animals: Iterable[tuple[Trials, Trials]], skip: int = 50) -> float:
    """The Sensorium 2023 score over animals: mean over all neurons of all of them.

    Args:
      animals: (predictions, targets) of each, as in `neuron_correlations`.
      skip: frames at the start of every trial that don't count.
    """
    values = [neuron_correlations(p, t, skip=skip) for p, t in animals]
    if not values:
        raise NeuroreconError("animals: expected at least one, found none")
    return float(np.concatenate(values).mean())


def training_correlations(predictions: Trials, targets: Trials, weights: np.ndarray) -> np.ndarray:
    """DwiseNeuro's training-time metric for one animal, (neuron,): items and frames pooled.

    Args:
      predictions, targets: one (time, neuron) array for each item of all batches.
      weights: (item,), the weight of this animal in the item; only whether it is zero matters.

    Raises:
      NeuroreconError: as `neuron_correlations`, or no item has a weight.
    """
    weights = np.asarray(weights)
    if weights.shape != (len(targets),):
        raise NeuroreconError(f"weights: expected one for each of {len(targets)} items, found {weights.shape}")
    chosen = np.flatnonzero(weights).tolist()
    if not chosen:
        raise NeuroreconError("weights: expected an item with a weight, found only zeros")
    return neuron_correlations([predictions[i] for i in chosen], [targets[i] for i in chosen], skip=0)


def trial_correlations(predictions: Trials, targets: Trials, skip: int = 0) -> np.ndarray:
    """`correlation` over time within each trial, averaged over trials, (neuron,)."""
    check_trials(predictions, targets)
    kept = [(p[skip:], t[skip:]) for p, t in zip(predictions, targets, strict=True) if len(t) > skip]
    if not kept:
        raise NeuroreconError(f"skip: expected trials of more than {skip} frames, found none")
    return np.mean([correlation(p, t) for p, t in kept], axis=0)


def check_trials(predictions: Trials, targets: Trials) -> None:
    """Raises NeuroreconError unless predictions and targets are (time, neuron) arrays of the same shapes."""
    if len(predictions) != len(targets) or len(targets) == 0:
        raise NeuroreconError(
            f"predictions: expected one for each of the {len(targets)} (at least one) targets, found {len(predictions)}"
        )
    for i, (p, t) in enumerate(zip(predictions, targets, strict=True)):
        if np.ndim(t) != 2 or np.shape(p) != np.shape(t) or np.shape(t)[1] != np.shape(targets[0])[1]:
            raise NeuroreconError(
                f"predictions[{i}]: expected (time, neuron) as the target, one number of neurons throughout; "
                f"found {np.shape(p)} and {np.shape(t)}"
            )


def _pooled_correlation(pairs, skip: int) -> np.ndarray:
    """`correlation` over several arrays as if concatenated. Two passes, because one loses digits."""
    count, sums = 0, [0.0, 0.0]
    for p, t in pairs():
        count += len(t)
        sums = [s + z.sum(axis=0, dtype=np.float64) for s, z in zip(sums, (p, t), strict=True)]
    if count == 0:
        raise NeuroreconError(f"targets: expected trials of more than {skip} frames, found none; lower skip")
    mean_p, mean_t = (s / count for s in sums)
    products = [0.0, 0.0, 0.0]
    for p, t in pairs():
        p, t = p - mean_p, t - mean_t
        products = [
            s + np.einsum("tn,tn->n", a, b) for s, (a, b) in zip(products, ((p, t), (p, p), (t, t)), strict=True)
        ]
    covariance, variance_p, variance_t = (s / count for s in products)
    value = covariance / ((np.sqrt(variance_p) + EPSILON) * (np.sqrt(variance_t) + EPSILON))
    # Only a NaN of the input can arrive here: deviations are at least EPSILON.
    return np.where(np.isnan(value), 0.0, value)
