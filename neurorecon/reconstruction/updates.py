"""Update rules as optax transformations: the pieces of the published rule, and ours."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from neurorecon.reconstruction.parametrisations import cosine_transform, inverse_cosine_transform
from neurorecon.reconstruction.priors import smoothing_transfer


class PublishedMomentumState(NamedTuple):
    """State of `published_momentum`.

    Attributes:
      updates: () int, updates made.
      momentum: like the movie.
    """

    updates: jax.Array
    momentum: jax.Array


def published_momentum(
    learning_rate: float = 1000.0, *, decay: float = 0.9, second_decay: float = 0.999, warmup: int = 10
) -> optax.GradientTransformation:
    """The published rule (Bauer et al. 2026): Adam's first moment without its second, corrected for bias twice.

    Update i = 1, 2, ...: rate = learning_rate * min(1, i / warmup); m = 0.9 m + 0.1 g;
    step = rate * sqrt(1 - 0.999^(i+1)) / (1 - 0.9^(i+1))^2 * m. The exponents are i + 1 since the published loop counts
    a first iteration that updates nothing.
    """

    def init(params):
        return PublishedMomentumState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(gradient, state, params=None):
        del params
        i = state.updates + 1
        scale = published_step_size(
            i.astype(jax.tree.leaves(gradient)[0].dtype), learning_rate, decay, second_decay, warmup
        )
        momentum = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, state.momentum, gradient)
        return jax.tree.map(lambda m: -scale * m, momentum), PublishedMomentumState(i, momentum)

    return optax.GradientTransformation(init, update)


def published_step_size(
    i: jax.Array, learning_rate: float, decay: float = 0.9, second_decay: float = 0.999, warmup: int = 10
) -> jax.Array:
    """The factor of the momentum at update i = 1, 2, ...; see `published_momentum`."""

    def bias(rate: float) -> jax.Array:
        # 1 - rate^(i+1); the plain difference would lose four digits in float32.
        return -jnp.expm1((i + 1) * math.log(rate))

    return learning_rate * jnp.minimum(1.0, i / warmup) * jnp.sqrt(bias(second_decay)) / bias(decay) ** 2


def smoothed_gradient(sigma: float | tuple[float, float, float]) -> optax.GradientTransformation:
    """Gaussian smoothing of a gradient (time, height, width) of pixels, first in a chain; borders are mirrored.

    For parametrisations whose latent is the movie itself. In a whitened cosine basis it is a change of the prior's
    spectrum and nothing else: see `priors.smoothed_power`.

    Args:
      sigma: of all axes or each, in frames and pixels; 0 for none.
    """

    def smooth(gradient: jax.Array) -> jax.Array:
        time, height, width = gradient.shape[-3:]
        keep = smoothing_transfer((time, height, width), sigma)
        return inverse_cosine_transform(jnp.asarray(keep, gradient.dtype) * cosine_transform(gradient))

    return optax.stateless(lambda gradient, params: jax.tree.map(smooth, gradient))


def adam(
    learning_rate: float | jax.Array, *, num_steps: int, b1: float = 0.9, b2: float = 0.99
) -> optax.GradientTransformation:
    """Adam whose rate falls to a tenth along a cosine: the last steps average the noise of random windows away."""
    schedule = optax.cosine_decay_schedule(learning_rate, num_steps, alpha=0.1)
    return optax.adam(schedule, b1=b1, b2=b2)
