"""A stride-1 convolution whose gradients are quick on CPU, inside device loops too.

XLA on CPU runs the convolutions of automatic differentiation on a slow path inside `lax.scan` (measured: 30 to 100
times slower, see BUILD_NOTES). There, the gradient with respect to the input is a plain convolution with the flipped
kernel, and that of the kernel is a matrix product over pieces of the batch that stay in cache. Elsewhere autodiff is
left alone.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]


_PIECE = 1 << 20  # elements of one unfolded piece in the kernel's gradient: about what a core's cache holds


def convolve(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Cross-correlation over the two middle axes.

    Args:
      x: (batch, rows, columns, channel).
      kernel: (row taps, column taps, channel, feature).
      padding: zeros (before, after) rows and columns.

    Returns:
      (batch, rows', columns', feature).
    """
    return _convolve_cpu(x, kernel, padding) if jax.default_backend() == "cpu" else _convolve(x, kernel, padding)


def _convolve(x, kernel, padding):
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_cpu(x, kernel, padding):
    return _convolve(x, kernel, padding)


def _forward(x, kernel, padding):
    return _convolve(x, kernel, padding), (x, kernel)


def _backward(padding, residual, gradient):
    x, kernel = residual
    mirrored = tuple((k - 1 - before, k - 1 - after) for k, (before, after) in zip(kernel.shape[:2], padding))
    # The barrier keeps XLA from folding the flip back into the convolution, the slow path again.
    flipped = lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))
    return _convolve(gradient, flipped, mirrored), _kernel_gradient(x, gradient, kernel.shape, padding)


def _kernel_gradient(x, gradient, shape, padding):
    row_taps, column_taps, channels, features = shape
    batch, rows, columns, _ = gradient.shape
    piece = max(1, min(batch, _PIECE // (rows * columns * channels * row_taps * column_taps)))
    padded = jnp.pad(x, ((0, -batch % piece), *padding, (0, 0)))
    gradient = jnp.pad(gradient, ((0, -batch % piece), (0, 0), (0, 0), (0, 0)))

    def add(total, pieces):
        seen, pull = pieces
        taps = [seen[:, i : i + rows, j : j + columns] for i in range(row_taps) for j in range(column_taps)]
        unfolded = jnp.concatenate(taps, axis=-1).reshape(-1, row_taps * column_taps * channels)
        return total + unfolded.T @ pull.reshape(-1, features), None

    pieces = (padded.reshape(-1, piece, *padded.shape[1:]), gradient.reshape(-1, piece, *gradient.shape[1:]))
    total, _ = lax.scan(add, jnp.zeros((row_taps * column_taps * channels, features), x.dtype), pieces)
    return total.reshape(shape)


_convolve_cpu.defvjp(_forward, _backward)
