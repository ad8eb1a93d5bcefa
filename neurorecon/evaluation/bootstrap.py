"""Confidence intervals by resampling clips, or animals and then their clips.

With one value there is nothing to resample: mean and [nan, nan], not an interval of width 0. Intervals from
fewer than about ten values are too narrow whatever the method; say how many there were.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from neurorecon.errors import NeuroreconError

# Resampled values held at once; bounds the memory, not the result.
CHUNK = 4_000_000


class Interval(NamedTuple):
    """A statistic with its confidence interval; `low` and `high` are NaN where there was one value only."""

    mean: float
    low: float
    high: float


def bootstrap_mean(
    values: Sequence[float] | np.ndarray,
    *,
    seed: int,
    num_samples: int = 10_000,
    level: float = 0.95,
    method: str = "percentile",
) -> Interval:
    """Mean over clips with its bootstrap interval.

    Args:
      values: (clip,).
      seed: the same seed and values give the same interval.
      num_samples: resamplings.
      level: share of the resampled means inside the interval.
      method: "percentile", or "bca" (bias-corrected and accelerated, Efron 1987), better for skewed values.

    Raises:
      NeuroreconError: no values, NaN or infinity among them, or arguments out of range.
    """
    values = _checked("values", values)
    return _bootstrap(values[:, None], lambda m: m[..., 0], seed, num_samples, level, method)


def bootstrap_difference(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    *,
    seed: int,
    num_samples: int = 10_000,
    level: float = 0.95,
    method: str = "percentile",
) -> Interval:
    """mean(a) - mean(b) for two conditions on the same clips, which are resampled together.

    Arguments and errors as `bootstrap_mean`; a and b (clip,) in the same order.
    """
    pairs = _checked_pairs(a, b)
    return _bootstrap(pairs, lambda m: m[..., 0] - m[..., 1], seed, num_samples, level, method)


def bootstrap_ratio(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    *,
    seed: int,
    num_samples: int = 10_000,
    level: float = 0.95,
    method: str = "percentile",
) -> Interval:
    """mean(a) / mean(b) for two conditions on the same clips, which are resampled together.

    Arguments and errors as `bootstrap_mean`; also an error where mean(b) is not above 0, in the data or in
    a resampling: a ratio to something that may be 0 has no interval.
    """
    pairs = _checked_pairs(a, b)

    def ratio(means: np.ndarray) -> np.ndarray:
        if not (means[..., 1] > 0).all():
            raise NeuroreconError("b: expected a mean clearly above 0, found one that may not be; use the difference")
        return means[..., 0] / means[..., 1]

    return _bootstrap(pairs, ratio, seed, num_samples, level, method)


def bootstrap_hierarchical(
    values: Mapping[str, Sequence[float] | np.ndarray],
    *,
    seed: int,
    num_samples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Mean over animals of their means over clips; animals are resampled, then the clips of each one drawn.

    With one animal only its clips are resampled (the interval says nothing of other animals then).

    Args:
      values: animal -> (clip,).
      seed, num_samples, level: as in `bootstrap_mean`; percentile interval.

    Raises:
      NeuroreconError: as `bootstrap_mean`, for each animal.
    """
    _check_arguments(num_samples, level)
    if not values:
        raise NeuroreconError("values: expected at least one animal, found none")
    groups = [_checked(f"values[{name}]", v) for name, v in values.items()]
    mean = float(np.mean([g.mean() for g in groups]))
    if len(groups) == 1:
        return bootstrap_mean(groups[0], seed=seed, num_samples=num_samples, level=level)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(groups), size=(num_samples, len(groups)))
    means = np.empty(drawn.shape)
    for i, group in enumerate(groups):
        where = drawn == i  # each time the animal is drawn, its clips are drawn anew
        means[where] = _resampled_means(group[:, None], rng, int(where.sum()))[:, 0]
    return Interval(mean, *_percentiles(means.mean(axis=1), level))


def summarise(clips: Mapping[str, Sequence[float] | np.ndarray], *, seed: int) -> dict[str, object]:
    """`bootstrap_hierarchical` as the report wants it: {"mean": m, "ci95": [low, high]}."""
    mean, low, high = bootstrap_hierarchical(clips, seed=seed)
    return {"mean": mean, "ci95": [low, high]}


def _bootstrap(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    seed: int,
    num_samples: int,
    level: float,
    method: str,
) -> Interval:
    """Interval of a statistic of the column means of values (clip, condition)."""
    _check_arguments(num_samples, level)
    if method not in ("percentile", "bca"):
        raise NeuroreconError(f'method: expected "percentile" or "bca", found "{method}"')
    estimate = float(statistic(values.mean(axis=0)))
    if len(values) == 1:
        return Interval(estimate, float("nan"), float("nan"))
    resampled = statistic(_resampled_means(values, np.random.default_rng(seed), num_samples))
    if method == "percentile":
        return Interval(estimate, *_percentiles(resampled, level))
    jackknife = statistic((values.sum(axis=0) - values) / (len(values) - 1))
    return Interval(estimate, *_bca(resampled, estimate, jackknife, level))


def _resampled_means(values: np.ndarray, rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """Column means of `num_samples` resamplings of the rows, (sample, condition)."""
    means = np.empty((num_samples, values.shape[1]))
    step = max(1, CHUNK // values.size)
    for start in range(0, num_samples, step):
        stop = min(start + step, num_samples)
        means[start:stop] = values[rng.integers(len(values), size=(stop - start, len(values)))].mean(axis=1)
    return means


def _percentiles(resampled: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _bca(resampled: np.ndarray, estimate: float, jackknife: np.ndarray, level: float) -> tuple[float, float]:
    if np.ptp(resampled) == 0:
        return float(resampled[0]), float(resampled[0])
    # Ties count half; kept off 0 and 1, whose normal quantiles are infinite.
    below = (np.mean(resampled < estimate) + np.mean(resampled <= estimate)) / 2
    bias = norm.ppf(np.clip(below, 0.5 / len(resampled), 1 - 0.5 / len(resampled)))
    deviations = jackknife.mean() - jackknife
    spread = (deviations**2).sum() ** 1.5
    acceleration = (deviations**3).sum() / (6 * spread) if spread > 0 else 0.0
    z = bias + norm.ppf([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(resampled, norm.cdf(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def _checked(name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or array.size == 0:
        raise NeuroreconError(f"{name}: expected at least one value, one axis, found shape {array.shape}")
    if not np.isfinite(array).all():
        raise NeuroreconError(f"{name}: expected finite values, found {int((~np.isfinite(array)).sum())} that are not")
    return array


def _checked_pairs(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> np.ndarray:
    a, b = _checked("a", a), _checked("b", b)
    if len(a) != len(b):
        raise NeuroreconError(f"b: expected one value for each of the {len(a)} clips of a, found {len(b)}")
    return np.stack([a, b], axis=1)


def _check_arguments(num_samples: int, level: float) -> None:
    if num_samples < 1 or not 0 < level < 1:
        raise NeuroreconError(f"level, num_samples: expected in (0, 1) and at least 1, found {level}, {num_samples}")
