"""Parts of an encoder's block whose gradients are written out: automatic differentiation does more than is needed.

The gradients with respect to kernels are computations of their own, which XLA leaves out where nobody asks for them.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def silu(x: jax.Array) -> jax.Array:
    """x * sigmoid(x). Its gradient keeps x alone; autodiff also writes the sigmoid to memory and reads it again."""
    return x * jax.nn.sigmoid(x)


def _silu_forward(x):
    return silu(x), x


def _silu_backward(x, pull):
    # In terms of tanh: as a sigmoid, XLA would see that the forward pass has it, and keep it after all.
    s = 0.5 + 0.5 * jnp.tanh(0.5 * x)
    return ((pull * (s + x * s * (1 - s))).astype(x.dtype),)


silu.defvjp(_silu_forward, _silu_backward)


@jax.custom_vjp
def gated_projection(x: jax.Array, gate: jax.Array, kernel: jax.Array) -> jax.Array:
    """(x * gate) @ kernel, the gate multiplied into each window's kernel, which is smaller than what it gates.

    Autodiff finds the gate's gradient through that of each window's kernel, a matrix product over all places. Here it
    is a sum over the gradient that x needs anyway.

    Args:
      x: (window, time, height, width, channel).
      gate: (window, channel).
      kernel: (channel, feature).

    Returns:
      (window, time, height, width, feature).
    """
    return jnp.einsum("nthwi,nio->nthwo", x, gate[:, :, None] * kernel)


def _gated_forward(x, gate, kernel):
    return gated_projection(x, gate, kernel), (x, gate, kernel)


def _gated_backward(residual, pull):
    x, gate, kernel = residual
    to_gated = pull @ kernel.T
    to_gate = jnp.sum(x * to_gated, (1, 2, 3), dtype=jnp.promote_types(x.dtype, jnp.float32))
    to_kernel = jnp.einsum("nthwi,nthwo,ni->io", x, pull, gate)
    to_x = to_gated * gate[:, None, None, None]
    return to_x.astype(x.dtype), to_gate.astype(gate.dtype), to_kernel.astype(kernel.dtype)


gated_projection.defvjp(_gated_forward, _gated_backward)


def projected(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel. On CPU XLA would write out a transposed gradient to find the kernel's; here it transposes x.

    Args:
      x: (window, ..., channel).
      kernel: (channel, feature), or one for each window, (window, channel, feature).

    Returns:
      (window, ..., feature).
    """
    if jax.default_backend() == "cpu":
        return _projected(x[None], kernel[None])[0] if kernel.ndim == 2 else _projected(x, kernel)
    return jnp.einsum("n...i,io->n...o" if kernel.ndim == 2 else "n...i,nio->n...o", x, kernel)


@jax.custom_vjp
def _projected(x, kernel):
    return jnp.einsum("n...i,nio->n...o", x, kernel)


def _projected_forward(x, kernel):
    return _projected(x, kernel), (x, kernel)


def _projected_backward(residual, pull):
    x, kernel = residual
    to_x = jnp.einsum("n...o,nio->n...i", pull, kernel)
    places, towards = (y.reshape(len(y), -1, y.shape[-1]) for y in (x, pull))
    to_kernel = jax.lax.dot_general(places, towards, (((1,), (1,)), ((0,), (0,))))
    return to_x.astype(x.dtype), to_kernel.astype(kernel.dtype)


_projected.defvjp(_projected_forward, _projected_backward)
