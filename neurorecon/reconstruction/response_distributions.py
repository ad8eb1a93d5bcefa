"""Fits the response distributions of `losses` to trials that encoders were not fitted to, neuron by neuron.

Few such trials are held out, so single neurons' estimates are noise as much as neurons: each is drawn towards the
population by as much as it varies over the trials (empirical Bayes, Efron & Morris 1975; sampling variances by the
jackknife over trials, which frames' correlation in time can't deceive).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction.noise import ResponseNoise, check_trials, fit_noise

Trials = Sequence[np.ndarray]
LEAST = 1e-3  # of a parameter's population value: none becomes zero


class NegativeBinomial(NamedTuple):
    """Variance = dispersion * mean + curvature * mean^2.

    Attributes:
      dispersion: (neuron,) in the responses' units, above 0.
      curvature: (neuron,) squared coefficient of variation of a gain, above 0.
      floor: (neuron,) added to the predicted mean, so that a prediction of zero is not taken as certain.
    """

    dispersion: np.ndarray
    curvature: np.ndarray
    floor: np.ndarray


class GammaWithZeros(NamedTuple):
    """No response at all with probability exp(-(mean / scale)^exponent), otherwise gamma distributed.

    Attributes:
      scale: (neuron,) mean response at which 1 / e of the frames are silent.
      exponent: (neuron,) above 0, at most 1.
      shape: (neuron,) of the gamma distribution of what is above zero.
      floor: (neuron,) added to the predicted mean.
      threshold: (neuron,) responses up to it count as zero.
    """

    scale: np.ndarray
    exponent: np.ndarray
    shape: np.ndarray
    floor: np.ndarray
    threshold: np.ndarray


class SharedGain(NamedTuple):
    """A slow gain that neurons share: response = mean * (1 + loading * g) + noise, g an Ornstein-Uhlenbeck process.

    Attributes:
      loading: (neuron,), about 1.
      variance: () of g.
      decay: () correlation of g between two frames that an encoder looks at.
      period: the shortest that g may have, in frames that an encoder looks at.
    """

    loading: np.ndarray
    variance: np.ndarray
    decay: np.ndarray
    period: int


def fit_negative_binomial(predictions: Trials, responses: Trials, *, floor: float = 0.05) -> NegativeBinomial:
    """Moments: squared residuals regressed on the mean with weights 1 / mean; the total variance is kept.

    Args:
      predictions, responses: (time, neuron) of each trial, without the frames that encoders can't know.
      floor: share of a neuron's mean response that is added to every prediction.

    Raises:
      NeuroreconError: no trials, values that are not finite, or no neuron that responds.
    """
    check_trials("fit_negative_binomial", predictions, responses)
    mean, usable = _means(predictions)
    low = floor * mean
    sums = []
    for p, r in zip(predictions, responses):
        p = np.maximum(np.asarray(p, np.float64), 0.0) + low
        e2 = np.square(np.asarray(r, np.float64) + low - p)
        sums.append(np.stack([np.full(p.shape[1], len(p)), p.sum(0), (p**2).sum(0), e2.sum(0), (e2 / p).sum(0)]))

    def curvature(total: np.ndarray) -> np.ndarray:
        count, s1, s2, error, relative = total
        return (count * error - s1 * relative) / np.maximum(count * s2 - s1**2, 1e-12)

    total = np.sum(sums, 0)
    # Large residuals are rare and decide: what no neuron can have is cut before the population is looked at.
    found = np.clip(moderated(lambda kept: np.clip(curvature(kept), -2.0, 5.0), np.stack(sums), usable), LEAST, 5.0)
    own = total[3] / total[1]
    own = np.where(usable & (own > 0), own, np.median(own[usable & (own > 0)]))
    dispersion = own - found * total[2] / total[1]
    least = 0.1 * own  # some of the variance is never a gain's
    found = np.where(dispersion < least, (own - least) * total[1] / total[2], found)
    return NegativeBinomial(*(_narrow(x) for x in (np.maximum(dispersion, least), np.maximum(found, LEAST), low)))


def fit_gamma_with_zeros(
    predictions: Trials, responses: Trials, *, floor: float = 0.05, zero: float = 0.01
) -> GammaWithZeros:
    """Each neuron's scale makes its number of silent frames the expected one; its shape comes from moments.

    The exponent is the population's, by maximum likelihood over a grid.

    Args:
      predictions, responses, floor: as in `fit_negative_binomial`.
      zero: responses up to this share of a neuron's mean count as zero.

    Raises:
      NeuroreconError: as `fit_negative_binomial`.
    """
    check_trials("fit_gamma_with_zeros", predictions, responses)
    mean, usable = _means(predictions)
    low, threshold = floor * mean, zero * mean
    means = [np.maximum(np.asarray(p, np.float64), 0.0) + low for p in predictions]
    silent = [np.asarray(r) <= threshold for r in responses]
    counts = np.stack([s.sum(0) for s in silent]).astype(float)
    best = (np.inf, 0.0, np.zeros(0))
    for exponent in (0.2, 0.4, 0.6, 0.8, 1.0):
        powers = [(m / mean) ** exponent for m in means]

        def log_rate(kept: np.ndarray, powers: list[np.ndarray] = powers) -> np.ndarray:
            places = np.flatnonzero(kept[:, 0, 0] >= 0)
            return _log_rate([powers[i] for i in places], kept[places, 0].sum(0))

        rate = np.exp(moderated(log_rate, counts[:, None], usable, marked=True))
        loss = 0.0
        for power, s in zip(powers, silent):
            x = rate * power
            loss += np.where(s, x, -np.log(-np.expm1(-np.maximum(x, 1e-12)))).sum()
        if loss < best[0]:
            best = (loss, exponent, rate)
    _, exponent, rate = best
    sums = []
    for m, r, s in zip(means, responses, silent):
        above = m / -np.expm1(-rate * (m / mean) ** exponent)
        relative = np.where(s, 0.0, np.square((np.asarray(r, np.float64) + low) / above - 1.0))
        sums.append(np.stack([(~s).sum(0).astype(float), relative.sum(0)]))

    def log_shape(total: np.ndarray) -> np.ndarray:
        return -np.log(np.clip((total[1] + 1.0) / (total[0] + 1.0), 0.05, 20.0))

    shape = np.exp(moderated(log_shape, np.stack(sums), usable))
    scale = mean * rate ** (-1 / exponent)
    return GammaWithZeros(*(_narrow(x) for x in (scale, np.full(len(mean), exponent), shape, low, threshold)))


def _log_rate(powers: list[np.ndarray], silent: np.ndarray) -> np.ndarray:
    """log k with sum over frames of exp(-k power) = the silent frames; half a frame keeps it finite."""
    total = sum(len(p) for p in powers)
    wanted = np.clip(silent, 0.5, total - 0.5)
    low, high = np.full(silent.shape, -12.0), np.full(silent.shape, 12.0)
    for _ in range(30):
        middle = (low + high) / 2
        expected = sum(np.exp(-np.exp(middle) * p).sum(0) for p in powers)
        low, high = np.where(expected > wanted, middle, low), np.where(expected > wanted, high, middle)
    return (low + high) / 2


def fit_shared_gain(
    predictions: Trials,
    responses: Trials,
    *,
    frame_step: int,
    frame_rate: float = 30.0,
    shortest_seconds: float = 2.0,
    floor: float = 0.05,
) -> tuple[ResponseNoise, SharedGain]:
    """The gain from what residuals of different neurons have in common, and the noise that is left beside it.

    Products of a neuron with itself are left out, so that private noise gives no gain. Time constant and variance come
    from lags of a second and more: what is shared for less is mostly the encoders' error.

    Args:
      predictions, responses, floor: as in `fit_negative_binomial`.
      frame_step: distance of the frames that an encoder looks at.
      frame_rate: Hz.
      shortest_seconds: the gain has no shorter period.

    Raises:
      NeuroreconError: as `fit_noise`.
    """
    noise = fit_noise(predictions, responses, frame_step=frame_step, floor=floor)
    shortest = min(len(p) for p in predictions)
    lags = np.unique(np.linspace(frame_rate, max(frame_rate, min(5 * frame_rate, shortest // 2)), 9).astype(int))
    lags = lags[lags < shortest // 2]
    count = max(1, round(shortest_seconds * frame_rate / frame_step))
    num_neurons = len(noise.dispersion)
    if not len(lags):  # trials too short to tell a gain
        nothing = SharedGain(np.ones(num_neurons, np.float32), _narrow(1e-6), _narrow(0.5), count)
        return noise, nothing
    slopes, errors = [], []
    for p, r in zip(predictions, responses):
        p = np.maximum(np.asarray(p, np.float64), 0.0)
        variance = noise.dispersion * (p + noise.floor)
        slopes.append(p**2 / variance)  # information on the gain
        errors.append((np.asarray(r, np.float64) - p) * p / variance)
    products, norms = np.zeros(len(lags)), np.zeros(len(lags))
    for a, e in zip(slopes, errors):
        for i, lag in enumerate(lags):
            products[i] += e[lag:].sum(1) @ e[:-lag].sum(1) - np.sum(e[lag:] * e[:-lag])
            norms[i] += a[lag:].sum(1) @ a[:-lag].sum(1) - np.sum(a[lag:] * a[:-lag])
    covariance = products / np.maximum(norms, 1e-12)
    variance, seconds = _exponential(lags / frame_rate, covariance)
    # Loadings: each neuron's residual against the gain that all others show.
    sums = []
    for a, e in zip(slopes, errors):
        width = min(len(a), round(shortest_seconds * frame_rate))
        kernel = np.ones(width) / width
        e_all, a_all = e.sum(1), a.sum(1)
        smooth = np.convolve(e_all, kernel, "same") / (np.convolve(a_all, kernel, "same") + 1 / max(variance, 1e-6))
        sums.append(np.stack([smooth @ e, (smooth**2) @ a]))
    usable = np.sum(sums, 0)[1] > 0
    loading = moderated(lambda t: np.clip(t[0] / np.maximum(t[1], 1e-12), -3.0, 5.0), np.stack(sums), usable)
    typical = float(np.mean(loading[usable])) if usable.any() else 1.0
    loading = np.clip(loading / typical, 0.0, 3.0) if typical > 0.1 else np.ones(num_neurons)
    gain = SharedGain(_narrow(loading), _narrow(variance), _narrow(np.exp(-frame_step / (seconds * frame_rate))), count)
    adjusted = [
        p * (1 + loading * slow[:, None]) for p, slow in zip(predictions, _gains(slopes, errors, gain, frame_step))
    ]
    return fit_noise(adjusted, responses, frame_step=frame_step, floor=floor), gain


def _exponential(seconds: np.ndarray, covariance: np.ndarray) -> tuple[float, float]:
    """Variance and time constant of variance * exp(-lag / constant), least squares over a grid of constants."""
    best = (np.inf, 1e-6, 10.0)
    for constant in (2.0, 5.0, 10.0, 20.0, 50.0):
        course = np.exp(-seconds / constant)
        variance = max(float(course @ covariance / (course @ course)), 1e-6)
        error = float(np.sum((covariance - variance * course) ** 2))
        if error < best[0]:
            best = (error, variance, constant)
    return best[1], best[2]


def _gains(slopes: Trials, errors: Trials, gain: SharedGain, frame_step: int) -> list[np.ndarray]:
    """Posterior mean of the gain of each trial, (time,)."""
    found = []
    for a, e in zip(slopes, errors):
        num = len(a)
        lags = np.abs(np.subtract.outer(np.arange(num), np.arange(num))) / frame_step
        prior = float(gain.variance) * float(gain.decay) ** lags
        load = np.asarray(gain.loading, np.float64)
        information = (a @ load**2) / 10.0  # neighbouring frames say much the same
        found.append(prior @ np.linalg.solve(np.eye(num) + information[:, None] * prior, (e @ load) / 10.0))
    return found


def moderated(
    estimate: Callable[[np.ndarray], np.ndarray], sums: np.ndarray, usable: np.ndarray, *, marked: bool = False
) -> np.ndarray:
    """Estimates (neuron,) drawn towards the population by their sampling variance.

    Args:
      estimate: statistics summed over trials (statistic, neuron) -> (neuron,).
      sums: (trial, statistic, neuron).
      usable: (neuron,) bool; the others take the population's mean.
      marked: `estimate` takes all trials, those left out marked by -1, in place of the sum.
    """
    usable = usable if usable.any() else np.ones_like(usable)

    def of(kept: np.ndarray) -> np.ndarray:
        if marked:
            return estimate(np.where(kept[:, None, None], sums, -1.0))
        return estimate(sums[kept].sum(0))

    num = len(sums)
    full = of(np.ones(num, bool))
    mean = float(np.mean(full[usable]))
    if num < 2:
        return np.full(len(full), mean)
    jackknife = np.stack([of(np.arange(num) != left) for left in range(num)])
    sampling = (num - 1) / num * np.square(jackknife - jackknife.mean(0)).sum(0)
    # A neuron's own variance over few trials is noise too: half of it is the population's.
    sampling = 0.5 * sampling + 0.5 * float(np.mean(sampling[usable]))
    between = max(float(np.var(full[usable])) - float(np.mean(sampling[usable])), 0.0)
    share = between / np.maximum(between + sampling, 1e-12)
    return np.where(usable, mean + share * (full - mean), mean)


def _means(predictions: Trials) -> tuple[np.ndarray, np.ndarray]:
    mean = np.concatenate([np.asarray(p, np.float64) for p in predictions]).mean(0)
    usable = mean > 0
    if not usable.any():
        raise NeuroreconError("response distribution: every neuron's prediction is zero; check the encoder")
    return np.where(usable, mean, np.median(mean[usable])), usable


def _narrow(values: np.ndarray | float) -> np.ndarray:
    return np.asarray(values, np.float32)
