"""Batch norm, of what is there or of what is known by its statistics alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from neurorecon.encoders.pending import Statistics, moments
from neurorecon.errors import NeuroreconError

EPSILON = 1e-5
MOMENTUM = 0.1


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
        mean, factor, bias = self.of_moments(moments(x), x.size // x.shape[-1])
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

    def of_product(
        self, statistics: Statistics, kernel: jax.Array, number: int
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """In training: centre, kernel and bias, so that (x - centre) @ kernel + bias is the normalised x @ kernel.

        Its moments follow from those of x, which has fewer channels: the variance is k' C k for each column k of the
        kernel given and the covariance C of x.

        Args:
          statistics: mean and covariance of x (..., channel).
          kernel: (channel, feature).
          number: of values in each channel.
        """
        centre, covariance = statistics
        variance = jnp.sum(kernel * jnp.matmul(covariance, kernel, precision="highest"), 0)
        mean = jnp.matmul(centre, kernel, precision="highest")
        factor, bias = self._of_batch(mean, variance, number)
        return centre, (kernel * factor).astype(kernel.dtype), bias

    def of_moments(self, statistics: Statistics, number: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """In training: mean, factor and bias, so that (x - mean) * factor + bias is the normalised x.

        Args:
          statistics: mean and variance of x.
          number: of values in each channel.
        """
        mean, variance = statistics
        return mean, *self._of_batch(mean, variance, number)

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
