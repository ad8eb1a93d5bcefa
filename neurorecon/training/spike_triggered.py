"""Linear-nonlinear filters from the spike-triggered average: where training of such encoders starts."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter

from neurorecon.encoders.linear_nonlinear import LinearNonlinear, gaussian_envelope
from neurorecon.errors import NeuroreconError
from neurorecon.recordings.prepared import PreparedRecording

# The softplus starts where it is close to an exponential: neurons that are silent most of the time.
START_BIAS = -2.0


class Filters(NamedTuple):
    """Parameters of a readout.

    Attributes:
      centre: (neuron, 2) row and column of the receptive fields, pixels.
      space: (pixel, neuron, rank), to be multiplied by the envelope.
      time: (tap, neuron, rank).
    """

    centre: np.ndarray
    space: np.ndarray
    time: np.ndarray


def spike_triggered_average(
    recording: PreparedRecording, *, num_taps: int, frame_step: int = 1, mean: float, std: float, tier: str = "train"
) -> np.ndarray:
    """(tap, neuron, pixel): the mean of (movie - mean) / std, tap * frame_step frames before a response.

    Weighted by the response's deviation from its mean, and in units of that mean (Chichilnisky 2001, eq. 4): for white
    noise and an exponential nonlinearity this is the filter itself.

    Raises:
      NeuroreconError: no trial of the tier is as long as the filters.
    """
    recording_mean = _mean_response(recording, tier)
    average = np.zeros((num_taps, recording.num_neurons, int(np.prod(recording.frame_shape))), np.float32)
    counts = np.zeros(num_taps)
    for trial_id in recording.trial_ids(tier):
        trial = recording.target(trial_id)
        movie = (trial.stimulus.reshape(trial.num_frames, -1) - mean) / std
        deviation = trial.responses - recording_mean
        for tap in range(num_taps):
            frames = trial.num_frames - tap * frame_step
            if frames > 0:
                average[tap] += deviation[-frames:].T @ movie[:frames]
                counts[tap] += frames
    if not counts.all():
        raise NeuroreconError(
            f"{recording.name}: expected {tier} trials longer than the {num_taps} taps of the filters, found none"
        )
    return average / (counts[:, None, None] * np.maximum(recording_mean, 1e-9)[:, None]).astype(np.float32)


def separable_filters(average: np.ndarray, frame_shape: tuple[int, int], *, rank: int, envelope: float) -> Filters:
    """The strongest `rank` space-time products of each spike-triggered average (tap, neuron, pixel), near its peak.

    Args:
      average: as from `spike_triggered_average`.
      frame_shape: height and width; pixels are counted row by row.
      rank: products, at most the number of taps and of pixels.
      envelope: standard deviation in pixels of the encoder's Gaussian envelope.
    """
    taps, neurons, pixels = average.shape
    smooth = gaussian_filter(average.reshape(taps, neurons, *frame_shape), (1.0, 0, 0.7, 0.7), mode="constant")
    peak = np.abs(smooth).max(0).reshape(neurons, pixels).argmax(1)
    centre = np.stack(np.divmod(peak, frame_shape[1]), axis=1).astype(np.float32)
    gaussian = np.asarray(gaussian_envelope(jnp.asarray(centre), envelope, *frame_shape)).T[:, None]
    # Once by the encoder's own envelope and once more, so that the weights beneath it fall off as well.
    near = average.swapaxes(0, 1) * gaussian**2
    time, size, space = np.linalg.svd(near, full_matrices=False)
    root = np.sqrt(size[:, None, :rank])
    space = space[:, :rank] / np.maximum(gaussian, 1e-6) * root.swapaxes(1, 2)
    return Filters(
        centre, np.ascontiguousarray(space.transpose(2, 0, 1)), (time[:, :, :rank] * root).transpose(1, 0, 2)
    )


def start_at_average(
    encoder: LinearNonlinear, params: dict[str, Any], recording: PreparedRecording, readout: int
) -> Any:
    """Parameters of the encoder with one readout's filters, bias and scale taken from the training trials."""
    average = spike_triggered_average(
        recording,
        num_taps=encoder.num_taps,
        frame_step=encoder.frame_step,
        mean=encoder.stimulus_mean,
        std=encoder.stimulus_std,
    )
    filters = separable_filters(average, recording.frame_shape, rank=encoder.rank, envelope=encoder.envelope)
    name, scale = f"readout{readout}", f"log_scale{readout}"
    means = np.maximum(_mean_response(recording, "train"), 1e-6)
    start = {k: jnp.asarray(v, jnp.float32) for k, v in filters._asdict().items()}
    start["bias"] = jnp.full(recording.num_neurons, START_BIAS)
    level = jnp.asarray(np.log(means / np.log1p(np.exp(START_BIAS))), jnp.float32)
    return {**params, name: {**params[name], **start}, scale: level}


def _mean_response(recording: PreparedRecording, tier: str) -> np.ndarray:
    trials = [recording.target(i).responses for i in recording.trial_ids(tier)]
    return np.concatenate(trials).mean(0)
