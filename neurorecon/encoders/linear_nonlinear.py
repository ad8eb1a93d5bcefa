"""Linear-nonlinear encoder: each neuron a spatiotemporal filter of low rank, then a softplus.

The textbook model of early vision (Chichilnisky 2001) with filters separable in space and time, `rank` of them summed.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from neurorecon.encoders.factorized import BehaviourModulation


def gaussian_envelope(centre: jax.Array, width: float, height: int, columns: int) -> jax.Array:
    """(pixel, neuron) Gaussian of 1 at its centre.

    Args:
      centre: (neuron, 2) row and column, pixels.
      width: standard deviation, pixels.
      height, columns: of the frame; pixels are counted row by row.
    """
    rows = jnp.repeat(jnp.arange(height, dtype=centre.dtype), columns)[:, None]
    across = jnp.tile(jnp.arange(columns, dtype=centre.dtype), height)[:, None]
    square = (rows - centre[:, 0]) ** 2 + (across - centre[:, 1]) ** 2
    return jnp.exp(-square / (2 * width**2))


class LinearNonlinearReadout(nn.Module):
    """Movie (window, time, height, width) -> drive (window, time, neuron)."""

    num_neurons: int
    rank: int
    num_taps: int
    envelope: float

    @nn.compact
    def __call__(self, movie: jax.Array) -> jax.Array:
        window, time, height, width = movie.shape
        pixels, dtype, n, last = height * width, movie.dtype, self.num_neurons, self.num_taps - 1
        small = nn.initializers.normal(0.3 / pixels**0.5)
        space = self.param("space", small, (pixels, n, self.rank)).astype(dtype)
        taps = self.param("time", nn.initializers.normal(0.3), (self.num_taps, n, self.rank)).astype(dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (n,)).astype(dtype)
        if self.envelope > 0:
            middle = jnp.asarray([(height - 1) / 2, (width - 1) / 2])
            centre = self.param("centre", lambda _: jnp.broadcast_to(middle, (n, 2)))
            # It comes from the data and stays: weights learn at a rate that falls with the distance from it.
            centre = jax.lax.stop_gradient(centre).astype(dtype)
            space = space * gaussian_envelope(centre, self.envelope, height, width)[:, :, None]
        seen = movie.reshape(window, time, pixels) @ space.reshape(pixels, -1)
        seen = jnp.pad(seen.reshape(window, time, n, self.rank), ((0, 0), (last, 0), (0, 0), (0, 0)))
        # A depthwise convolution as shifted multiply-adds; tap 0 is the present frame.
        drive = sum((seen[:, last - tap : last - tap + time] * taps[tap]).sum(-1) for tap in range(self.num_taps))
        return drive + bias


class LinearNonlinear(nn.Module):
    """Low-rank spatiotemporal filter per neuron + softplus, with behaviour gain and offset.

    Attributes are those of `Factorized`, and:
      rank: space-time products summed in each filter.
      num_taps: of the filters in time, `frame_step` frames apart.
      envelope: standard deviation in pixels of a Gaussian around each neuron's receptive field that multiplies the
        filters in space, so that distant pixels can't fit the noise; 0 for none. Training then also starts at the
        spike-triggered average, which says where the receptive fields are.
    """

    num_neurons: tuple[int, ...]
    canvas: tuple[int, ...]
    window_frames: int = 32
    frame_step: int = 1
    rank: int = 2
    num_taps: int = 15
    envelope: float = 0.0
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

    @property
    def warmup_frames(self) -> int:
        """First frames of a window whose history is incomplete."""
        return self.num_taps - 1

    @nn.compact
    def __call__(self, inputs: jax.Array, *, readout: int = 0, train: bool = False) -> jax.Array:
        """Predicted responses (window, time, neuron), positive; arguments as for `Factorized`."""
        del train  # no batch statistics
        movie = (inputs[..., 0] - self.stimulus_mean) / self.stimulus_std
        behaviour = inputs[..., 1:].mean(axis=(-3, -2))
        behaviour = (behaviour - jnp.asarray(self.behaviour_mean, inputs.dtype)) / jnp.asarray(
            self.behaviour_std, inputs.dtype
        )
        filters = [
            LinearNonlinearReadout(n, self.rank, self.num_taps, self.envelope, name=f"readout{i}")
            for i, n in enumerate(self.num_neurons)
        ]
        modulations = [BehaviourModulation(n, name=f"behaviour{i}") for i, n in enumerate(self.num_neurons)]
        if self.is_initializing():
            for look, modulate in zip(filters, modulations):
                look(movie), modulate(behaviour)
        scales = [
            self.param(f"log_scale{i}", nn.initializers.zeros_init(), (n,)) for i, n in enumerate(self.num_neurons)
        ]
        gain, offset = modulations[readout](behaviour)
        return jnp.exp(scales[readout] + gain) * jax.nn.softplus(filters[readout](movie) + offset)
