"""Predicted responses to a whole trial."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from neurorecon.encoders.canvas import make_inputs
from neurorecon.errors import NeuroreconError


def predict_trial(
    encoder: nn.Module,
    variables: Any,
    stimulus: Any,
    behaviour: Any,
    readout: int = 0,
    chunk: int = 8,
    every: int = 1,
) -> np.ndarray:
    """Predicts a trial's responses in evaluation mode, as published.

    An encoder of fixed windows sees every window of `window_frames` frames, `frame_step` apart, that fits
    into the trial; a frame's response is the mean over all windows that contain it. Frames that no window
    reaches are 0: the whole trial where it is shorter than the window's span, (window_frames - 1) *
    frame_step + 1 frames. A time-invariant encoder sees each frame once: the trial is split into `frame_step`
    interleaved streams, each predicted in one go.

    Compiled code is kept: trials of any length share it for window encoders, trials of one length otherwise.

    Args:
      encoder: a linen encoder with `canvas`, `padding`, `window_frames`, `frame_step` and `time_invariant`.
      variables: its variables.
      stimulus: (time, height, width), grey 0..255.
      behaviour: (time, 4) = pupil dilation, running speed, pupil x, pupil y.
      readout: which animal.
      chunk: windows on the device at once.
      every: above 1, windows begin at every so many frames only, in each phase of `frame_step`: quicker, not as
        published, and without effect on time-invariant encoders.

    Returns:
      (time, neuron), in the dtype of the encoder's output.

    Raises:
      NeuroreconError: wrong shapes, NaN or infinity, an unknown readout.
    """
    stimulus, behaviour = _checked(stimulus, behaviour)
    num_neurons = len(encoder.num_neurons)  # type: ignore[attr-defined]
    if not 0 <= readout < num_neurons:
        raise NeuroreconError(f"readout: expected 0 to {num_neurons - 1} (one per animal), found {readout}")
    if chunk < 1:
        raise NeuroreconError(f"chunk: expected at least 1 window at once, found {chunk}")
    if every < 1:
        raise NeuroreconError(f"every: expected at least 1 frame, found {every}")
    if encoder.time_invariant:  # type: ignore[attr-defined]
        return _predict_streams(encoder, variables, stimulus, behaviour, readout)
    return _predict_windows(encoder, variables, stimulus, behaviour, readout, chunk, every)


def predict_ensemble(
    encoders: Sequence[tuple[nn.Module, Any]],
    stimulus: Any,
    behaviour: Any,
    readout: int = 0,
    chunk: int = 8,
) -> np.ndarray:
    """The arithmetic mean of `predict_trial` over (encoder, variables) pairs; (time, neuron)."""
    if not encoders:
        raise NeuroreconError("encoders: expected at least one (encoder, variables) pair, found none")
    predictions = [predict_trial(e, v, stimulus, behaviour, readout, chunk) for e, v in encoders]
    if len({p.shape for p in predictions}) > 1:
        counts = [p.shape[1] for p in predictions]
        raise NeuroreconError(f"encoders: expected readouts with equal numbers of neurons, found {counts}")
    return np.mean(predictions, axis=0, dtype=np.float64).astype(predictions[0].dtype)


@functools.partial(jax.jit, static_argnames=("encoder", "readout"))
def _apply(encoder, variables, stimulus, behaviour, readout):
    inputs = make_inputs(stimulus, behaviour, encoder.canvas, encoder.padding)
    return encoder.apply(variables, inputs, readout=readout)


def _predict_windows(encoder, variables, stimulus, behaviour, readout, chunk, every) -> np.ndarray:
    num_frames = len(stimulus)
    offsets = np.arange(encoder.window_frames) * encoder.frame_step
    num_windows = num_frames - int(offsets[-1])
    if num_windows < 1:
        # The dtype that a longer trial would have, found without running anything.
        shape = jax.eval_shape(
            functools.partial(_apply, encoder, readout=readout),
            variables,
            jax.ShapeDtypeStruct((1, len(offsets), *stimulus.shape[1:]), stimulus.dtype),
            jax.ShapeDtypeStruct((1, len(offsets), 4), behaviour.dtype),
        )
        return np.zeros((num_frames, shape.shape[-1]), shape.dtype)
    total = None
    counts = np.zeros(num_frames)
    variables = jax.device_put(variables)
    begin = _window_starts(num_windows, encoder.frame_step, every)
    for first in range(0, len(begin), chunk):
        # The last chunk is filled up with its last window, so that every chunk has one shape; the fill is not
        # used.
        starts = begin[np.minimum(np.arange(first, first + chunk), len(begin) - 1)]
        frames = starts[:, None] + offsets
        predicted = np.asarray(_apply(encoder, variables, stimulus[frames], behaviour[frames], readout))
        if total is None:
            total = np.zeros((num_frames, predicted.shape[-1]))
        for window in range(min(chunk, len(begin) - first)):
            total[frames[window]] += predicted[window]
            counts[frames[window]] += 1
    assert total is not None
    return (total / np.maximum(counts, 1)[:, None]).astype(predicted.dtype)


def _window_starts(num_windows: int, frame_step: int, every: int) -> np.ndarray:
    """Groups of `frame_step` starts, one group in `every` frames; the last ones too, for the trial's end."""
    starts = np.arange(num_windows)
    return starts[(starts % max(every, frame_step) < frame_step) | (starts >= num_windows - frame_step)]


def _predict_streams(encoder, variables, stimulus, behaviour, readout) -> np.ndarray:
    variables = jax.device_put(variables)
    responses = None
    for offset in range(min(encoder.frame_step, len(stimulus))):
        stream = slice(offset, None, encoder.frame_step)
        predicted = np.asarray(_apply(encoder, variables, stimulus[None, stream], behaviour[None, stream], readout)[0])
        if responses is None:
            responses = np.zeros((len(stimulus), predicted.shape[-1]), predicted.dtype)
        responses[stream] = predicted
    assert responses is not None
    return responses


def _checked(stimulus: Any, behaviour: Any) -> tuple[np.ndarray, np.ndarray]:
    stimulus, behaviour = np.asarray(stimulus), np.asarray(behaviour)
    if stimulus.ndim != 3 or 0 in stimulus.shape:
        raise NeuroreconError(f"stimulus: expected (time, height, width), not empty, found {stimulus.shape}")
    if behaviour.shape != (len(stimulus), 4):
        raise NeuroreconError(
            f"behaviour: expected (time, 4) = ({len(stimulus)}, 4) as the stimulus has, "
            f"found {behaviour.shape}; the channels are pupil_dilation, running_speed, pupil_x, pupil_y"
        )
    checked = []
    for name, array in (("stimulus", stimulus), ("behaviour", behaviour)):
        if array.dtype.kind not in "fiub":
            raise NeuroreconError(f"{name}: expected numbers, found dtype {array.dtype}")
        if array.dtype.kind != "f":
            array = array.astype(np.float32)
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if not finite.all():
            raise NeuroreconError(
                f"{name}: expected finite numbers, found NaN or infinity first at frame "
                f"{int(np.argmin(finite))}; cut the trial to its valid length"
            )
        checked.append(array)
    return checked[0], checked[1]
