"""Values that are worked out piece by piece where they are needed, and their statistics without a pass of their own.

On CPU a piece and what is made of it stay in cache, while an array as large as the batch costs a round trip through
memory and its pages, which the system hands out anew in each call. So what is cheap to work out isn't kept, and the
gradient is written out: what comes from the statistics follows from the values and joins the rest on the way back.
Elsewhere values are worked out at once and automatic differentiation is left alone.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax
import jax
import jax.numpy as jnp

from neurorecon.encoders.depthwise import in_cache, piece_size

Tree = Any
Function = Callable[[Tree, Tree], jax.Array]
Statistics = tuple[jax.Array, jax.Array]  # mean (channel,), variance (channel,) or covariance (channel, channel)


@flax.struct.dataclass
class Pending:
    """`function(constants, parts)`.

    Attributes:
      function: treats each item by itself, a frame or a window, whatever their number of axes.
      constants: the same for all items.
      parts: arrays (item, ...).
    """

    function: Function = flax.struct.field(pytree_node=False)
    constants: Tree
    parts: Tree

    def values(self) -> jax.Array:
        """Worked out at once."""
        return self.function(self.constants, self.parts)

    def settled(self) -> "Pending":
        """Where no cache is to be used, worked out now."""
        return self if in_cache() else known(self.values())

    def flat(self) -> "Pending":
        """Parts (window, time, ...) as (frame, ...)."""
        return dataclasses.replace(self, parts=jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), self.parts))


def known(values: jax.Array) -> Pending:
    """Values that are there already."""
    return Pending(_same, (), values)


def _same(constants: Tree, parts: Tree) -> jax.Array:
    del constants
    return parts


def moments(x: jax.Array) -> Statistics:
    """Mean and biased variance of each channel, over all axes but the last, in float32 or wider."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(wide, axes)
    return mean, jnp.mean(jnp.square(wide - mean), axes)


def covariance(x: jax.Array) -> Statistics:
    """Mean (channel,) and biased covariance (channel, channel) of (..., column, channel), in float32 or wider.

    Sums go row by row: long float32 sums of equal numbers drift.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    columns, channels = x.shape[-2:]
    rows = wide.reshape(-1, columns, channels)
    mean = jnp.mean(jnp.mean(rows, 1), 0)
    centred = (rows - mean).astype(x.dtype)  # in bfloat16 only the sum over rows is wider
    products = jnp.einsum("rci,rcj->rij", centred, centred, precision="highest")
    return mean, jnp.mean(products.astype(wide.dtype) / columns, 0)


def with_moments(x: Pending, numbers: int, rows_alone: bool = False) -> tuple[jax.Array, Statistics]:
    """The values of x, and mean and variance of each channel.

    Args:
      numbers: in the largest array that is made of an item.
      rows_alone: the function treats each row (axis 2 of parts and values) by itself; an item may be cut.
    """
    out, mean, variance = _with_statistics(moments, True, x, numbers, rows_alone)
    return out, (mean, variance)


def moments_of(x: Pending, numbers: int) -> Statistics:
    """Mean and variance of each channel; the values aren't kept."""
    return _with_statistics(moments, False, x, numbers)[1:]


def with_covariance(x: Pending, numbers: int) -> tuple[jax.Array, Statistics]:
    """The values of x, and the channels' mean and covariance."""
    out, mean, spread = _with_statistics(covariance, True, x, numbers)
    return out, (mean, spread)


def covariance_of(x: Pending, numbers: int) -> Statistics:
    """The channels' mean and covariance; the values aren't kept."""
    return _with_statistics(covariance, False, x, numbers)[1:]


def _with_statistics(statistics, stored, x, numbers, rows_alone=False):
    first = jax.tree.leaves(x.parts)[0]
    items = len(first)
    piece = piece_size(items, numbers)
    rows = first.shape[2] if rows_alone else 1
    cut = rows // piece_size(rows, numbers // rows) if piece == 1 else 1
    if piece == items and cut == 1:
        out = x.values()
        return out, *statistics(out)
    return _in_pieces(x.function, statistics, stored, (piece, cut), x.constants, x.parts)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _in_pieces(function, statistics, stored, size, constants, parts):
    """The values or None, and their statistics; a piece has size[0] items, or an item is cut into size[1]."""
    pieces = _number(parts, size)
    like = jax.eval_shape(function, constants, _piece(parts, 0, size))
    shape = [len(jax.tree.leaves(parts)[0]), *like.shape[1:]]
    if size[1] > 1:
        shape[2] *= size[1]

    def step(k, carry):
        out, mean, spread = carry
        seen = function(constants, _piece(parts, k, size))
        new, of_piece = statistics(seen)
        apart = new - mean
        between = jnp.square(apart) if statistics is moments else apart[:, None] * apart
        spread = spread + (of_piece - spread + between * (k / (k + 1))) / (k + 1)
        return _put(out, seen, k, size) if stored else None, mean + apart / (k + 1), spread

    out = _room(shape, like.dtype, parts) if stored else None
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(statistics, like))
    return jax.lax.fori_loop(0, pieces, step, (out, *start))


def _forward(function, statistics, stored, size, constants, parts):
    out, mean, spread = _in_pieces(function, statistics, stored, size, constants, parts)
    return (out, mean, spread), (constants, parts, out, mean)


def _backward(function, statistics, stored, size, residual, pulls):
    constants, parts, out, mean = residual
    to_out, to_mean, to_spread = pulls
    slope = 2 * to_spread if statistics is moments else to_spread + to_spread.T
    pieces = _number(parts, size)

    def step(k, carry):
        total, to_parts = carry
        again, backward = jax.vjp(function, constants, _piece(parts, k, size))
        there = _piece(out, k, size) if stored else again
        number = pieces * math.prod(there.shape[:-1])
        apart = there.astype(mean.dtype) - mean
        towards = apart * (slope / number) if statistics is moments else _product(apart, slope / number)
        towards = towards + to_mean / number
        if stored:
            towards = _piece(to_out, k, size) + towards
        to_constants, to_part = backward(towards.astype(again.dtype))
        total = jax.tree.map(jnp.add, total, to_constants)
        return total, jax.tree.map(lambda whole, new: _put(whole, new, k, size), to_parts, to_part)

    room = jax.tree.map(lambda x: _room(x.shape, x.dtype, to_mean), parts)
    return jax.lax.fori_loop(0, pieces, step, (jax.tree.map(jnp.zeros_like, constants), room))


_in_pieces.defvjp(_forward, _backward)


def _number(parts, size):
    return len(jax.tree.leaves(parts)[0]) // size[0] * size[1]


def _start(x, k, size):
    """Where piece k of x begins; rows are axis 2."""
    if size[1] == 1:
        return [k * size[0], *[0] * (x.ndim - 1)]
    return [k // size[1], 0, k % size[1] * (x.shape[2] // size[1]), *[0] * (x.ndim - 3)]


def _piece(parts, k, size):
    def of(x):
        shape = [size[0], *x.shape[1:]]
        if size[1] > 1:
            shape[2] //= size[1]
        return jax.lax.dynamic_slice(x, _start(x, k, size), shape)

    return jax.tree.map(of, parts)


def _put(whole, new, k, size):
    return jax.lax.dynamic_update_slice(whole, new, _start(whole, k, size))


def _room(shape, dtype, near):
    """An array to be filled. Zeros would all be made, and copied from one another, when the program starts."""
    return jnp.full(shape, jax.tree.leaves(near)[0].reshape(-1)[0].astype(dtype))


def _product(x, matrix):
    return jnp.matmul(x, matrix, precision="highest")
