"""Response losses: (prediction, target) -> one value per element, and the masked reductions that sum them up.

Every function takes arrays (..., time, neuron) and returns the same shape, so that a user's own composes with ours.
Those that know something of the neurons hold it as a `jax.tree_util.Partial`: a descent compiled for one animal then
serves the next one of equal shape.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from neurorecon.reconstruction.noise import ResponseNoise
from neurorecon.reconstruction.response_distributions import GammaWithZeros, NegativeBinomial, SharedGain

ResponseLoss = Callable[[jax.Array, jax.Array], jax.Array]


def poisson(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Poisson negative log-likelihood without its constant, p - y log(p + 1e-8), as published (Bauer et al. 2026).

    The 1e-8 keeps the logarithm finite where a prediction underflows to zero.
    """
    return prediction - target * jnp.log(prediction + 1e-8)


def squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """(p - y) squared."""
    return (prediction - target) ** 2


def quasi_poisson(dispersion: jax.Array) -> ResponseLoss:
    """Poisson loss divided by each neuron's dispersion, (neuron,): its residual variance over its mean response.

    Quasi-likelihood for a variance in proportion to the mean (Wedderburn 1974). Calcium responses have units of their
    own and noise beyond Poisson's; the plain loss lets the neurons of large units and large noise decide.
    """
    return Partial(_quasi_poisson, dispersion)


def _quasi_poisson(dispersion: jax.Array, prediction: jax.Array, target: jax.Array) -> jax.Array:
    return poisson(prediction, target) / dispersion


def gaussian(residual_std: jax.Array) -> ResponseLoss:
    """Gaussian negative log-likelihood with a standard deviation per neuron, (neuron,), measured on training trials."""
    return Partial(_gaussian, residual_std)


def _gaussian(residual_std: jax.Array, prediction: jax.Array, target: jax.Array) -> jax.Array:
    return 0.5 * ((prediction - target) / residual_std) ** 2


def autoregressive(noise: ResponseNoise) -> ResponseLoss:
    """Weighs residuals by how much news they are: variance in proportion to the mean, correlated over frames.

    Generalised estimating equations (Liang & Zeger 1986): the gradient is J^T V^-1/2 R^-1 V^-1/2 (p - y), with
    V = dispersion * (p + floor) and R the correlation over time that `noise` describes. V is held fixed in the
    gradient, as in every quasi-likelihood. Frames must be those `noise` was fitted for, in order.
    """
    return Partial(_autoregressive, noise)


def _autoregressive(noise: ResponseNoise, prediction: jax.Array, target: jax.Array) -> jax.Array:
    variance = noise.dispersion * (jax.lax.stop_gradient(prediction) + noise.floor)
    return 0.5 * _news(noise, (prediction - target) / jnp.sqrt(variance)) ** 2


def _news(noise: ResponseNoise, residual: jax.Array) -> jax.Array:
    """What each standardised residual (..., time, neuron) tells beyond those before it, of variance 1."""
    order = noise.predictors.shape[1]
    known = jnp.minimum(jnp.arange(residual.shape[-2]), order)  # residuals before each frame
    news = residual
    for lag in range(1, order + 1):
        before = jnp.roll(residual, lag, axis=-2)
        # Rows of `predictors` hold zeros where there is nothing before, so what rolls around doesn't count.
        news = news - jnp.asarray(noise.predictors)[known, lag - 1] * before
    return news / jnp.asarray(noise.innovation_std)[known]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["function"], meta_fields=["period"])
@dataclasses.dataclass(frozen=True, eq=False)
class AcrossNeurons:
    """A response loss that puts neurons together, and so has to know which elements count.

    Attributes:
      function: (period, prediction, target, counts) -> one value per element; counts is bool.
      period: frames, compiled in, since shapes depend on it.
    """

    function: Callable[..., jax.Array]
    period: int

    def __call__(self, prediction: jax.Array, target: jax.Array, counts: jax.Array | None = None) -> jax.Array:
        counts = jnp.ones(prediction.shape, bool) if counts is None else counts
        return self.function(self.period, prediction, target, counts)


def autoregressive_gain(noise: ResponseNoise, gain: SharedGain) -> ResponseLoss:
    """`autoregressive` with a slow gain that neurons share, marginalised: gain changes need no change of the movie.

    y = p (1 + loading g) + noise, g Gaussian with covariance K, so that residuals have the covariance D + L K L^T. The
    gradient is J^T (D + L K L^T)^-1 (p - y), by Woodbury's identity J^T D^-1 (p - y + L g) with g the posterior mean
    (the modulated model of Goris, Movshon & Simoncelli 2014 by its first two moments). g is spanned by cosines of
    `gain.period` frames and longer, so that only a small system is solved. D and L are held fixed in the gradient, as
    in every quasi-likelihood.
    """
    return AcrossNeurons(Partial(_autoregressive_gain, noise, *gain[:3]), gain.period)


def _autoregressive_gain(
    noise: ResponseNoise,
    loading: jax.Array,
    variance: jax.Array,
    decay: jax.Array,
    period: int,
    prediction: jax.Array,
    target: jax.Array,
    counts: jax.Array,
) -> jax.Array:
    if prediction.ndim > 2:
        one = functools.partial(_autoregressive_gain, noise, loading, variance, decay, period)
        return jax.vmap(one)(prediction, target, counts)
    fixed = jax.lax.stop_gradient(prediction)
    std = jnp.sqrt(noise.dispersion * (fixed + noise.floor))
    slope = jnp.where(counts, fixed * loading / std, 0.0)
    news = _news(noise, jnp.where(counts, (prediction - target) / std, 0.0))
    num_frames = prediction.shape[0]
    basis = slow_cosines(num_frames, period, prediction.dtype)
    seen = jax.vmap(lambda course: _news(noise, slope * course[:, None]))(basis)
    lags = jnp.abs(jnp.arange(num_frames)[:, None] - jnp.arange(num_frames))
    covariance = basis @ (variance * decay**lags) @ basis.T
    information = jnp.einsum("ktn,ltn->kl", seen, seen)
    projected = jnp.einsum("ktn,tn->k", seen, jax.lax.stop_gradient(news))
    # (K^-1 + A)^-1 b without K^-1, which is large where a cosine is fast.
    found = -covariance @ jnp.linalg.solve(jnp.eye(len(basis), dtype=basis.dtype) + information @ covariance, projected)
    return 0.5 * news * (news + jnp.einsum("ktn,k->tn", seen, found)) + 0.5 * (
        (news - jax.lax.stop_gradient(news)) * jnp.einsum("ktn,k->tn", seen, found)
    )


def slow_cosines(num_frames: int, period: int, dtype: Any = jnp.float32) -> jax.Array:
    """(cosine, frame) orthonormal, of no shorter period than `period` frames; the first is constant."""
    count = min(num_frames, 1 + 2 * num_frames // max(period, 1))
    k, t = jnp.arange(count)[:, None], jnp.arange(num_frames)[None] + 0.5
    scale = jnp.where(k == 0, 1.0, jnp.sqrt(2.0)) / jnp.sqrt(float(num_frames))
    return (scale * jnp.cos(jnp.pi * k * t / num_frames)).astype(dtype)


def negative_binomial(parameters: NegativeBinomial) -> ResponseLoss:
    """Negative binomial negative log-likelihood of responses in units of their own, without its constant.

    y / d counts with mean m = p / d and variance m + c m^2: log(1 + c m) / c - (y / d) log(m / (1 + c m)). Its gradient
    is (p - y) / (d p + c p^2) (McCullagh & Nelder 1989). The floor is added to both p and y, so that the optimum stays.
    """
    return Partial(_negative_binomial, parameters)


def _negative_binomial(parameters: NegativeBinomial, prediction: jax.Array, target: jax.Array) -> jax.Array:
    mean = (prediction + parameters.floor) / parameters.dispersion
    count = (target + parameters.floor) / parameters.dispersion
    excess = jnp.log1p(parameters.curvature * mean)
    return excess / parameters.curvature - count * (jnp.log(mean) - excess)


def gamma_with_zeros(parameters: GammaWithZeros) -> ResponseLoss:
    """Negative log-likelihood of a gamma distribution with a mass at zero that grows as the mean falls.

    P(0) = exp(-r), r = ((p + floor) / scale)^exponent; above zero a gamma distribution of mean (p + floor) / (1 - P(0))
    (after the zero-inflated gamma of Wei, Zhou, Grosmark et al. 2020, whose mass at zero is free; here the mean sets
    it). Without the responses' constant: it compares predictions.
    """
    return Partial(_gamma_with_zeros, parameters)


def _gamma_with_zeros(parameters: GammaWithZeros, prediction: jax.Array, target: jax.Array) -> jax.Array:
    mean = prediction + parameters.floor
    rate = jnp.exp(parameters.exponent * (jnp.log(mean) - jnp.log(parameters.scale)))
    log_some = jnp.log(-jnp.expm1(-rate))
    log_above = jnp.log(mean) - log_some  # of the mean of what is above zero
    above = parameters.shape * (log_above + (target + parameters.floor) * jnp.exp(-log_above)) - log_some
    return jnp.where(target <= parameters.threshold, rate, above)


def gamma(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Gamma negative log-likelihood at shape 1 without its constant, log p + y / p: noise in proportion to the mean."""
    floor = prediction + 1e-3  # predictions near zero would weigh without bound
    return jnp.log(floor) + target / floor


def scaled(loss: ResponseLoss, scale: float) -> ResponseLoss:
    """The loss times a number that is an argument of the compiled descent, unlike a recipe's weights."""
    value = np.asarray(scale, np.float32)
    if isinstance(loss, AcrossNeurons):
        return AcrossNeurons(Partial(_scaled, value, loss.function), loss.period)
    return Partial(_scaled, value, loss)


def _scaled(scale: jax.Array, loss: Callable[..., jax.Array], *arguments: jax.Array) -> jax.Array:
    return scale * loss(*arguments)


def combine(
    losses: Mapping[str, tuple[float, ResponseLoss]],
    prediction: jax.Array,
    target: jax.Array,
    weights: jax.Array,
    *,
    mean: bool,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted sum of named losses, reduced over all elements where `weights` count.

    Args:
      losses: name -> (weight, function).
      prediction, target: (..., time, neuron).
      weights: broadcast to the same shape; 0 leaves an element out, whatever its target is.
      mean: divide by the sum of the weights, in place of a plain sum.

    Returns:
      () the total and the () value of every term before its weight.
    """
    weights = jnp.broadcast_to(weights, prediction.shape).astype(prediction.dtype)
    counts = weights > 0
    # Elements left out take part with harmless values: in the gradient, 0 * inf would be NaN.
    prediction, target = jnp.where(counts, prediction, 1.0), jnp.where(counts, target, 1.0)
    norm = jnp.maximum(weights.sum(), 1e-12) if mean else 1.0
    terms = {
        name: jnp.where(counts, _per_element(function, prediction, target, counts) * weights, 0.0).sum() / norm
        for name, (_, function) in losses.items()
    }
    return jnp.asarray(sum(weight * terms[name] for name, (weight, _) in losses.items())), terms


def _per_element(function: ResponseLoss, prediction: jax.Array, target: jax.Array, counts: jax.Array) -> jax.Array:
    if isinstance(function, AcrossNeurons):
        return function(prediction, target, counts)
    return function(prediction, target)
