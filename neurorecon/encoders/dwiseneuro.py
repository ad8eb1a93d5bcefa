"""DwiseNeuro: the encoder that won Sensorium 2023, exactly as published, for any size; or its core for small data.

Axes: inputs (window, time, height, width, channel), channel 0 the movie (grey 0..255), channels 1.. the
behaviour, each filling its plane; outputs (window, time, neuron). Facts: Baikulov, DwiseNeuro
(lRomul/sensorium, MIT); every batch norm has epsilon 1e-5 and momentum 0.1.

Pointwise convolutions are matrix products on the channel axis; for blocks see `dwiseneuro_block`. All arithmetic
follows the dtype of inputs and variables.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from neurorecon.encoders.batch_norm import BatchNorm
from neurorecon.encoders.dwiseneuro_block import Block, stochastic_depth, tile_channels
from neurorecon.encoders.dwiseneuro_sizes import check_sizes
from neurorecon.encoders.factorized import BehaviourModulation
from neurorecon.encoders.gaussian_readout import GaussianReadout
from neurorecon.encoders.pending import known
from neurorecon.encoders.stem import Stem, normal_fan_out
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
            if train and self.remat:  # which keeps what goes from block to block
                x = known(x.values())
        if train:
            x = x.values()
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
