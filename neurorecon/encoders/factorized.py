"""Factorised 3D convolutional core with a Gaussian readout: the field's standard baseline encoder.

Core: layers of a spatial convolution followed by a causal temporal one (Hoefling et al. 2022; Turishcheva et al. 2023).
Readout: see `gaussian_readout`.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from neurorecon.encoders.convolution import convolve
from neurorecon.encoders.gaussian_readout import GaussianReadout, space_to_depth
from neurorecon.errors import NeuroreconError


class SpatialConv(nn.Module):
    """Convolution over height and width, every frame alike; (window, time, h, w, channel)."""

    features: int
    kernel_size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k = self.kernel_size
        kernel = self.param("kernel", nn.initializers.he_normal(), (k, k, x.shape[-1], self.features))
        frames = x.reshape(-1, *x.shape[2:])
        same = ((k - 1) // 2, k // 2)
        frames = convolve(frames, kernel.astype(x.dtype), (same, same))
        return frames.reshape(*x.shape[:2], *frames.shape[1:])


class TemporalConv(nn.Module):
    """Causal convolution over time: frame t sees frames t - kernel_size + 1 .. t."""

    features: int
    kernel_size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        window, time, height, width, channels = x.shape
        kernel = self.param("kernel", nn.initializers.he_normal(), (self.kernel_size, 1, channels, self.features))
        past = ((self.kernel_size - 1, 0), (0, 0))
        x = convolve(x.reshape(window, time, height * width, channels), kernel.astype(x.dtype), past)
        return x.reshape(window, time, height, width, self.features)


class BehaviourModulation(nn.Module):
    """Behaviour -> (log gain, offset), each (window, time, neuron): running and pupil change gain and baseline."""

    num_neurons: int
    hidden: int = 8

    @nn.compact
    def __call__(self, behaviour: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = jnp.tanh(nn.Dense(self.hidden, dtype=behaviour.dtype, name="hidden")(behaviour))
        zeros = nn.initializers.zeros_init()
        gain = nn.Dense(self.num_neurons, False, kernel_init=zeros, dtype=behaviour.dtype, name="gain")(hidden)
        offset = nn.Dense(self.num_neurons, False, kernel_init=zeros, dtype=behaviour.dtype, name="offset")(hidden)
        return jnp.tanh(gain), offset


class Factorized(nn.Module):
    """Factorised 3D convolutional core + Gaussian readout + behaviour gain and offset.

    Attributes:
      num_neurons: neurons of each readout (one readout per animal).
      canvas: (height, width) of the inputs, in pixels.
      window_frames, frame_step: frames per training window and the distance between them, in frames.
      warmup_frames: first frames of a window whose history is incomplete; training leaves them out.
      features, spatial_kernels, temporal_kernels: widths and kernel sizes of the core's layers.
      strides: of each layer in space.
      readout_pool: feature pixels (side) averaged before the readout, which is most of the work with many neurons.
      stimulus_mean, stimulus_std, behaviour_mean, behaviour_std: statistics of the training trials.
    """

    num_neurons: tuple[int, ...]
    canvas: tuple[int, ...]
    window_frames: int = 32
    frame_step: int = 2
    warmup_frames: int = 10
    features: tuple[int, ...] = (24, 48)
    spatial_kernels: tuple[int, ...] = (5, 3)
    temporal_kernels: tuple[int, ...] = (7, 5)
    strides: tuple[int, ...] = (2, 2)
    readout_pool: int = 1
    stimulus_mean: float = 127.5
    stimulus_std: float = 60.0
    behaviour_mean: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    behaviour_std: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)

    padding: float = 127.5

    time_invariant: ClassVar[bool] = True

    @property
    def screen(self) -> tuple[int, int]:
        height, width = self.canvas
        return height, width

    @nn.compact
    def __call__(self, inputs: jax.Array, *, readout: int = 0, train: bool = False) -> jax.Array:
        """Predicted responses.

        Args:
          inputs: (window, time, height, width, 5): movie in grey values 0..255, then the four behaviour planes.
          readout: which animal's readout.
          train: batch statistics in place of running ones.

        Returns:
          (window, time, neuron), positive.

        Raises:
          NeuroreconError: layers described by tuples of unequal lengths.
        """
        layers = {
            name: len(getattr(self, name)) for name in ("features", "spatial_kernels", "temporal_kernels", "strides")
        }
        if len(set(layers.values())) > 1:
            raise NeuroreconError(f"encoder factorized: expected one value for each layer, found {layers}")
        movie = (inputs[..., :1] - self.stimulus_mean) / self.stimulus_std
        behaviour = inputs[..., 1:].mean(axis=(-3, -2))
        behaviour = (behaviour - jnp.asarray(self.behaviour_mean, inputs.dtype)) / jnp.asarray(
            self.behaviour_std, inputs.dtype
        )
        x = movie
        for layer, (width, space, time, stride) in enumerate(
            zip(self.features, self.spatial_kernels, self.temporal_kernels, self.strides)
        ):
            x = space_to_depth(x, stride)
            x = SpatialConv(width, space, name=f"spatial{layer}")(x)
            x = TemporalConv(width, time, name=f"temporal{layer}")(x)
            x = nn.BatchNorm(
                use_running_average=not train, momentum=0.95, epsilon=1e-5, dtype=x.dtype, name=f"norm{layer}"
            )(x)
            x = nn.elu(x)
        readouts = [GaussianReadout(n, self.readout_pool, name=f"readout{i}") for i, n in enumerate(self.num_neurons)]
        modulations = [BehaviourModulation(n, name=f"behaviour{i}") for i, n in enumerate(self.num_neurons)]
        if self.is_initializing():  # every readout needs its parameters, whichever animal comes first
            for look, modulate in zip(readouts, modulations):
                look(x), modulate(behaviour)
        gain, offset = modulations[readout](behaviour)
        scale = self._scale(readout)
        return scale * jnp.exp(gain) * jax.nn.softplus(readouts[readout](x) + offset)

    def _scale(self, readout: int) -> jax.Array:
        scales = [
            self.param(f"log_scale{i}", nn.initializers.zeros_init(), (n,)) for i, n in enumerate(self.num_neurons)
        ]
        return jnp.exp(scales[readout])
