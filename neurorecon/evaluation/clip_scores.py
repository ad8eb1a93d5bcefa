"""Scores of clips under several conditions: their means, their paired differences, and what they go along with.

A score is kept under (animal, trial), so that conditions are compared on the same clips whatever their order.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import pearsonr

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.bootstrap import Interval, bootstrap_hierarchical

Scores = Mapping[tuple[str, str], float]
FEW_CLIPS = 10  # below: intervals from resampling are too narrow, and a correlation over clips says little


def mean_scores(scores: Sequence[Scores]) -> dict[tuple[str, str], float]:
    """The mean of several scores of each clip: draws, subsets.

    Raises:
      NeuroreconError: none, or of different clips.
    """
    if not scores or any(set(s) != set(scores[0]) for s in scores):
        raise NeuroreconError("scores: expected at least one set of scores, all of the same clips, found others")
    return {clip: float(np.mean([s[clip] for s in scores])) for clip in scores[0]}


def score_interval(scores: Scores, *, seed: int = 0) -> Interval:
    """Mean with its 95 % bootstrap interval over clips, or over animals and then their clips.

    Raises:
      NeuroreconError: no scores, or one that is not finite.
    """
    animals: dict[str, list[float]] = {}
    for (animal, _), value in scores.items():
        animals.setdefault(animal, []).append(value)
    return bootstrap_hierarchical(animals, seed=seed)


def paired_difference(a: Scores, b: Scores, *, seed: int = 0) -> Interval:
    """Mean of a - b over the same clips with its 95 % interval; clips are resampled together.

    Raises:
      NeuroreconError: the clips differ, there are none, or a score is not finite.
    """
    if set(a) != set(b):
        raise NeuroreconError(f"scores: expected the same clips in both, found {len(set(a) ^ set(b))} in one alone")
    return score_interval({clip: a[clip] - b[clip] for clip in a}, seed=seed)


def correlation_interval(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> Interval:
    """Pearson correlation over clips with its 95 % interval by Fisher's transform, which stays honest with few clips.

    Returns:
      NaN throughout where either is constant; NaN limits with fewer than four clips.

    Raises:
      NeuroreconError: unequal lengths, fewer than two values, or values that are not finite.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise NeuroreconError(f"correlation: expected two equal numbers of finite values, found {x.shape}, {y.shape}")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    result = pearsonr(x, y)
    if len(x) < 4:
        return Interval(float(result.statistic), float("nan"), float("nan"))
    limits = result.confidence_interval(0.95)
    return Interval(float(result.statistic), float(limits.low), float(limits.high))


def interval_text(interval: Interval, digits: int = 3) -> str:
    """Such as "0.714 [0.683, 0.744]"; without limits where there are none."""
    if not np.isfinite(interval.low):
        return f"{interval.mean:.{digits}f}"
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def clip_count(scores: Scores) -> str:
    """Such as "4 clips", with a warning where they are few, for the end of a finding."""
    few = "; with so few, intervals are too narrow" if 1 < len(scores) < FEW_CLIPS else ""
    return f"{len(scores)} clip{'s' * (len(scores) != 1)}{few}"


def difference_text(interval: Interval, digits: int = 3) -> str:
    """Such as "+0.021 [0.010, 0.033]", and whether the interval leaves the sign open."""
    text = interval_text(interval, digits)
    text = text if interval.mean < 0 else f"+{text}"
    if np.isfinite(interval.low) and interval.low <= 0 <= interval.high:
        text += " (no difference that these clips can show)"
    return text
