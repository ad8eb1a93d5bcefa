"""Receptive fields of an encoder's neurons: what a single bright or dark pixel changes in the predicted responses.

    encoders -> `probe_pixels` -> `receptive_field_maps` -> `population_receptive_field`

Axes: model, polarity (bright, dark), height, width, period (before, shown, after), neuron. Height and width count
places: single pixels, as published, or squares of `spot` pixels a side, which take 1 / spot^2 of the time.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter

from neurorecon.encoders.canvas import make_inputs
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction.checks import check_encoders

GREY = 127.5
PUBLISHED_PADDING = 127.5  # grey around the screen, where training pads with 0


class PixelResponses(NamedTuple):
    """Predicted responses to pixels or squares, means over each period's frames; see `probe_pixels`.

    Attributes:
      responses: (model, polarity, height, width, period, neuron) float32: of every model, to a bright (0) and a dark
        (1) pixel or square at each place of the screen, before, while and after it is shown.
      blank: (model, period, neuron) float32: in the same frames, to the background alone.
    """

    responses: np.ndarray
    blank: np.ndarray


class ReceptiveFieldMaps(NamedTuple):
    """One map for each neuron and polarity; see `receptive_field_maps`.

    Attributes:
      maps: (polarity, height, width, neuron) float32, 0 to 1 at its highest pixel; zeros where unresponsive.
      responsive: (polarity, neuron) bool: some pixel changed the response by the threshold or more.
      peaks: (polarity, neuron, 2) int: row and column of the highest pixel (first of equals), -1 where unresponsive.
      strength: (polarity, neuron) float32: largest relative change by any pixel, before threshold and smoothing.
    """

    maps: np.ndarray
    responsive: np.ndarray
    peaks: np.ndarray
    strength: np.ndarray


def probe_pixels(
    encoders: Sequence[tuple[Any, Any]],
    behaviour: np.ndarray,
    *,
    readout: int = 0,
    values: tuple[float, float] = (255.0, 0.0),
    background: float = GREY,
    padding: float | None = None,
    spot: int = 1,
    periods: tuple[int, int, int] = (15, 15, 15),
    chunk: int = 32,
    found: np.ndarray | None = None,
    on_chunk: Callable[[int, int], None] | None = None,
) -> PixelResponses:
    """Shows every pixel of the screen alone, bright and dark, to every encoder (Bauer et al. 2026).

    As published: one pixel at 255 or 0 on 127.5, 15 frames before, with and after it, constant mean behaviour, trials
    predicted as by `predict_trial`. The published code pads the canvas around the screen with 127.5
    (`padding=PUBLISHED_PADDING`) although training pads with 0, and kept the last model alone; here each is kept.

    The result takes 24 * height * width * neuron bytes for each model (0.44 GB for 36 x 64 places, 8,000 neurons): give
    the encoders one by one where that is too much.

    Args:
      encoders: (encoder, variables) of every member of the ensemble.
      behaviour: (4,), held constant: the recording's mean.
      readout: which animal's readout.
      values: grey values 0..255 of the bright and the dark pixel.
      background: grey value 0..255 of the rest of the screen.
      padding: grey value of the canvas around the screen; None: as in the encoder's training.
      spot: side of the squares in pixels, laid side by side from the upper left; those at the far borders are cut.
      periods: frames before, with and after the pixel; together at least one window of the encoder.
      chunk: pixels on the device at once, one window of each; bounds memory and changes nothing else.
      found: of shape `probe_shape`, float32, NaN where a stimulus is still to be shown; filled in place, so that a file
        that it maps lets a run go on where it was killed. None: all are shown.
      on_chunk: called with the pixels done and the pixels in all, over all models.

    Raises:
      NeuroreconError: shapes or values that don't fit, too few frames, or predictions that are not finite.
    """
    check_encoders(encoders, readout, same_canvas=False)
    behaviour = np.asarray(behaviour)
    if behaviour.shape != (4,) or behaviour.dtype.kind not in "fiu" or not np.isfinite(behaviour).all():
        raise NeuroreconError(f"behaviour: expected 4 finite means, found {behaviour.dtype} of shape {behaviour.shape}")
    for name, value in (("values", values[0]), ("values", values[1]), ("background", background)):
        if not 0 <= value <= 255:
            raise NeuroreconError(f"{name}: expected grey values 0..255, found {value}")
    if len(periods) != 3 or min(periods) < 1:
        raise NeuroreconError(f"periods: expected 3 numbers of frames, at least 1 each, found {tuple(periods)}")
    if chunk < 1:
        raise NeuroreconError(f"chunk: expected at least 1 pixel at once, found {chunk}")
    shape = probe_shape(encoders, readout, spot)
    if found is None:
        found = np.full(shape, np.nan, np.float32)
    elif found.shape != shape or found.dtype != np.float32:
        raise NeuroreconError(f"found: expected float32 of shape {shape}, found {found.dtype} of {found.shape}")
    height, width = _places(encoders[0][0].screen, spot)
    rows, columns = (x.ravel() for x in np.mgrid[:height, :width])
    # Every stimulus: row, column, grey value; the last one shows nothing.
    stimuli = np.concatenate([np.stack([rows, columns, np.full(rows.size, v)], 1) for v in values])
    stimuli = np.append(stimuli, [[0, 0, background]], axis=0).astype(np.float32)
    passes = [_passes(encoder, periods) for encoder, _ in encoders]
    num_neurons, total = encoders[0][0].num_neurons[readout], len(encoders) * len(stimuli)
    for model, (encoder, variables) in enumerate(encoders):
        variables = jax.device_put(variables)
        static = (encoder, readout, encoder.padding if padding is None else float(padding), spot)
        for first in range(0, len(stimuli), chunk):
            kept = min(chunk, len(stimuli) - first)
            if np.isfinite(found[model, first : first + kept]).all():
                if on_chunk is not None:
                    on_chunk(model * len(stimuli) + first + kept, total)
                continue
            # Filled up with its last stimulus, so that all chunks have one shape.
            now = np.minimum(np.arange(first, first + chunk), len(stimuli) - 1)
            means = sum(
                _probe(static, variables, stimuli[now], np.float32(background), behaviour, frames, shown, weights)
                for frames, shown, weights in passes[model]
            )
            found[model, first : first + kept] = np.asarray(means)[:kept]
            if on_chunk is not None:
                on_chunk(model * len(stimuli) + first + kept, total)
        if not np.isfinite(found[model]).all():
            raise NeuroreconError(f"encoders: the predictions of model {model} are not finite; check its weights")
    responses = found[:, :-1].reshape(len(encoders), 2, height, width, 3, num_neurons)
    return PixelResponses(responses, found[:, -1])


def probe_shape(encoders: Sequence[tuple[Any, Any]], readout: int = 0, spot: int = 1) -> tuple[int, int, int, int]:
    """(model, stimulus, 3, neuron): of what `probe_pixels` finds, before it is put in order.

    Raises:
      NeuroreconError: a spot that is no square of the screen.
    """
    encoder = encoders[0][0]
    height, width = _places(encoder.screen, spot)
    return len(encoders), 2 * height * width + 1, 3, encoder.num_neurons[readout]


def _places(screen: Sequence[int], spot: int) -> tuple[int, int]:
    if not 1 <= spot <= min(screen):
        raise NeuroreconError(f"spot: expected 1 to {min(screen)} pixels, found {spot}")
    return -(-screen[0] // spot), -(-screen[1] // spot)


@functools.partial(jax.jit, static_argnames=("static",))
def _probe(static, variables, stimuli, background, behaviour, frames, shown, weights):
    """One window of each stimulus: its share (stimulus, period, neuron) of the means over periods."""
    encoder, readout, padding, spot = static
    num_stimuli, num_frames = len(stimuli), len(frames)
    height, width = encoder.screen
    values = jnp.where(shown, stimuli[:, 2:], background)[..., None, None]
    in_row = jnp.arange(height) // spot == stimuli[:, :1]
    in_column = jnp.arange(width) // spot == stimuli[:, 1:2]
    movies = jnp.where((in_row[:, :, None] & in_column[:, None])[:, None], values, background)
    planes = jnp.broadcast_to(behaviour.astype(movies.dtype), (num_stimuli, num_frames, 4))
    predicted = encoder.apply(variables, make_inputs(movies, planes, tuple(encoder.canvas), padding), readout=readout)
    return jnp.einsum("pt,stn->spn", weights.astype(predicted.dtype), predicted, precision="highest")


def _passes(encoder: Any, periods: tuple[int, int, int]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What the encoder sees one after another, as `predict_trial` cuts a trial.

    Returns:
      For each pass: its frames (time,); where the pixel is shown (time,) bool; the weight (period, time) of each
      predicted frame in the mean over a period of the mean over the passes that hold a frame.
    """
    num_frames, step = sum(periods), encoder.frame_step
    if encoder.time_invariant:
        cuts = [np.arange(offset, num_frames, step) for offset in range(min(step, num_frames))]
    else:
        offsets = np.arange(encoder.window_frames) * step
        cuts = [start + offsets for start in range(num_frames - int(offsets[-1]))]
        if not cuts:
            raise NeuroreconError(
                f"periods: expected at least {int(offsets[-1]) + 1} frames together, one window of the encoder, "
                f"found {num_frames}"
            )
    period = np.repeat(np.arange(3), periods)
    counts = np.bincount(np.concatenate(cuts), minlength=num_frames)
    share = (period == np.arange(3)[:, None]) / (np.maximum(counts, 1) * np.array(periods)[:, None])
    return [(frames, period[frames] == 1, share[:, frames]) for frames in cuts]


def receptive_field_maps(
    pixels: PixelResponses,
    *,
    reference: str = "blank",
    threshold: float = 0.1,
    smoothing: float = 2.0,
) -> ReceptiveFieldMaps:
    """Each neuron's receptive field: where a pixel raises its response, relative to what it would be.

    As published (Bauer et al. 2026) but for the reference: the mean over models; change = (shown - reference) /
    reference; changes below 10 % count as none; smoothed by a Gaussian, zeros beyond the screen; divided by the
    maximum.

    Args:
      pixels: from `probe_pixels`.
      reference: the response that the pixel is compared with: to the "blank" screen in the frames in which the pixel is
        shown, or "before" it, in the same trial (published). The latter mixes in what an encoder does at a trial's
        start, and in those like DwiseNeuro, which see into the future, an answer to the pixel itself.
      threshold: least relative change.
      smoothing: sigma of the Gaussian over height and width in places; 0 for none.

    Returns:
      Maps, responsive neurons, peaks and strengths. Where the reference is 0, no relative change exists and 0 stands.

    Raises:
      NeuroreconError: an unknown reference, arrays of other shapes, or numbers out of range.
    """
    if reference not in ("before", "blank"):
        raise NeuroreconError(f"reference: expected 'before' or 'blank', found {reference!r}")
    if threshold <= 0 or smoothing < 0:
        raise NeuroreconError(
            f"threshold, smoothing: expected above 0 and at least 0, found {threshold} and {smoothing}"
        )
    responses, blank = (np.asarray(x) for x in pixels)
    shape = responses.shape
    if len(shape) != 6 or shape[1] != 2 or shape[4] != 3 or blank.shape != (shape[0], 3, shape[5]) or 0 in shape:
        raise NeuroreconError(
            "pixels: expected (model, 2, height, width, 3, neuron) and (model, 3, neuron) as probe_pixels returns, "
            f"found {shape} and {blank.shape}"
        )
    maps = np.zeros((2, *shape[2:4], shape[5]), np.float32)
    strength = np.zeros((2, shape[5]), np.float32)
    for polarity in (0, 1):  # one at a time: recordings are large
        shown = responses[:, polarity, :, :, 1].mean(0)
        base = responses[:, polarity, :, :, 0].mean(0) if reference == "before" else blank[:, 1].mean(0)
        change = np.divide(shown - base, base, out=np.zeros_like(shown), where=np.broadcast_to(base > 0, shown.shape))
        strength[polarity] = change.max((0, 1))
        maps[polarity] = np.where(change >= threshold, change, 0)
    if smoothing:
        maps = gaussian_filter(maps, (0, smoothing, smoothing, 0), mode="constant")
    highest = maps.max((1, 2))
    responsive = highest > 0
    maps = np.divide(maps, highest[:, None, None], out=maps, where=responsive[:, None, None])
    flat = maps.reshape(2, -1, shape[5]).argmax(1)
    peaks = np.stack(np.divmod(flat, shape[3]), -1)
    return ReceptiveFieldMaps(maps, responsive, np.where(responsive[..., None], peaks, -1), strength)


def population_receptive_field(fields: ReceptiveFieldMaps, statistic: str = "peaks") -> np.ndarray:
    """Where the population looks, (polarity, height, width), as published in either form.

    Args:
      fields: from `receptive_field_maps`.
      statistic: "peaks": how many neurons peak at each pixel (one with two equal maxima counts at both); "mean": the
        mean map of the responsive neurons.

    Raises:
      NeuroreconError: an unknown statistic, or no neuron responds to either polarity.
    """
    if statistic not in ("peaks", "mean"):
        raise NeuroreconError(f"statistic: expected 'peaks' or 'mean', found {statistic!r}")
    if not fields.responsive.any():
        raise NeuroreconError("fields: no neuron responds to a pixel; lower the threshold or train the encoders longer")
    if statistic == "peaks":
        return (fields.maps >= 1).sum(-1).astype(np.float32)
    counts = np.maximum(fields.responsive.sum(-1), 1)
    return (fields.maps.sum(-1) / counts[:, None, None]).astype(np.float32)
