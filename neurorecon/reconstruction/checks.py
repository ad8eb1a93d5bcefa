"""What a reconstruction is given, checked and brought into the loop's form."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neurorecon.encoders.canvas import crop_from_canvas, place_on_canvas
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction.loop import Recorded
from neurorecon.reconstruction.recipes import Recipe
from neurorecon.reconstruction.stopping import held_out


def check_key(key: Any) -> None:
    """Raises NeuroreconError unless `key` is a JAX random key."""
    dtype = getattr(key, "dtype", None)
    typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) and key.shape == ()
    if not (typed or (dtype == jnp.uint32 and np.shape(key) == (2,))):
        raise NeuroreconError(f"key: expected a key as jax.random.key(seed) makes, found {type(key).__name__}")


def check_encoders(encoders: Sequence[tuple[Any, Any]], readout: int, *, same_canvas: bool) -> None:
    """Raises NeuroreconError where encoders can't be used together on one screen."""
    if not encoders:
        raise NeuroreconError("encoders: expected at least one (encoder, variables) pair, found none")
    first = encoders[0][0]
    for encoder, _ in encoders:
        if not 0 <= readout < len(encoder.num_neurons):
            raise NeuroreconError(f"readout: expected 0..{len(encoder.num_neurons) - 1}, found {readout}")
        if encoder.num_neurons[readout] != first.num_neurons[readout]:
            raise NeuroreconError(
                f"encoders: expected one number of neurons in readout {readout}, "
                f"found {first.num_neurons[readout]} and {encoder.num_neurons[readout]}"
            )
        if any(screen > canvas for screen, canvas in zip(encoder.screen, encoder.canvas)):
            raise NeuroreconError(
                f"encoder.screen: expected at most the canvas {tuple(encoder.canvas)}, found {tuple(encoder.screen)}"
            )
        for name, needed in (("screen", True), ("canvas", same_canvas)):
            size, other = tuple(getattr(first, name)), tuple(getattr(encoder, name))
            if needed and size != other:
                raise NeuroreconError(f"encoders: expected one {name} size for one movie, found {size} and {other}")


def recorded_clips(
    responses: Any,
    behaviour: Any,
    neurons: Any,
    baseline: Any,
    prior_scale: Any,
    *,
    num_neurons: int,
    frame: tuple[int, int],
    recipe: Recipe,
    dtype: Any,
) -> Recorded:
    """The clips on the device: responses (clip, time, neuron), behaviour (clip, time, 4), others (clip, time, frame).

    Raises:
      NeuroreconError: shapes that don't fit, or values that are not finite.
    """
    responses, behaviour = _numbers("responses", responses), _numbers("behaviour", behaviour)
    if responses.ndim != 3 or 0 in responses.shape:
        raise NeuroreconError(f"responses: expected (clip, time, neuron), not empty, found shape {responses.shape}")
    if responses.shape[2] != num_neurons:
        raise NeuroreconError(
            f"responses: expected {num_neurons} neurons on the last axis, as many as the readout of the encoder "
            f"predicts, found {responses.shape[2]}; use an encoder trained on this animal"
        )
    if behaviour.shape != (*responses.shape[:2], 4):
        raise NeuroreconError(
            f"behaviour: expected shape {(*responses.shape[:2], 4)} to go with the responses, found {behaviour.shape}"
        )
    shape = (*responses.shape[:2], *frame)
    baseline = np.zeros(shape) if baseline is None else _numbers("baseline", baseline)
    if baseline.shape != shape:
        raise NeuroreconError(f"baseline: expected shape {shape}, one movie for each clip, found {baseline.shape}")
    weights = np.ones(num_neurons)
    if neurons is not None:
        neurons = np.asarray(neurons)
        if neurons.shape != (num_neurons,) or neurons.dtype != bool or not neurons.any():
            raise NeuroreconError(
                f"neurons: expected ({num_neurons},) booleans, at least one True, found {neurons.dtype} {neurons.shape}"
            )
        # Under "zero_target" the neurons stay, as if they had been silent; under "exclude" they weigh nothing.
        responses = np.where(neurons, responses, 0.0)
        if recipe.ablation == "exclude":
            weights = neurons.astype(float)
    if not np.isfinite(baseline).all():
        raise NeuroreconError("baseline: expected finite values, found NaN or infinity")
    scale = np.ones((shape[0], 1, 1, 1)) if prior_scale is None else _numbers("prior_scale", prior_scale)
    if prior_scale is not None and (scale.shape != shape or not (np.isfinite(scale) & (scale > 0)).all()):
        raise NeuroreconError(f"prior_scale: expected finite numbers above 0 of shape {shape}, found {scale.shape}")
    for name, values in (("responses", responses), ("behaviour", behaviour)):
        if not np.isfinite(values).all():
            clip, frame, column = np.argwhere(~np.isfinite(values))[0]
            raise NeuroreconError(
                f"{name}: expected finite values, found {values[clip, frame, column]} in clip {clip}, frame {frame}, "
                f"column {column}; cut the trial to its valid length"
            )
    weights, outside = held_out(recipe.stop, weights, responses)
    return Recorded(*(jnp.asarray(x, dtype) for x in (responses, behaviour, baseline, weights, scale, outside)))


def mask_on(
    update_mask: Any, screen: tuple[int, int], canvas: tuple[int, int], frame: tuple[int, int], dtype: Any
) -> jax.Array:
    """The update mask on the descended frame, which is the screen or the canvas; nothing is updated around the screen.

    Raises:
      NeuroreconError: a mask of another shape, or one that leaves nothing to update.
    """
    if update_mask is None:
        return jnp.ones(frame, dtype)
    mask = _numbers("update_mask", update_mask)
    if mask.shape not in (screen, canvas):
        raise NeuroreconError(f"update_mask: expected shape {screen} or {canvas}, found {mask.shape}")
    if not np.isfinite(mask).all():
        raise NeuroreconError("update_mask: expected finite values, found NaN or infinity")
    if mask.shape != frame:
        inside = np.asarray(mask, float)
        mask = crop_from_canvas(inside, screen) if frame == screen else np.asarray(place_on_canvas(inside, canvas))
    if not mask.any():
        raise NeuroreconError("update_mask: expected at least one pixel to update, found none")
    return jnp.asarray(mask, dtype)


def _numbers(name: str, values: Any) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype.kind not in "fiub":
        raise NeuroreconError(f"{name}: expected numbers, found an array of {values.dtype}")
    return values
