"""How far the receptive fields of an encoder's neurons reach: from gradients, a backward pass for each neuron."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neurorecon.encoders.canvas import make_inputs
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction.checks import check_encoders

FLOOR = 0.1  # of the highest energy: below it, gradients of a trained network are mostly its errors


def receptive_field_sigmas(
    encoder: Any,
    variables: Any,
    stimulus: np.ndarray,
    behaviour: np.ndarray,
    neurons: Sequence[int] | np.ndarray,
    *,
    readout: int = 0,
) -> np.ndarray:
    """Standard deviation of each neuron's receptive field, (neuron,) pixels; NaN where no pixel moves the neuron.

    The gradient of the response to a movie's last frame is the filter around that movie. Its energy over time, a map,
    has the second moment sigma^2 / 2 where the filter's envelope is a Gaussian of sigma, whatever it contains. Second
    moments of single filters depend on their phase too; the median over neurons hardly does.

    Args:
      encoder, variables: of one member.
      stimulus: (time, height, width), a movie to look around, at least one window long; its first window is shown.
      behaviour: (time, 4).
      neurons: which.
      readout: which animal's readout.

    Raises:
      NeuroreconError: too short a movie, or no such readout or neuron.
    """
    check_encoders([(encoder, variables)], readout, same_canvas=False)
    neurons = np.asarray(neurons, int)
    span = (encoder.window_frames - 1) * encoder.frame_step + 1
    if len(stimulus) < span or len(behaviour) != len(stimulus):
        raise NeuroreconError(
            f"stimulus, behaviour: expected {span} frames of both, found {len(stimulus)} and {len(behaviour)}"
        )
    if neurons.ndim != 1 or not neurons.size or not 0 <= neurons.min() <= neurons.max() < encoder.num_neurons[readout]:
        raise NeuroreconError(f"neurons: expected some of 0..{encoder.num_neurons[readout] - 1}, found others")
    frames = slice(0, span, encoder.frame_step)
    maps = _energies(
        encoder,
        variables,
        jnp.asarray(stimulus[frames], jnp.float32),
        jnp.asarray(behaviour[frames], jnp.float32),
        readout,
        jnp.asarray(neurons),
    )
    return np.array([envelope_sigma(energy) for energy in np.asarray(maps, np.float64)])


def envelope_sigma(energy: np.ndarray) -> float:
    """Sigma of the Gaussian envelope, pixels, of a filter whose energy (height, width) is given; NaN without any."""
    if not energy.max() > 0:
        return float("nan")
    weights = np.where(energy >= FLOOR * energy.max(), energy, 0.0)
    places = np.indices(energy.shape).reshape(2, -1)
    spread = np.cov(places, aweights=weights.ravel(), ddof=0)
    return float(np.sqrt(np.trace(spread)))  # mean of two variances, doubled


@functools.partial(jax.jit, static_argnames=("encoder", "readout"))
def _energies(encoder, variables, stimulus, behaviour, readout, neurons):
    def response(movie, neuron):
        inputs = make_inputs(movie, behaviour, tuple(encoder.canvas), encoder.padding)
        return encoder.apply(variables, inputs[None], readout=readout)[0, -1, neuron]

    return jax.lax.map(lambda neuron: jnp.square(jax.grad(response)(stimulus, neuron)).sum(0), neurons)
