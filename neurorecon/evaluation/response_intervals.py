"""Response scores that pool all clips, with intervals over clips, from sums kept for each clip.

A single-trial correlation is one number for all trials together, so its interval resamples clips and pools anew. Each
clip leaves sums over its frames, (sum, neuron), from which any pooling follows: no prediction is held. Trials that
show one movie are one clip. Sums are taken about a centre for each neuron, so that float64 loses no digits.

Formulas as in `response_metrics` and `repeat_metrics`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.response_metrics import EPSILON

# Resampled values held at once; bounds the memory, not the result.
CHUNK = 8_000_000


def trial_sums(prediction: np.ndarray, target: np.ndarray, *, skip: int, centre: np.ndarray) -> np.ndarray:
    """Sums of one trial for `single_trial_values`: frames, p, t, p p, t t, p t; (6, neuron) float64.

    Args:
      prediction, target: (time, neuron).
      skip: frames at the start that don't count.
      centre: (neuron,) taken off both first; any value near the mean.
    """
    p, t = (np.asarray(x, np.float64)[skip:] - centre for x in (prediction, target))
    if p.shape != t.shape or not len(t):
        raise NeuroreconError(
            f"prediction: expected more than {skip} frames, as many as the target, found {np.shape(prediction)} "
            f"and {np.shape(target)}"
        )
    return _pairs(p, t)


def repeat_sums(responses: np.ndarray, prediction: np.ndarray, *, centre: np.ndarray) -> np.ndarray:
    """Sums of one movie for `average_values`, `fev_values` and `feve_values`; (11, neuron) float64.

    First those of `trial_sums` with the mean over repeats as the target, then: number of responses, r, r r, the
    variance over repeats (ddof 1) summed over frames, and (r - p)^2.

    Args:
      responses: (repeat, time, neuron), at least two repeats.
      prediction: (time, neuron), or one for each repeat (behaviour differs): their mean over repeats counts.
      centre: (neuron,) taken off first.
    """
    r = np.asarray(responses, np.float64) - centre
    p = np.asarray(prediction, np.float64) - centre
    p = p.mean(0) if p.ndim == 3 else p
    if r.ndim != 3 or len(r) < 2 or r.shape[1:] != p.shape:
        raise NeuroreconError(
            f"responses: expected (repeat, time, neuron) with two repeats or more, found {np.shape(responses)} and "
            f"predictions {np.shape(prediction)}"
        )
    count = np.full(r.shape[2], float(r.shape[0] * r.shape[1]))
    rest = [count, r.sum((0, 1)), (r * r).sum((0, 1)), r.var(0, ddof=1).sum(0), ((r - p) ** 2).sum((0, 1))]
    return np.concatenate([_pairs(p, r.mean(0)), rest])


def single_trial_values(sums: np.ndarray) -> np.ndarray:
    """`neuron_correlations` from `trial_sums` added over clips; (..., 6, neuron) -> (..., neuron)."""
    n, p, t, pp, tt, pt = np.moveaxis(np.asarray(sums), -2, 0)[:6]
    spread = [np.sqrt(np.maximum(xx / n - (x / n) ** 2, 0.0)) + EPSILON for x, xx in ((p, pp), (t, tt))]
    return (pt / n - p * t / n**2) / (spread[0] * spread[1])


def average_values(sums: np.ndarray) -> np.ndarray:
    """`correlation_to_average` from `repeat_sums`; (..., 11, neuron) -> (..., neuron)."""
    return single_trial_values(sums)


def fev_values(sums: np.ndarray) -> np.ndarray:
    """`fraction_explainable_variance` from `repeat_sums`; NaN for a neuron that never answers."""
    total, noise, _ = _variances(sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total - noise) / total


def feve_values(sums: np.ndarray) -> np.ndarray:
    """`fraction_explainable_variance_explained` from `repeat_sums`; (..., 11, neuron) -> (..., neuron)."""
    total, noise, error = _variances(sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - (error - noise) / (total - noise)


def resampled_score(
    animals: Sequence[np.ndarray],
    values: Callable[[np.ndarray], np.ndarray],
    *,
    seed: int,
    num_samples: int = 1000,
    neurons: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Mean over all neurons of all animals: of the clips as they are, then of resampled ones; (1 + num_samples,).

    Clips are drawn with replacement within each animal; the animals stay. Calls with one seed and the same numbers of
    clips draw the same ones, so the results of two predictors may be subtracted or divided, element by element.

    Args:
      animals: (clip, sum, neuron) of each.
      values: from added sums (..., sum, neuron) to scores (..., neuron).
      seed: of the draws.
      num_samples: resamplings.
      neurons: for each animal, which ones count, (neuron,) bool; all by default.

    Raises:
      NeuroreconError: no animal, clip or neuron.
    """
    if not animals or any(a.ndim != 3 or 0 in a.shape for a in animals):
        raise NeuroreconError(f"animals: expected sums (clip, sum, neuron), found {[np.shape(a) for a in animals]}")
    rng = np.random.default_rng(seed)
    total, count = np.zeros(1 + num_samples), 0
    for index, sums in enumerate(animals):
        clips = len(sums)
        drawn = rng.multinomial(clips, np.full(clips, 1 / clips), size=num_samples)
        times = np.concatenate([np.ones((1, clips)), drawn])
        kept = sums if neurons is None else sums[:, :, neurons[index]]
        if not kept.shape[2]:
            continue
        count += kept.shape[2]
        flat = kept.reshape(clips, -1)
        step = max(1, CHUNK // max(flat.shape[1], 1))
        for first in range(0, len(times), step):
            added = (times[first : first + step] @ flat).reshape(-1, *kept.shape[1:])
            total[first : first + step] += values(added).sum(-1)
    if count == 0:
        raise NeuroreconError("neurons: expected at least one that counts, found none")
    return total / count


def interval(resampled: np.ndarray, *, num_clips: int, level: float = 0.95) -> dict[str, Any]:
    """What `resampled_score` found, as {"mean": m, "ci95": [low, high]}; NaN limits where there is one clip only."""
    tails = ((1 - level) / 2, (1 + level) / 2)
    low, high = np.quantile(resampled[1:], tails) if num_clips > 1 else (np.nan, np.nan)
    return {"mean": float(resampled[0]), "ci95": [float(low), float(high)]}


def _pairs(p: np.ndarray, t: np.ndarray) -> np.ndarray:
    count = np.full(t.shape[1], float(len(t)))
    return np.stack([count, p.sum(0), t.sum(0), (p * p).sum(0), (t * t).sum(0), (p * t).sum(0)])


def _variances(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Total variance (ddof 1), noise variance and mean squared error, each (..., neuron)."""
    images, count, r, rr, noise, error = (np.asarray(sums)[..., k, :] for k in (0, 6, 7, 8, 9, 10))
    return (rr - r * r / count) / (count - 1), noise / images, error / count
