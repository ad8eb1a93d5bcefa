"""Depthwise convolutions, channels last, as sums of shifted slices times a tap's weights.

XLA's grouped convolutions are slow on CPU, and so are the gradients that automatic differentiation finds for slices:
it scatters each slice back into a padded array. There the gradients are written out: the input's gathers from the
output's with the mirrored kernel, phase by phase of the stride, and the kernel's is one sum for each tap, which XLA
leaves out where nobody asks for it (weights frozen). Elsewhere autodiff is left alone.
"""

import functools
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_SLABS = 16  # whose products are summed in one loop
_CACHED = 1 << 18  # numbers of an array that a core's cache holds together with the few beside it


def depthwise_spatial(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """(..., height, width, channel), kernel (row, column, channel) of odd size, zero padding size // 2.

    Returns:
      (..., ceil(height / stride), ceil(width / stride), channel).
    """
    axes = (x.ndim - 3, x.ndim - 2)
    return _depthwise(x, kernel, axes, stride)


def depthwise_temporal(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(window, time, height, width, channel), kernel (time, channel) of odd size, zero padding size // 2."""
    return _depthwise(x, kernel, (1,), 1)


def in_pieces(function: Callable[[jax.Array], jax.Array], x: jax.Array, numbers: int) -> jax.Array:
    """`function` over the frames of x, a few at a time, see `over_pieces`.

    Args:
      function: (frame, ...) -> (frame, ...), each frame by itself.
      x: (window, time, ...).
      numbers: in the largest array that `function` makes of a frame.
    """
    out = over_pieces(function, x.reshape(-1, *x.shape[2:]), numbers)
    return out.reshape(*x.shape[:2], *out.shape[2:])


def over_pieces(function: Callable[[jax.Array], Any], x: jax.Array, numbers: int) -> Any:
    """`function` over pieces of the first axis of x; on CPU so small that what it needs stays in cache.

    What the gradient needs is worked out anew in its turn: quicker there than a round trip through memory.

    Args:
      function: (item, ...) -> a tree of arrays.
      x: (item, ...).
      numbers: in the largest array that `function` makes of an item.

    Returns:
      The trees of all pieces, stacked: (piece, ...).
    """
    piece = piece_size(len(x), numbers)
    if piece < len(x):
        return lax.map(jax.checkpoint(function), x.reshape(-1, piece, *x.shape[1:]))
    return jax.tree.map(lambda y: y[None], function(x))


def piece_size(items: int, numbers: int) -> int:
    """How many of the items to treat at once, a divisor of their number: all of them but on CPU, see `over_pieces`."""
    if not in_cache():
        return items
    return max(n for n in range(1, items + 1) if items % n == 0 and n * numbers <= max(_CACHED, numbers))


def in_cache() -> bool:
    """Whether to work piece by piece: on CPU, where the arrays are one device's own."""
    return jax.default_backend() == "cpu" and (jax.device_count() == 1 or _on_one_device())


def _on_one_device() -> bool:
    """Whether arrays are one device's own (inside `jax.shard_map`); a loop over a shared axis would gather it."""
    mesh = jax.sharding.get_abstract_mesh()
    return bool(mesh.axis_names) and set(mesh.manual_axes) == set(mesh.axis_names)


def _depthwise(x, kernel, axes, stride):
    return (_gathered if jax.default_backend() == "cpu" else _shifted)(x, kernel, axes, stride)


def _shifted(x, kernel, axes, stride):
    """Cross-correlation over `axes` of x, one for each leading axis of the kernel."""
    starts, padded = _padded(x, kernel, axes)
    sizes = [(x.shape[axis] - 1) // stride + 1 for axis in axes]
    return _sum(_piece(padded, axes, tap, sizes, stride) * kernel[tap] for tap in starts)


def _padded(x, kernel, axes):
    """The kernel's taps, and x with as many zeros before and after as the kernel reaches."""
    widths = [(0, 0)] * x.ndim
    for axis, size in zip(axes, kernel.shape):
        widths[axis] = (size // 2, size // 2)
    return list(np.ndindex(*kernel.shape[:-1])), kept(jnp.pad(x, widths))


def kept(x: jax.Array) -> jax.Array:
    """x; on CPU it is written out once: fused into its many readers it would be worked out by each."""
    return lax.optimization_barrier(x) if jax.default_backend() == "cpu" else x


def _piece(x, axes, starts, sizes, stride=1):
    """`sizes` places of every `stride`-th, beginning at `starts`, along each of `axes`."""
    index = [slice(None)] * x.ndim
    for axis, start, size in zip(axes, starts, sizes):
        index[axis] = slice(start, start + (size - 1) * stride + 1, stride)
    return x[tuple(index)]


def _sum(terms):
    return functools.reduce(operator.add, terms)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _gathered(x, kernel, axes, stride):
    return _shifted(x, kernel, axes, stride)


def _forward(x, kernel, axes, stride):
    return _shifted(x, kernel, axes, stride), (x, kernel)


def _backward(axes, stride, residual, pull):
    x, kernel = residual
    to_input = _input_gradient(pull, kernel, axes, stride, x.shape)
    return to_input.astype(x.dtype), _kernel_gradient(x, pull, kernel, axes, stride).astype(kernel.dtype)


def _input_gradient(pull, kernel, axes, stride, shape):
    """Row r = stride * a + phase of x met tap i in output row a + (phase + pad - i) / stride, where that is whole."""
    lengths = [-(-shape[axis] // stride) for axis in axes]  # places of a phase; the last may lie beyond x
    before = [max(0, -((size // 2 - size + 1) // stride)) for size in kernel.shape[:-1]]
    after = [(stride - 1 + size // 2) // stride for size in kernel.shape[:-1]]
    widths = [(0, 0)] * len(shape)
    for axis, low, high in zip(axes, before, after):
        widths[axis] = (low, high)
    padded = kept(jnp.pad(pull, widths))

    def phase(place):
        terms = []
        for tap in np.ndindex(*kernel.shape[:-1]):
            offsets = [p + size // 2 - i for p, size, i in zip(place, kernel.shape, tap)]
            if all(offset % stride == 0 for offset in offsets):
                starts = [low + offset // stride for low, offset in zip(before, offsets)]
                terms.append(_piece(padded, axes, starts, lengths) * kernel[tap])
        return _sum(terms) if terms else jnp.zeros_like(_piece(padded, axes, before, lengths))

    def interleaved(place):
        if len(place) == len(axes):
            return phase(place)
        axis = axes[len(place)]
        if stride == 1:
            return interleaved((*place, 0))
        phases = jnp.stack([interleaved((*place, p)) for p in range(stride)], axis + 1)
        merged = phases.reshape(*phases.shape[:axis], -1, *phases.shape[axis + 2 :])
        return lax.slice_in_dim(merged, 0, shape[axis], axis=axis)

    return interleaved(())


def _kernel_gradient(x, pull, kernel, axes, stride):
    taps, padded = _padded(x, kernel, axes)
    sizes = [pull.shape[axis] for axis in axes]
    # Along one axis alone products of slabs are summed first, within one loop: without, each is written out.
    number = max(n for n in range(1, _SLABS + 1) if sizes[0] % n == 0) if len(axes) == 1 else 1

    def total(tap):
        seen = jnp.split(_piece(padded, axes, tap, sizes, stride), number, axes[0])
        return jnp.sum(_sum(x * y for x, y in zip(seen, jnp.split(pull, number, axes[0]))), tuple(range(x.ndim - 1)))

    return jnp.stack([total(tap) for tap in taps]).reshape(kernel.shape)


_gathered.defvjp(_forward, _backward)
