"""Response losses: (prediction, target) -> one value per element, and the masked reductions that sum them up.

Every function takes arrays (..., time, neuron) and returns the same shape, so that a user's own composes with ours.
Those that know something of the neurons hold it as a `jax.tree_util.Partial`: a descent compiled for one animal then
serves the next one of equal shape.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from neurorecon.reconstruction.noise import ResponseNoise

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
    order = noise.predictors.shape[1]
    variance = noise.dispersion * (jax.lax.stop_gradient(prediction) + noise.floor)
    residual = (prediction - target) / jnp.sqrt(variance)
    known = jnp.minimum(jnp.arange(residual.shape[-2]), order)  # residuals before each frame
    news = residual
    for lag in range(1, order + 1):
        before = jnp.roll(residual, lag, axis=-2)
        # Rows of `predictors` hold zeros where there is nothing before, so what rolls around doesn't count.
        news = news - jnp.asarray(noise.predictors)[known, lag - 1] * before
    return 0.5 * (news / jnp.asarray(noise.innovation_std)[known]) ** 2


def gamma(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Gamma negative log-likelihood at shape 1 without its constant, log p + y / p: noise in proportion to the mean."""
    floor = prediction + 1e-3  # predictions near zero would weigh without bound
    return jnp.log(floor) + target / floor


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
        name: jnp.where(counts, function(prediction, target) * weights, 0.0).sum() / norm
        for name, (_, function) in losses.items()
    }
    return jnp.asarray(sum(weight * terms[name] for name, (weight, _) in losses.items())), terms
