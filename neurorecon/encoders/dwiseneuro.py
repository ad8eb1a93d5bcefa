"""DwiseNeuro: the encoder that won Sensorium 2023, exactly as published, for any size.

Axes: inputs (window, time, height, width, channel), channel 0 the movie (grey 0..255), channels 1.. the
behaviour, each filling its plane; outputs (window, time, neuron). Facts: Baikulov, DwiseNeuro
(lRomul/sensorium, MIT); every batch norm has epsilon 1e-5 and momentum 0.1.

Pointwise convolutions are matrix products on the channel axis; for depthwise ones see `depthwise`. In evaluation
batch norms go into the kernels before them. All arithmetic follows the dtype of inputs and variables.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from neurorecon.encoders import position
from neurorecon.encoders.depthwise import depthwise_spatial, depthwise_temporal, in_pieces
from neurorecon.errors import NeuroreconError

EPSILON = 1e-5
MOMENTUM = 0.1


def softplus(x: jax.Array, beta: float) -> jax.Array:
    """log(1 + exp(beta x)) / beta, x itself where beta x > 20; finite, gradient too, for every finite x."""
    scaled = beta * x
    # The inner minimum keeps exp finite on the branch that the outer where discards: inf * 0 would poison
    # gradients.
    return jnp.where(scaled > 20.0, x, jnp.log1p(jnp.exp(jnp.minimum(scaled, 20.0))) / beta)


def grouped_pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(..., channel), kernel (group, channel / group, output / group): a group sees its own channels."""
    groups, inputs, outputs = kernel.shape
    x = x.reshape(*x.shape[:-1], groups, inputs)
    return jnp.einsum("...gi,gio->...go", x, kernel).reshape(*x.shape[:-2], groups * outputs)


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


def normal_fan_out(fan_out: int) -> Callable:
    """The published initialisation of convolutions: normal(0, sqrt(2 / fan_out))."""
    return nn.initializers.normal(math.sqrt(2.0 / fan_out))


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
        scale, bias, mean, variance, count = self._variables(x.shape[-1])
        number = x.size // x.shape[-1]
        if number < 2:
            raise NeuroreconError(
                "inputs: expected more than one value per channel in training, found one; give more windows or frames"
            )
        axes, wide = tuple(range(x.ndim - 1)), x.astype(jnp.promote_types(x.dtype, jnp.float32))
        batch_mean = jnp.mean(wide, axes)
        batch_variance = jnp.mean(jnp.square(wide - batch_mean), axes)
        if not self.is_initializing():
            unbiased = batch_variance * (number / (number - 1))
            for running, value in ((mean, batch_mean), (variance, unbiased)):
                new = (1.0 - MOMENTUM) * running.value + MOMENTUM * jax.lax.stop_gradient(value)
                running.value = new.astype(running.value.dtype)
            count.value = count.value + 1
        factor = scale / jnp.sqrt(batch_variance + EPSILON)
        return (x - batch_mean) * factor + bias

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


class PositionCode(nn.Module):
    """Adds the fixed sinusoidal code of time, row and column (see `position`).

    The frequencies are kept among the batch statistics as published weights keep theirs: averaging them over
    training moved their last digits, and the forward pass must use the numbers that it was trained with.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        frequencies = self.variable(
            "batch_stats", "inv_freq", lambda: jnp.asarray(position.inverse_frequencies(channels))
        )
        # Axis by axis, zero in the others' channels: joined, the code would be worked out for every value of x.
        axis_of_channel = np.arange(channels) // (2 * frequencies.value.size)
        for axis in range(3):
            shape = [x.shape[axis + 1] if i == axis else 1 for i in range(3)]
            code = position.position_code(frequencies.value, (*shape, channels)).astype(x.dtype)
            x = x + jnp.where(axis_of_channel == axis, code, 0)
        return x


class Stem(nn.Module):
    """Pointwise convolution and batch norm, without an activation."""

    features: int
    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = x @ self.param("conv", normal_fan_out(self.features), (x.shape[-1], self.features))
        return BatchNorm(self.folded, name="norm")(x, train)


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

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(window, time, height, width, channel) -> (window, time, ceil(height / stride), ..., features)."""
        x = PositionCode(name="position")(x)
        shortcut = x
        narrow = x.shape[-1]
        wide = narrow * self.expansion_ratio
        k, kt = self.spatial_kernel, self.temporal_kernel

        expand = self.param("expand", normal_fan_out(wide), (narrow, wide))
        spatial = self.param("spatial", normal_fan_out(k * k), (k, k, wide))
        temporal = self.param("temporal", normal_fan_out(kt), (kt, wide))
        norms = [BatchNorm(self.folded, name=f"{of}_norm") for of in ("expand", "spatial", "temporal", "project")]
        if train:
            x = nn.silu(norms[0](x @ expand, train))
            x = nn.silu(norms[1](depthwise_spatial(x, spatial, self.spatial_stride), train))
            x = nn.silu(norms[2](depthwise_temporal(x, temporal), train))
        else:
            kernels = zip(norms, (expand, spatial, temporal))
            (expand, b0), (spatial, b1), (temporal, b2) = (norm.absorbed(kernel) for norm, kernel in kernels)

            def of_frames(frames):
                seen = nn.silu(frames @ expand + b0)
                return nn.silu(depthwise_spatial(seen, spatial, self.spatial_stride) + b1)

            x = in_pieces(of_frames, x, math.prod(x.shape[2:4]) * wide)
            x = nn.silu(depthwise_temporal(x, temporal) + b2)

        reduced = wide // self.se_reduce_ratio
        gate = jnp.mean(x, axis=(1, 2, 3))
        gate = gate @ self.param("squeeze", normal_fan_out(reduced), (wide, reduced))
        gate = nn.silu(gate + self.param("squeeze_bias", nn.initializers.zeros, (reduced,)))
        gate = gate @ self.param("excite", normal_fan_out(wide), (reduced, wide))
        gate = nn.sigmoid(gate + self.param("excite_bias", nn.initializers.zeros, (wide,)))
        project = self.param("project", normal_fan_out(self.features), (wide, self.features))
        if train:
            x = norms[3]((x * gate[:, None, None, None]) @ project, train)
        else:  # the gate goes into each window's projection, which is smaller than what it gates
            project, offset = norms[3].absorbed(project)
            x = jnp.einsum("nthwi,nio->nthwo", x, gate[:, :, None] * project) + offset
        x = stochastic_depth(self, x, self.drop_path_rate, train)
        shortcut = tile_channels(subsample_nearest(shortcut, self.spatial_stride), self.features)
        return x + BatchNorm(self.folded, scaled=True, name="shortcut_norm")(shortcut, train)


class CortexLayer(nn.Module):
    """Grouped pointwise convolution, batch norm, SiLU, channel shuffle; a tiled, normalised shortcut."""

    features: int
    groups: int
    drop_path_rate: float
    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(window, time, channel) -> (window, time, features)."""
        shortcut = x
        shape = (self.groups, x.shape[-1] // self.groups, self.features // self.groups)
        x = grouped_pointwise(x, self.param("conv", normal_fan_out(shape[2]), shape))
        x = nn.silu(BatchNorm(self.folded, name="norm")(x, train))
        x = x.reshape(*x.shape[:-1], self.groups, shape[2]).swapaxes(-1, -2).reshape(x.shape)
        x = stochastic_depth(self, x, self.drop_path_rate, train)
        shortcut = tile_channels(shortcut, self.features)
        return x + BatchNorm(self.folded, scaled=True, name="shortcut_norm")(shortcut, train)


class Readout(nn.Module):
    """Channel dropout, grouped pointwise convolution with bias, cut to the neurons, softplus."""

    num_neurons: int
    groups: int
    softplus_beta: float
    drop_rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(window, time, channel) -> (window, time, neuron)."""
        outputs = math.ceil(self.num_neurons / self.groups)
        kernel_shape = (self.groups, x.shape[-1] // self.groups, outputs)
        kernel = self.param("conv", normal_fan_out(outputs), kernel_shape)
        bias = self.param("bias", nn.initializers.zeros, (self.groups * outputs,))
        # Whole channels are dropped: the same ones at all times of a window.
        x = nn.Dropout(self.drop_rate, broadcast_dims=(1,))(x, deterministic=not train)
        return softplus((grouped_pointwise(x, kernel) + bias)[..., : self.num_neurons], self.softplus_beta)


class DwiseNeuro(nn.Module):
    """The published encoder. Defaults are those of the published weights; sizes are checked by `check_sizes`.

    Attributes:
      num_neurons: neurons of each readout (one readout per animal).
      canvas: (height, width) of the inputs.
      window_frames, frame_step: the window holds `window_frames` frames, every `frame_step`-th of the movie.
      padding: grey value around the movie on the canvas, as in training.
      drop_rate: channel dropout before the readout; drop_path_rate: stochastic depth, block i at rate * i /
        blocks.
      folded: the weights have their batch norms folded in (see `fold_batch_norm`); for inference only.
      remat: recompute a block's activations in the backward pass: less memory, a third slower.
      screen: (height, width) of the movie amid the canvas; left out, as much of 36 x 64 as the canvas holds.
    """

    num_neurons: tuple[int, ...]
    canvas: tuple[int, int] = (64, 64)
    window_frames: int = 16
    frame_step: int = 2
    padding: float = 0.0
    in_channels: int = 5
    core_features: tuple[int, ...] = (64, 64, 64, 64, 128, 128, 128, 256, 256)
    spatial_strides: tuple[int, ...] = (2, 1, 1, 1, 2, 1, 1, 2, 1)
    spatial_kernel: int = 3
    temporal_kernel: int = 5
    expansion_ratio: int = 7
    se_reduce_ratio: int = 32
    cortex_features: tuple[int, ...] = (1024, 2048, 4096)
    groups: int = 2
    softplus_beta: float = 0.07
    drop_rate: float = 0.4
    drop_path_rate: float = 0.1
    folded: bool = False
    remat: bool = False
    screen: tuple[int, int] | None = None

    # Squeeze-and-excite averages over the window's time, convolutions pad it: only whole windows make sense.
    time_invariant = False

    def __post_init__(self):
        if self.screen is None:
            self.screen = (min(36, self.canvas[0]), min(64, self.canvas[1]))
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: jax.Array, readout: int | None = 0, train: bool = False):
        """Predicts responses.

        Args:
          inputs: (window, time, height, width, channel).
          readout: which readout; None for all of them, which shares one pass of the core.
          train: batch statistics (apply with mutable=["batch_stats"]) and dropout (rngs={"dropout": key}, not
            needed where both rates are 0).

        Returns:
          (window, time, neuron), or a tuple of these for `readout` None.

        Raises:
          NeuroreconError: sizes that don't fit together, or training a folded encoder.
        """
        check_sizes(self)
        if inputs.ndim != 5 or inputs.shape[-1] != self.in_channels:
            raise NeuroreconError(
                f"inputs: expected (window, time, height, width, {self.in_channels}), found {inputs.shape}"
            )
        if readout is not None and not 0 <= readout < len(self.num_neurons):
            raise NeuroreconError(
                f"readout: expected 0 to {len(self.num_neurons) - 1} (one per animal), found {readout}"
            )
        if train and self.folded:
            raise NeuroreconError("train: a folded encoder can't be trained; train the unfolded one")
        x = Stem(self.core_features[0], self.folded, name="stem")(inputs, train)
        block_class = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        num_blocks = len(self.core_features)
        for i in range(num_blocks):
            x = block_class(
                self.core_features[min(i + 1, num_blocks - 1)],
                self.spatial_strides[i],
                self.spatial_kernel,
                self.temporal_kernel,
                self.expansion_ratio,
                self.se_reduce_ratio,
                self.drop_path_rate * i / num_blocks,
                self.folded,
                name=f"block{i}",
            )(x, train)
        x = jnp.mean(x, axis=(2, 3))
        self.sow("intermediates", "pool", x)
        for i, features in enumerate(self.cortex_features):
            x = CortexLayer(features, self.groups, self.drop_path_rate, self.folded, name=f"cortex{i}")(x, train)
        # At initialisation every readout is built, whichever was asked for.
        needed = range(len(self.num_neurons)) if readout is None or self.is_initializing() else [readout]
        outputs = {
            i: Readout(self.num_neurons[i], self.groups, self.softplus_beta, self.drop_rate, name=f"readout{i}")(
                x, train
            )
            for i in needed
        }
        return tuple(outputs.values()) if readout is None else outputs[readout]


def check_sizes(encoder: DwiseNeuro) -> None:
    """Raises NeuroreconError with one line where the encoder's sizes don't fit together."""
    e = encoder
    grouped = (e.core_features[-1:], *((f,) for f in e.cortex_features))
    checks = (
        (len(e.num_neurons) > 0 and min(e.num_neurons) > 0, "num_neurons", "one positive count per readout"),
        (len(e.core_features) > 0 and min(e.core_features) > 0, "core_features", "positive widths"),
        (len(e.spatial_strides) == len(e.core_features), "spatial_strides", "one stride per core feature"),
        (min(e.spatial_strides, default=0) > 0, "spatial_strides", "positive strides"),
        (e.spatial_kernel > 0 and e.spatial_kernel % 2 == 1, "spatial_kernel", "an odd size"),
        (e.temporal_kernel > 0 and e.temporal_kernel % 2 == 1, "temporal_kernel", "an odd size"),
        (e.expansion_ratio > 0, "expansion_ratio", "a positive whole number"),
        (
            0 < e.se_reduce_ratio <= min(e.core_features, default=0) * e.expansion_ratio,
            "se_reduce_ratio",
            "at most the narrowest expanded width",
        ),
        (min(e.cortex_features, default=1) > 0, "cortex_features", "positive widths"),
        (
            e.groups > 0 and all(f[0] % e.groups == 0 for f in grouped),
            "groups",
            "a divisor of the last core width and of every cortex width",
        ),
        (e.softplus_beta > 0, "softplus_beta", "a positive number"),
        (0 <= e.drop_rate < 1, "drop_rate", "0 <= rate < 1"),
        (0 <= e.drop_path_rate < 1, "drop_path_rate", "0 <= rate < 1"),
    )
    for fits, name, expected in checks:
        if not fits:
            raise NeuroreconError(f"DwiseNeuro.{name}: expected {expected}, found {getattr(e, name)}")
