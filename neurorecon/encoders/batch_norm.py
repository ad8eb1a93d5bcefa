"""Batch norm, and the mean and variance that it takes from a batch without a further pass through memory."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from neurorecon.encoders.depthwise import over_pieces
from neurorecon.errors import NeuroreconError

EPSILON = 1e-5
MOMENTUM = 0.1


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of each channel, over all axes but the last, in float32 or wider."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(wide, axes)
    return mean, jnp.mean(jnp.square(wide - mean), axes)


def with_moments(
    function: Callable[[jax.Array], jax.Array], x: jax.Array, numbers: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`function(x)` and its moments, both piece by piece, see `over_pieces`.

    The variance of the whole is the mean of the pieces' variances plus the variance of their means.

    Args:
      function: (item, ...) -> (item, ..., channel), each item by itself.
      x: (item, ...).
      numbers: in the largest array that `function` makes of an item.
    """

    def seen(piece):
        out = function(piece)
        return out, *moments(out)

    out, means, variances = over_pieces(seen, x, numbers)
    mean = jnp.mean(means, 0)
    variance = jnp.mean(variances, 0) + jnp.mean(jnp.square(means - mean), 0)
    return out.reshape(-1, *out.shape[2:]), mean, variance


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last.

    In training the batch's biased variance normalises, its unbiased one (n - 1) enters the running variance, and
    `count` counts the batches. Folded, what a convolution can't absorb is left: a bias, and with `scaled`, a scale.
    """

    folded: bool = False
    scaled: bool = False

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if not train or self.folded:
            factor, offset = self.affine(x.shape[-1])
            return x + offset if factor is None else x * factor + offset
        mean, variance = moments(x)
        factor, bias = self._of_batch(mean, variance, x.size // x.shape[-1])
        return (x - mean) * factor + bias

    def affine(self, size: int) -> tuple[jax.Array | None, jax.Array]:
        """In evaluation: x * factor + offset, both (size,); None for a factor that a folded kernel holds."""
        scale, bias, mean, variance, _ = self._variables(size)
        if self.folded:
            return scale, bias
        factor = scale / jnp.sqrt(variance.value + EPSILON)
        return factor, bias - mean.value * factor

    def absorbed(self, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The kernel before the norm with its factor, and the offset that is left, in evaluation."""
        factor, offset = self.affine(kernel.shape[-1])
        return kernel if factor is None else kernel * factor, offset

    def of_product(self, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """In training: centre, kernel and bias, so that (x - centre) @ kernel + bias is the normalised x @ kernel.

        Its moments follow from those of x, which has fewer channels: the variance is k' C k for each column k of the
        kernel given and the covariance C of x. Sums go row by row: long float32 sums of equal numbers drift.

        Args:
          x: (..., column, channel).
          kernel: (channel, feature).
        """
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        columns, channels = x.shape[-2:]
        rows = wide.reshape(-1, columns, channels)
        centre = jnp.mean(jnp.mean(rows, 1), 0)
        centred = (rows - centre).astype(x.dtype)  # in bfloat16 only the sum over rows is wider
        products = jnp.einsum("rci,rcj->rij", centred, centred, precision="highest")
        covariance = jnp.mean(products.astype(wide.dtype) / columns, 0)
        variance = jnp.sum(kernel * jnp.matmul(covariance, kernel, precision="highest"), 0)
        mean = jnp.matmul(centre, kernel, precision="highest")
        factor, bias = self._of_batch(mean, variance, x.size // channels)
        return centre, (kernel * factor).astype(x.dtype), bias

    def of_moments(self, mean: jax.Array, variance: jax.Array, number: int) -> tuple[jax.Array, jax.Array]:
        """In training: x * factor + offset normalises an x of these moments, `number` values in each channel."""
        factor, bias = self._of_batch(mean, variance, number)
        return factor, bias - mean * factor

    def _of_batch(self, batch_mean: jax.Array, batch_variance: jax.Array, number: int) -> tuple[jax.Array, jax.Array]:
        """Factor and bias of what is centred; the running statistics move."""
        scale, bias, mean, variance, count = self._variables(batch_mean.size)
        if number < 2:
            raise NeuroreconError(
                "inputs: expected more than one value per channel in training, found one; give more windows or frames"
            )
        if not self.is_initializing():
            unbiased = batch_variance * (number / (number - 1))
            for running, value in ((mean, batch_mean), (variance, unbiased)):
                new = (1.0 - MOMENTUM) * running.value + MOMENTUM * jax.lax.stop_gradient(value)
                running.value = new.astype(running.value.dtype)
            count.value = count.value + 1
        return scale / jnp.sqrt(batch_variance + EPSILON), bias

    @nn.compact
    def _variables(self, size: int) -> tuple:
        bias = self.param("bias", nn.initializers.zeros, (size,))
        scaled = self.scaled or not self.folded
        scale = self.param("scale", nn.initializers.ones, (size,)) if scaled else None
        if self.folded:
            return scale, bias, None, None, None
        mean = self.variable("batch_stats", "mean", jnp.zeros, (size,), jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, (size,), jnp.float32)
        return scale, bias, mean, variance, self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
