"""A stride-1 convolution whose gradients are quick on every backend, inside device loops too.

XLA on CPU runs the transposed convolutions of automatic differentiation on a slow path inside `lax.scan` (measured: 30 to
100 times slower, see BUILD_NOTES). Here the gradient with respect to the input is a plain convolution with the flipped
kernel, and that of the kernel is one matrix product for each tap.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Cross-correlation over the two middle axes.

    Args:
      x: (batch, rows, columns, channel).
      kernel: (row taps, column taps, channel, feature).
      padding: zeros (before, after) rows and columns.

    Returns:
      (batch, rows', columns', feature).
    """
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _forward(x, kernel, padding):
    return convolve(x, kernel, padding), (x, kernel)


def _backward(padding, residual, gradient):
    x, kernel = residual
    taps = kernel.shape[:2]
    mirrored = tuple((k - 1 - before, k - 1 - after) for k, (before, after) in zip(taps, padding))
    # The barrier keeps XLA from folding the flip back into the convolution, the slow path again.
    flipped = lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))
    to_x = lax.conv_general_dilated(
        gradient, flipped, (1, 1), mirrored, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = gradient.shape[1:3]
    flat = gradient.reshape(-1, gradient.shape[-1])

    def tap(i, j):
        return padded[:, i : i + rows, j : j + columns].reshape(-1, x.shape[-1]).T @ flat

    to_kernel = jnp.stack([jnp.stack([tap(i, j) for j in range(taps[1])]) for i in range(taps[0])])
    return to_x, to_kernel


convolve.defvjp(_forward, _backward)
