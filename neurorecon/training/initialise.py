"""Starting values taken from the training trials, where guessing would waste most of a short training."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter

from neurorecon.encoders.dwiseneuro import DwiseNeuro
from neurorecon.encoders.linear_nonlinear import LinearNonlinear
from neurorecon.recordings.prepared import PreparedRecording
from neurorecon.training.spike_triggered import start_at_average


def stimulus_statistics(recordings: Sequence[PreparedRecording], tier: str = "train") -> dict[str, Any]:
    """Mean and standard deviation of pixels and behaviour over the training trials, as fields of an encoder."""
    trials = [r.trial(i) for r in recordings for i in r.trial_ids(tier)[:40]]
    movie = np.concatenate([t.stimulus.reshape(-1) for t in trials])
    behaviour = np.concatenate([t.behaviour for t in trials])
    std = behaviour.std(0)
    return {
        "stimulus_mean": float(movie.mean()),
        "stimulus_std": float(max(movie.std(), 1e-3)),
        "behaviour_mean": tuple(float(x) for x in behaviour.mean(0)),
        # A channel that never moves (a recording without behaviour) must not be divided by zero.
        "behaviour_std": tuple(float(x) if x > 1e-6 else 1.0 for x in std),
    }


def response_means(recording: PreparedRecording, tier: str = "train") -> np.ndarray:
    """(neuron,) mean response over the training trials, at least a thousandth of the largest."""
    total, count = np.zeros(recording.num_neurons), 0
    for trial_id in recording.trial_ids(tier):
        responses = recording.target(trial_id).responses
        total += responses.sum(0)
        count += len(responses)
    means = total / count
    return np.maximum(means, max(1e-3 * means.max(), 1e-6)).astype(np.float32)


def retinotopic_positions(
    recording: PreparedRecording, *, tier: str = "train", lags: Sequence[int] = (3, 6, 9), pool: int = 4
) -> np.ndarray:
    """(neuron, 2) row and column of each neuron's receptive field, -1..1 in units of the shorter half-axis.

    Where the movie's local change and contrast go along with the neuron's response best, at the lag that does best.
    """
    rows, columns = (n // pool for n in recording.frame_shape)
    features, responses = [], []
    for trial_id in recording.trial_ids(tier):
        trial = recording.target(trial_id)
        movie = trial.stimulus
        change = np.abs(np.diff(movie, axis=0, prepend=movie[:1]))
        contrast = np.abs(movie - uniform_filter(movie, (0, 2 * pool + 1, 2 * pool + 1)))
        maps = np.stack([change, contrast])[:, :, : rows * pool, : columns * pool]
        maps = maps.reshape(2, len(movie), rows, pool, columns, pool).mean((3, 5))
        last = len(movie) - max(lags)
        # A feature's own slow drift over the frame is no retinotopy.
        maps = maps - maps.mean((2, 3), keepdims=True)
        features.append(maps[:, :last])
        responses.append(np.stack([trial.responses[lag : lag + last] for lag in lags]))
    x = np.concatenate(features, axis=1).reshape(2, -1, rows * columns)
    y = np.concatenate(responses, axis=1)
    x = (x - x.mean(1, keepdims=True)) / (x.std(1, keepdims=True) + 1e-6)
    y = (y - y.mean(1, keepdims=True)) / (y.std(1, keepdims=True) + 1e-6)
    correlation = np.einsum("ftp,ltn->flnp", x, y, optimize=True) / x.shape[1]
    best = np.maximum(correlation, 0).max((0, 1)).reshape(-1, rows, columns)
    best = gaussian_filter(best, (0, 1, 1), mode="constant")
    peak = best.reshape(len(best), -1).argmax(1)
    half = min(recording.frame_shape) / 2
    row = ((peak // columns + 0.5) * pool - recording.frame_shape[0] / 2) / half
    column = ((peak % columns + 0.5) * pool - recording.frame_shape[1] / 2) / half
    return np.stack([row, column], axis=1).astype(np.float32)


def _softplus_inverse(values: np.ndarray, beta: float) -> np.ndarray:
    scaled = beta * values.astype(np.float64)
    return ((scaled + np.log(-np.expm1(-scaled))) / beta).astype(np.float32)


def start_from_data(variables: Any, recordings: Sequence[PreparedRecording], *, encoder: Any = None) -> Any:
    """Variables whose response scales, biases and positions fit the training trials, where the encoder has such.

    A linear-nonlinear `encoder` with an envelope starts at the spike-triggered average.
    """
    params = dict(variables["params"])
    for index, recording in enumerate(recordings):
        scale = f"log_scale{index}"
        if scale in params:
            # softplus(0) = log 2: the first prediction is the mean response.
            params[scale] = jnp.log(jnp.asarray(response_means(recording)) / np.log(2.0))
        readout = params.get(f"readout{index}", {})
        if isinstance(encoder, DwiseNeuro) and encoder.readout_kind == "published":
            bias = jnp.asarray(_softplus_inverse(response_means(recording), encoder.softplus_beta))
            readout = {**readout, "bias": jnp.zeros_like(readout["bias"]).at[: len(bias)].set(bias)}
            params[f"readout{index}"] = readout
        if "position" in readout and min(recording.frame_shape) >= 16:
            params[f"readout{index}"] = {**readout, "position": jnp.asarray(retinotopic_positions(recording))}
        if isinstance(encoder, LinearNonlinear) and encoder.envelope > 0:
            params = start_at_average(encoder, params, recording, index)
    return {**variables, "params": jax.tree.map(jnp.asarray, params)}
