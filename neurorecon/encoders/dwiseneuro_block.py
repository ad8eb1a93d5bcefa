"""A block of DwiseNeuro: position code, inverted residual with squeeze-and-excite, shortcut.

In evaluation batch norms go into the kernels before them. In training no norm asks for a pass of its own: moments come
with what they are of, or from what it is made of. Pointwise convolutions are matrix products on the channel axis; for
depthwise ones see `depthwise`.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from neurorecon.encoders import position
from neurorecon.encoders.batch_norm import BatchNorm
from neurorecon.encoders.depthwise import depthwise_spatial, depthwise_temporal, in_pieces, kept
from neurorecon.encoders.pending import Pending, covariance_of, known, with_covariance, with_moments
from neurorecon.encoders.stem import normal_fan_out
from neurorecon.encoders.written_gradients import gated_projection, projected, silu


def tile_channels(x: jax.Array, num_channels: int) -> jax.Array:
    """Repeats the channels as a whole (not interleaved) and cuts to `num_channels`."""
    if x.shape[-1] == num_channels:
        return x
    repeats = math.ceil(num_channels / x.shape[-1])
    return jnp.tile(x, (1,) * (x.ndim - 1) + (repeats,))[..., :num_channels]


def subsample_nearest(x: jax.Array, stride: int) -> jax.Array:
    """Nearest-neighbour subsampling of (..., height, width, channel) to ceil(size / stride).

    Source index floor(i * size / ceil(size / stride)) in float32: every stride-th row where the stride
    divides the size, unevenly spaced rows otherwise, as published.
    """
    for axis in (x.ndim - 3, x.ndim - 2):
        size = x.shape[axis]
        kept = math.ceil(size / stride)
        if kept * stride == size:
            x = jax.lax.slice_in_dim(x, 0, size, stride, axis)
        else:
            indices = np.floor(np.arange(kept, dtype=np.float32) * (np.float32(size) / np.float32(kept)))
            x = jnp.take(x, np.minimum(indices.astype(np.int32), size - 1), axis=axis)
    return x


def stochastic_depth(module: nn.Module, x: jax.Array, rate: float, train: bool) -> jax.Array:
    """Drops the whole of x, per window, with probability `rate`; the kept ones are divided by 1 - rate."""
    if not train or rate == 0.0:
        return x
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1.0 - rate), 0.0)


class PositionCode(nn.Module):
    """The fixed sinusoidal code of time, row and column (see `position`).

    The frequencies are kept among the batch statistics as published weights keep theirs: averaging them over
    training moved their last digits, and the forward pass must use the numbers that it was trained with.
    """

    @nn.compact
    def __call__(self, shape: tuple[int, ...], dtype: Any) -> tuple[jax.Array, jax.Array]:
        """What to add to (window, time, height, width, channel): (time, 1, 1, channel), (1, height, width, channel).

        Each is zero in the other's channels, and written out: fused into the sum, the code would be worked out for
        every value.
        """
        channels = shape[-1]
        frequencies = self.variable(
            "batch_stats", "inv_freq", lambda: jnp.asarray(position.inverse_frequencies(channels))
        )
        of_time = np.arange(channels) < 2 * frequencies.value.size
        codes = []
        for places, mine in (((shape[1], 1, 1), of_time), ((1, *shape[2:4]), ~of_time)):
            code = position.position_code(frequencies.value, (*places, channels)).astype(dtype)
            codes.append(jax.lax.optimization_barrier(jnp.where(mine, code, 0)))
        return codes[0], codes[1]


class Block(nn.Module):
    """Position code, inverted residual with squeeze-and-excite, shortcut with no more than a batch norm."""

    features: int
    spatial_stride: int
    spatial_kernel: int
    temporal_kernel: int
    expansion_ratio: int
    se_reduce_ratio: int
    drop_path_rate: float
    folded: bool = False
    position_code: bool = True

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """(window, time, height, width, channel) -> (window, time, ceil(height / stride), ..., features).

        Both pending in training, arrays otherwise.
        """
        like = jax.eval_shape(lambda x: x.values(), x) if train else x
        codes = PositionCode(name="position")(like.shape, like.dtype) if self.position_code else ()
        narrow = like.shape[-1]
        wide = narrow * self.expansion_ratio
        k, kt = self.spatial_kernel, self.temporal_kernel

        expand = self.param("expand", normal_fan_out(wide), (narrow, wide))
        spatial = self.param("spatial", normal_fan_out(k * k), (k, k, wide))
        temporal = self.param("temporal", normal_fan_out(kt), (kt, wide))
        norms = [BatchNorm(self.folded, name=f"{of}_norm") for of in ("expand", "spatial", "temporal", "project")]
        reduced = wide // self.se_reduce_ratio
        squeeze = self.param("squeeze", normal_fan_out(reduced), (wide, reduced))
        squeeze_bias = self.param("squeeze_bias", nn.initializers.zeros, (reduced,))
        excite = self.param("excite", normal_fan_out(wide), (reduced, wide))
        excite_bias = self.param("excite_bias", nn.initializers.zeros, (wide,))
        project = self.param("project", normal_fan_out(self.features), (wide, self.features))
        gate = (squeeze, squeeze_bias, excite, excite_bias)
        shortcut_norm = BatchNorm(self.folded, scaled=True, name="shortcut_norm")
        kernels = (expand, spatial, temporal, project)
        if train:
            return self._trained(x, codes, like.shape, kernels, gate, [*norms, shortcut_norm])

        for code in codes:
            x = x + code
        x = shortcut = kept(x)
        numbers = math.prod(x.shape[2:4]) * wide
        absorbed = (norm.absorbed(kernel) for norm, kernel in zip(norms, kernels))
        (expand, b0), (spatial, b1), (temporal, b2), (project, b3) = absorbed

        def of_frames(frames):
            return depthwise_spatial(silu(frames @ expand + b0), spatial, self.spatial_stride)

        # Only the smaller sum is kept: the pieces' gradients then need no second convolution.
        x = silu(in_pieces(of_frames, x, numbers) + b1)
        x = silu(depthwise_temporal(x, temporal) + b2)
        x = gated_projection(x, _gate(x, gate), project) + b3
        shortcut = tile_channels(subsample_nearest(shortcut, self.spatial_stride), self.features)
        return x + shortcut_norm(shortcut, train)

    def _trained(self, x: Pending, codes, shape, kernels, gate, norms) -> Pending:
        expand, spatial, temporal, project = kernels
        subsampled = partial(subsample_nearest, stride=self.spatial_stride)
        frames = _coded(x, codes).flat()
        numbers, count = math.prod(shape[2:]), math.prod(shape[:4])
        if sum(math.prod(part.shape[2:]) for part in jax.tree.leaves(x.parts)) < numbers:
            # Worked out again from its parts, which are smaller.
            of_x = covariance_of(frames, numbers)
            fewer = dataclasses.replace(x, parts=jax.tree.map(subsampled, x.parts))
            shortcut, of_shortcut = with_moments(_coded(fewer, [subsampled(code) for code in codes]).flat(), numbers)
        else:
            values, of_x = with_covariance(frames, numbers)
            frames = known(values)
            shortcut, of_shortcut = values, (of_x[0], jnp.diagonal(of_x[1]))
            if self.spatial_stride > 1:
                shortcut, of_shortcut = with_moments(Pending(lambda _, x: subsampled(x), (), values), numbers)

        centre, expand, bias = norms[0].of_product(of_x, expand, count)
        constants = (frames.constants, centre, expand, bias, spatial)
        over_places = partial(_over_places, frames.function, self.spatial_stride)
        wide = numbers * self.expansion_ratio
        seen, statistics = with_moments(Pending(over_places, constants, frames.parts), wide)
        seen = seen.reshape(*shape[:2], *seen.shape[1:])
        window, count = seen[0].size, math.prod(seen.shape[:4])

        affine = _affine(*norms[1].of_moments(statistics, count))
        seen, statistics = with_moments(Pending(_over_time, (affine, temporal), seen), window, rows_alone=True)
        affine = _affine(*norms[2].of_moments(statistics, count))
        out, statistics = with_moments(Pending(_gated, (affine, gate, project), seen), window)

        of_shortcut = (tile_channels(of_shortcut[0], self.features), tile_channels(of_shortcut[1], self.features))
        of_both = (norms[3].of_moments(statistics, count), norms[4].of_moments(of_shortcut, count))
        parts = [out, shortcut.reshape(*shape[:2], *shortcut.shape[1:])]
        if self.drop_path_rate:
            share = stochastic_depth(self, jnp.ones(shape[:1], out.dtype), self.drop_path_rate, True)
            parts.append(jnp.broadcast_to(share[:, None, None, None, None], (*shape[:2], 1, 1, 1)))
        return Pending(_joined, of_both, tuple(parts)).settled()


def _gate(x, parameters):
    squeeze, squeeze_bias, excite, excite_bias = parameters
    gate = nn.silu(jnp.mean(x, axis=(1, 2, 3)) @ squeeze + squeeze_bias)
    return nn.sigmoid(gate @ excite + excite_bias)


def _affine(mean, factor, bias):
    return factor, bias - mean * factor


def _coded(x: Pending, codes: Sequence[jax.Array]) -> Pending:
    """With the position codes, if any, added; that of time goes with the frames."""
    if not codes:
        return x
    of_time, of_place = codes
    windows = len(jax.tree.leaves(x.parts)[0])
    of_time = jnp.broadcast_to(of_time, (windows, *of_time.shape))
    return Pending(partial(_with_codes, x.function), (x.constants, of_place), (x.parts, of_time))


def _with_codes(function, constants, parts):
    (inner, of_place), (seen, of_time) = constants, parts
    return function(inner, seen) + of_time + of_place


def _over_places(function, stride, constants, parts):
    inner, centre, expand, bias, spatial = constants
    x = function(inner, parts)
    seen = nn.silu(projected((x - centre).astype(x.dtype), expand) + bias).astype(x.dtype)
    return depthwise_spatial(seen, spatial, stride)


def _over_time(constants, windows):
    (factor, offset), temporal = constants
    return depthwise_temporal(nn.silu(windows * factor + offset).astype(windows.dtype), temporal)


def _gated(constants, windows):
    """The gate goes into each window's projection, which is smaller than what it gates."""
    (factor, offset), gate, project = constants
    x = nn.silu(windows * factor + offset).astype(windows.dtype)
    return projected(x, _gate(x, gate)[:, :, None] * project)


def _joined(constants, parts):
    (mean, factor, bias), (shortcut_mean, shortcut_factor, shortcut_bias) = constants
    out, shortcut, *share = parts
    x = (out - mean) * factor + bias
    x = x * share[0] if share else x
    shortcut = (tile_channels(shortcut, out.shape[-1]) - shortcut_mean) * shortcut_factor + shortcut_bias
    return (x + shortcut).astype(out.dtype)
