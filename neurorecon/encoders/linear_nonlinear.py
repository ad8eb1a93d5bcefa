"""Linear-nonlinear encoder: each neuron a spatiotemporal filter of low rank, then a softplus.

The textbook model of early vision (Chichilnisky 2001) with filters separable in space and time, `rank` of them summed.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from neurorecon.encoders.factorized import BehaviourModulation


class LinearNonlinearReadout(nn.Module):
    """Movie (window, time, pixel) -> drive (window, time, neuron)."""

    num_neurons: int
    rank: int
    num_taps: int

    @nn.compact
    def __call__(self, movie: jax.Array) -> jax.Array:
        window, time, pixels = movie.shape
        small = nn.initializers.normal(0.3 / pixels**0.5)
        space = self.param("space", small, (pixels, self.num_neurons, self.rank)).astype(movie.dtype)
        taps = self.param("time", nn.initializers.normal(0.3), (self.num_taps, self.num_neurons, self.rank))
        taps = taps.astype(movie.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.num_neurons,)).astype(movie.dtype)
        seen = movie @ space.reshape(pixels, -1)
        seen = jnp.pad(seen.reshape(window, time, self.num_neurons, self.rank), ((0, 0), (self.num_taps - 1, 0), (0, 0), (0, 0)))
        # A depthwise convolution as shifted multiply-adds; tap 0 is the present frame.
        drive = sum(
            (seen[:, self.num_taps - 1 - lag : self.num_taps - 1 - lag + time] * taps[lag]).sum(-1)
            for lag in range(self.num_taps)
        )
        return drive + bias


class LinearNonlinear(nn.Module):
    """Low-rank spatiotemporal filter per neuron + softplus, with behaviour gain and offset.

    Attributes are those of `Factorized`, and `rank` and `num_taps` of the filters.
    """

    num_neurons: tuple[int, ...]
    canvas: tuple[int, ...]
    window_frames: int = 32
    frame_step: int = 1
    warmup_frames: int = 14
    rank: int = 2
    num_taps: int = 15
    stimulus_mean: float = 127.5
    stimulus_std: float = 60.0
    behaviour_mean: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    behaviour_std: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)

    padding: float = 127.5

    time_invariant: ClassVar[bool] = True

    @property
    def screen(self) -> tuple[int, int]:
        return tuple(self.canvas)

    @nn.compact
    def __call__(self, inputs: jax.Array, *, readout: int = 0, train: bool = False) -> jax.Array:
        """Predicted responses (window, time, neuron), positive; arguments as for `Factorized`."""
        del train  # no batch statistics
        movie = (inputs[..., 0] - self.stimulus_mean) / self.stimulus_std
        movie = movie.reshape(*movie.shape[:2], -1)
        behaviour = inputs[..., 1:].mean(axis=(-3, -2))
        behaviour = (behaviour - jnp.asarray(self.behaviour_mean, inputs.dtype)) / jnp.asarray(
            self.behaviour_std, inputs.dtype
        )
        filters = [
            LinearNonlinearReadout(n, self.rank, self.num_taps, name=f"readout{i}")
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
