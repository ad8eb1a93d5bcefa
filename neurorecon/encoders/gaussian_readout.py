"""Gaussian readout: each neuron looks through a Gaussian at a place of the feature maps that it learns.

Lurz et al. 2021. The original samples that place while training; here the expectation under the Gaussian is taken
exactly, which has the same mean, no sampling noise, and a gradient that reaches further than one pixel.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


def space_to_depth(x: jax.Array, patch: int) -> jax.Array:
    """(..., H, W, C) -> (..., ceil(H / patch), ceil(W / patch), patch * patch * C), zeros beyond the border.

    A strided convolution in this form has stride 1, and so a gradient that needs no dilated convolution.
    """
    *lead, height, width, channels = x.shape
    pads = [(0, 0)] * len(lead) + [(0, -height % patch), (0, -width % patch), (0, 0)]
    x = jnp.pad(x, pads)
    rows, columns = x.shape[-3] // patch, x.shape[-2] // patch
    x = x.reshape(*lead, rows, patch, columns, patch, channels)
    x = jnp.moveaxis(x, -4, -3)
    return x.reshape(*lead, rows, columns, patch * patch * channels)


def _uniform(limit: float):
    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def mean_pool(x: jax.Array, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Means over `size` x `size` pixels; (..., H, W, C) -> (..., ceil(H / size), ceil(W / size), C).

    Returns:
      The means, over the pixels that exist; and the centre of each row and each column of the result, in pixels of `x`.
    """
    height, width = x.shape[-3:-1]

    def cells(length: int) -> tuple[jax.Array, jax.Array]:
        number = -(-length // size)
        inside = (jnp.arange(number * size) < length).reshape(number, size).astype(x.dtype)
        count = inside.sum(1)
        places = jnp.arange(number * size, dtype=x.dtype).reshape(number, size)
        return (places * inside).sum(1) / count, count

    (rows, in_rows), (columns, in_columns) = cells(height), cells(width)
    if size == 1:
        return x, rows, columns
    pooled = space_to_depth(x, size)
    pooled = pooled.reshape(*pooled.shape[:-1], size * size, x.shape[-1]).sum(-2)
    return pooled / (in_rows[:, None] * in_columns)[..., None], rows, columns


class GaussianReadout(nn.Module):
    """Feature maps (window, time, h, w, C) -> (window, time, neuron), a learned place and weights per neuron."""

    num_neurons: int
    pool: int = 1

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        height, width = features.shape[2:4]
        features, row_centres, column_centres = mean_pool(features, self.pool)
        window, time, _, _, channels = features.shape
        dtype = features.dtype
        # Positions in units of the shorter half-axis, so that a Gaussian is round on the screen.
        position = self.param("position", _uniform(0.3), (self.num_neurons, 2)).astype(dtype)
        log_sigma = self.param("log_sigma", nn.initializers.constant(-2.0), (self.num_neurons,)).astype(dtype)
        weights = self.param("weights", nn.initializers.normal(0.02), (self.num_neurons, channels)).astype(dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.num_neurons,)).astype(dtype)
        half = min(height, width) / 2
        rows = (row_centres - (height - 1) / 2) / half
        columns = (column_centres - (width - 1) / 2) / half
        # At least about half a feature pixel wide: narrower ones would lose their gradient between two pixels.
        variance = jnp.exp(2 * jnp.clip(log_sigma, -4.0, 1.0))[:, None] + (0.5 * self.pool / half) ** 2
        in_rows = jax.nn.softmax(-((rows - position[:, :1]) ** 2) / (2 * variance), axis=-1)
        in_columns = jax.nn.softmax(-((columns - position[:, 1:]) ** 2) / (2 * variance), axis=-1)
        # One dense matrix product: on every backend quicker than gathering, in the gradient above all.
        kernel = jnp.einsum("nh,nw,nc->hwcn", in_rows, in_columns, weights)
        flat = features.reshape(window * time, -1) @ kernel.reshape(-1, self.num_neurons)
        return flat.reshape(window, time, self.num_neurons) + bias
