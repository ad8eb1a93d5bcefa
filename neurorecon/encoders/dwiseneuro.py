"""DwiseNeuro: the encoder that won Sensorium 2023, exactly as published, for any size; or its core for small data.

Axes: inputs (window, time, height, width, channel), channel 0 the movie (grey 0..255), channels 1.. the
behaviour, each filling its plane; outputs (window, time, neuron). Facts: Baikulov, DwiseNeuro
(lRomul/sensorium, MIT); every batch norm has epsilon 1e-5 and momentum 0.1.

Pointwise convolutions are matrix products on the channel axis; for depthwise ones see `depthwise`. In evaluation
batch norms go into the kernels before them. All arithmetic follows the dtype of inputs and variables.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from neurorecon.encoders import position
from neurorecon.encoders.batch_norm import BatchNorm, with_moments
from neurorecon.encoders.depthwise import depthwise_spatial, depthwise_temporal, in_pieces, kept, over_pieces
from neurorecon.encoders.dwiseneuro_sizes import check_sizes
from neurorecon.encoders.factorized import BehaviourModulation
from neurorecon.encoders.gaussian_readout import GaussianReadout
from neurorecon.encoders.stem import Stem, normal_fan_out
from neurorecon.encoders.written_gradients import gated_projection, silu
from neurorecon.errors import NeuroreconError


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
        # In two small parts, each zero in the other's channels, and written out: fused into the sum, the code would be
        # worked out for every value of x.
        of_time = np.arange(channels) < 2 * frequencies.value.size
        for shape, mine in (((x.shape[1], 1, 1), of_time), ((1, *x.shape[2:4]), ~of_time)):
            code = position.position_code(frequencies.value, (*shape, channels)).astype(x.dtype)
            x = x + jax.lax.optimization_barrier(jnp.where(mine, code, 0))
        return x


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
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(window, time, height, width, channel) -> (window, time, ceil(height / stride), ..., features)."""
        x = shortcut = kept(PositionCode(name="position")(x) if self.position_code else x)
        narrow = x.shape[-1]
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

        def gated(x, project, offset):
            """The gate goes into each window's projection, which is smaller than what it gates."""
            gate = nn.silu(jnp.mean(x, axis=(1, 2, 3)) @ squeeze + squeeze_bias)
            gate = nn.sigmoid(gate @ excite + excite_bias)
            if train:
                return jnp.einsum("nthwi,nio->nthwo", x, gate[:, :, None] * project) + offset
            return gated_projection(x, gate, project) + offset

        numbers = math.prod(x.shape[2:4]) * wide
        if train:
            # No norm asks for a pass of its own: moments come with what they are of, or from what it is made of.
            centre, expand, b0 = norms[0].of_product(x, expand)

            def of_frames(frames):
                seen = nn.silu((frames - centre).astype(x.dtype) @ expand + b0).astype(x.dtype)
                return depthwise_spatial(seen, spatial, self.spatial_stride)

            seen, mean, variance = with_moments(of_frames, x.reshape(-1, *x.shape[2:]), numbers)
            seen = seen.reshape(*x.shape[:2], *seen.shape[1:])
            values = seen.size // wide
            f1, b1 = norms[1].of_moments(mean, variance, values)

            def of_windows(windows):
                return depthwise_temporal(nn.silu(windows * f1 + b1).astype(x.dtype), temporal)

            seen, mean, variance = with_moments(of_windows, seen, seen[0].size)
            f2, b2 = norms[2].of_moments(mean, variance, values)

            def projected(windows):
                return gated(nn.silu(windows * f2 + b2).astype(x.dtype), project, 0)

            out = over_pieces(projected, seen, seen[0].size)
            x = norms[3](out.reshape(-1, *out.shape[2:]), train)
        else:
            kernels = zip(norms, (expand, spatial, temporal, project))
            (expand, b0), (spatial, b1), (temporal, b2), (project, b3) = (norm.absorbed(k) for norm, k in kernels)

            def of_frames(frames):
                return depthwise_spatial(silu(frames @ expand + b0), spatial, self.spatial_stride)

            # Only the smaller sum is kept: the pieces' gradients then need no second convolution.
            x = silu(in_pieces(of_frames, x, numbers) + b1)
            x = gated(silu(depthwise_temporal(x, temporal) + b2), project, b3)
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
      readout_kind: "published": the core is averaged over space, then goes through the cortex layers; or "gaussian",
        not published: each neuron sees the core at a place of its own (see `gaussian_readout`), without cortex
        layers. That learns from far fewer trials. The canvas is the screen.
      stem_patch, stem_kernel: the stem sees `stem_kernel` x `stem_kernel` cells of `stem_patch` x `stem_patch` pixels,
        one place for each cell; published: single pixels. This and what follows goes with the gaussian readout only.
      position_code: whether blocks add it; without, the core sees every place and moment of a window alike.
      behaviour_at: "inputs", as published; or "readout": the movie alone goes through the core, and behaviour changes
        each neuron's gain and baseline (see `factorized.BehaviourModulation`).
      readout_lag: the readout sees the core so many (model) frames earlier. The core's temporal kernels reach as far
        ahead as back, responses depend on the past alone.
      stimulus_mean, stimulus_std, behaviour_mean, behaviour_std: of the training trials, taken off the inputs.
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
    readout_kind: str = "published"
    stem_patch: int = 1
    stem_kernel: int = 1
    position_code: bool = True
    behaviour_at: str = "inputs"
    readout_lag: int = 0
    stimulus_mean: float = 0.0
    stimulus_std: float = 1.0
    behaviour_mean: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    behaviour_std: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)

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
        inputs, behaviour = self._standardised(inputs), None
        if self.behaviour_at == "readout":
            inputs, behaviour = inputs[..., :1], inputs[..., 1:].mean(axis=(2, 3))
        stem = Stem(self.core_features[0], self.folded, self.stem_patch, self.stem_kernel, name="stem")
        x = stem(inputs, train)
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
                self.position_code,
                name=f"block{i}",
            )(x, train)
        # At initialisation every readout is built, whichever was asked for.
        needed = range(len(self.num_neurons)) if readout is None or self.is_initializing() else [readout]
        if self.readout_kind == "gaussian":
            x = nn.Dropout(self.drop_rate, broadcast_dims=(1, 2, 3))(x, deterministic=not train)
            if self.readout_lag:  # before the window's first frame, that frame
                past = jnp.repeat(x[:, :1], self.readout_lag, axis=1)
                x = jnp.concatenate([past, x[:, : -self.readout_lag]], axis=1)
            outputs = {i: self._through_gaussians(x, i, behaviour) for i in needed}
            return tuple(outputs.values()) if readout is None else outputs[readout]
        x = jnp.mean(x, axis=(2, 3))
        self.sow("intermediates", "pool", x)
        for i, features in enumerate(self.cortex_features):
            x = CortexLayer(features, self.groups, self.drop_path_rate, self.folded, name=f"cortex{i}")(x, train)
        outputs = {
            i: Readout(self.num_neurons[i], self.groups, self.softplus_beta, self.drop_rate, name=f"readout{i}")(
                x, train
            )
            for i in needed
        }
        return tuple(outputs.values()) if readout is None else outputs[readout]

    def _standardised(self, inputs: jax.Array) -> jax.Array:
        mean, std = (self.stimulus_mean, *self.behaviour_mean), (self.stimulus_std, *self.behaviour_std)
        if not any(mean) and all(x == 1.0 for x in std):
            return inputs
        return (inputs - jnp.asarray(mean, inputs.dtype)) / jnp.asarray(std, inputs.dtype)

    def _through_gaussians(self, x: jax.Array, index: int, behaviour: jax.Array | None) -> jax.Array:
        number = self.num_neurons[index]
        scale = jnp.exp(self.param(f"log_scale{index}", nn.initializers.zeros, (number,)))
        seen = GaussianReadout(number, name=f"readout{index}")(x)
        if behaviour is None:
            return scale * nn.softplus(seen)
        gain, offset = BehaviourModulation(number, name=f"behaviour{index}")(behaviour)
        return scale * jnp.exp(gain) * nn.softplus(seen + offset)
