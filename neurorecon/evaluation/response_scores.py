"""What is told of predicted responses: scores of each predictor, of ensembles of each size, and differences, with
intervals over clips.

From the sums of `response_intervals`; every score draws the same clips, so that differences and ratios are paired.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.repeat_metrics import FEV_THRESHOLD
from neurorecon.evaluation.response_intervals import (
    average_values,
    fev_values,
    feve_values,
    interval,
    resampled_score,
    single_trial_values,
)

SEED = 0  # of the bootstrap: the same scores give the same intervals
SINGLE_TRIAL = "single_trial_correlation"
REPEATED = ("correlation_to_average", "feve")


@dataclasses.dataclass(frozen=True)
class ResponseSums:
    """Sums of one animal's clips, from which every score follows.

    Attributes:
      trials: predictor -> (clip, 6, neuron), of `trial_sums`.
      repeats: predictor -> (clip, 11, neuron), of `repeat_sums`; empty where no movie is shown again.
      subsets: numbers of the encoders that are averaged -> (clip, 6, neuron).
    """

    trials: Mapping[str, np.ndarray]
    repeats: Mapping[str, np.ndarray]
    subsets: Mapping[tuple[int, ...], np.ndarray]


def ensemble_subsets(num_models: int, *, seed: int = SEED, most: int = 8) -> list[tuple[int, ...]]:
    """Subsets of 1, 2, 4, ... and of all models: every one of a size, or `most` different ones drawn by the seed.

    Raises:
      NeuroreconError: no model.
    """
    if num_models < 1:
        raise NeuroreconError(f"num_models: expected at least 1, found {num_models}")
    rng = np.random.default_rng(seed)
    found: list[tuple[int, ...]] = []
    for size in sorted({2**k for k in range(num_models.bit_length()) if 2**k < num_models} | {num_models}):
        if math.comb(num_models, size) <= most:
            found += itertools.combinations(range(num_models), size)
            continue
        drawn: set[tuple[int, ...]] = set()
        while len(drawn) < most:
            drawn.add(tuple(sorted(rng.choice(num_models, size, replace=False).tolist())))
        found += sorted(drawn)
    return found


def resampled_correlations(animals: Sequence[ResponseSums], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Predictor -> single-trial correlation of the clips as they are and of resampled ones, as `resampled_score`."""
    return {n: resampled_score([a.trials[n] for a in animals], single_trial_values, seed=SEED) for n in names}


def predictor_scores(
    animals: Sequence[ResponseSums], correlations: Mapping[str, np.ndarray], main: str
) -> dict[str, Any]:
    """Score -> predictor -> mean over all neurons of the animals, and interval.

    Args:
      animals: sums of each.
      correlations: from `resampled_correlations`; its predictors are scored.
      main: the predictor whose repeats say which neurons have a fraction to explain; the responses are the same in all.
    """
    clips = sum(len(a.trials[main]) for a in animals)
    found: dict[str, Any] = {SINGLE_TRIAL: {n: interval(c, num_clips=clips) for n, c in correlations.items()}}
    repeated = [a.repeats for a in animals if a.repeats]
    if not repeated:
        return found
    clips = sum(len(r[main]) for r in repeated)
    # Neurons that the stimulus hardly drives have no fraction to explain; NaN, of those that never answer, is none.
    explainable = [fev_values(r[main].sum(0)) >= FEV_THRESHOLD for r in repeated]
    found |= {name: {} for name in REPEATED}
    for name in correlations:
        sums = [r[name] for r in repeated]
        found["correlation_to_average"][name] = interval(
            resampled_score(sums, average_values, seed=SEED), num_clips=clips
        )
        if any(e.any() for e in explainable):
            score = resampled_score(sums, feve_values, seed=SEED, neurons=explainable)
            found["feve"][name] = interval(score, num_clips=clips)
    found["explainable_neurons"] = int(sum(e.sum() for e in explainable))
    return found


def compared(
    correlations: Mapping[str, np.ndarray],
    main: str,
    how: Callable[[np.ndarray, np.ndarray], np.ndarray],
    others: Sequence[str],
    *,
    num_clips: int,
) -> dict[str, Any]:
    """Other predictor -> `how(main, other)` of the single-trial correlations, paired, mean and interval."""
    return {
        n: interval(how(correlations[main], correlations[n]), num_clips=num_clips) for n in others if n in correlations
    }


def ensemble_scores(animals: Sequence[ResponseSums]) -> list[dict[str, Any]]:
    """Single-trial correlation of ensembles of each size, mean over the subsets of that size; smallest first.

    Returns:
      For each size {"models", "subsets" (number of them), "mean", "ci95" over clips, "over_one": what it is above one
      model, paired}.
    """
    clips = sum(len(next(iter(a.subsets.values()))) for a in animals)
    by_size: dict[int, list[np.ndarray]] = {}
    for subset in animals[0].subsets:
        score = resampled_score([a.subsets[subset] for a in animals], single_trial_values, seed=SEED)
        by_size.setdefault(len(subset), []).append(score)
    means = {size: np.mean(scores, axis=0) for size, scores in sorted(by_size.items())}
    return [
        {
            "models": size,
            "subsets": len(by_size[size]),
            **interval(mean, num_clips=clips),
            "over_one": interval(mean - means[1], num_clips=clips),
        }
        for size, mean in means.items()
    ]


def neuron_scores(sums: ResponseSums, main: str) -> dict[str, np.ndarray]:
    """Score -> (predictor, neuron), with `predictors` naming the rows, and `fev` (neuron,) where movies repeat."""
    names = list(sums.trials)
    arrays = {"predictors": np.array(names)}
    arrays[SINGLE_TRIAL] = np.stack([single_trial_values(sums.trials[n].sum(0)) for n in names])
    if sums.repeats:
        added = {n: sums.repeats[n].sum(0) for n in names}
        arrays["correlation_to_average"] = np.stack([average_values(added[n]) for n in names])
        arrays["feve"] = np.stack([feve_values(added[n]) for n in names])
        arrays["fev"] = fev_values(added[main])
    return arrays
