"""The score of local contrast: would the responses be likelier had the movie less, or more, contrast at a place?

The brain's movie is taken to be m + a c, m the movie on the screen, c its contrast (m less a mean grey) and a(t, y, x)
a local gain. The score at a = 0 is c dlogL/dm: one backward pass for all places and scales (Rao 1948). Nothing is
descended. What neurons share of slow gain is no change of the movie: it is a nuisance that is projected out (efficient
score, Neyman's C(alpha), 1959).

    predicted = predict_ensemble(encoders, movie, behaviour)
    weighted = weighted_residuals(noise, predicted, responses, frame_step=3, shortest_gain=90)
    score = (movie - grey) * movie_gradient(encoders, movie, behaviour, weighted)

The movie is an argument: this is for questions about a movie that is known, and no reconstruction.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from neurorecon.encoders.canvas import make_inputs
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import losses, windows
from neurorecon.reconstruction.checks import check_encoders
from neurorecon.reconstruction.noise import ResponseNoise


def weighted_residuals(
    noise: ResponseNoise, predicted: np.ndarray, responses: np.ndarray, *, frame_step: int, shortest_gain: int = 0
) -> np.ndarray:
    """Derivative of the log-likelihood at the predicted mean, V^-1/2 R^-1 V^-1/2 (y - p - p g): as `responses`.

    The likelihood is `losses.autoregressive`, the sum over the `frame_step` interleaved streams of frames. g(t) is a
    gain that all neurons share, a sum of cosines fitted by generalised least squares.

    Args:
      noise: fitted with this `frame_step`.
      predicted: (time, neuron).
      responses: (sample, time, neuron).
      frame_step: distance of the frames that an encoder looks at, as in `fit_noise`.
      shortest_gain: frames of the shortest period of g; 0 for no such gain.

    Raises:
      NeuroreconError: shapes that don't fit, values that are not finite, or a period below 0.
    """
    predicted, responses = np.asarray(predicted), np.asarray(responses)
    shape = (len(predicted), len(noise.dispersion))
    if predicted.shape != shape or responses.ndim != 3 or responses.shape[1:] != shape:
        raise NeuroreconError(
            f"weighted_residuals: expected predictions (time, {shape[1]} neurons) and responses (sample, time, neuron) "
            f"of them, found {predicted.shape} and {responses.shape}"
        )
    if not (np.isfinite(predicted).all() and np.isfinite(responses).all()):
        raise NeuroreconError("weighted_residuals: expected finite predictions and responses")
    if shortest_gain < 0 or frame_step < 1:
        raise NeuroreconError(
            f"weighted_residuals: expected a period of 0 frames or more and a frame step of 1 or more, found "
            f"{shortest_gain} and {frame_step}"
        )

    def weighed(residuals: np.ndarray) -> np.ndarray:
        out = np.empty(residuals.shape, residuals.dtype)
        for stream in (slice(k, None, frame_step) for k in range(min(frame_step, len(predicted)))):
            for k, residual in enumerate(residuals):
                out[k, stream] = _weighed(noise, predicted[stream], residual[stream])
        return out

    weighted = weighed(responses - predicted)
    if not shortest_gain:
        return weighted
    courses = np.asarray(losses.slow_cosines(len(predicted), shortest_gain))
    nuisance = np.stack([predicted * course[:, None] for course in courses])
    weighted_nuisance = weighed(nuisance)
    information = np.einsum("ktn,ltn->kl", nuisance, weighted_nuisance, dtype=np.float64)
    gain = np.linalg.lstsq(information, np.einsum("ktn,stn->ks", nuisance, weighted, dtype=np.float64), rcond=1e-10)[0]
    return weighted - np.einsum("ks,ktn->stn", gain.astype(weighted.dtype), weighted_nuisance)


@jax.jit
def _weighed(noise: ResponseNoise, predicted: jax.Array, residual: jax.Array) -> jax.Array:
    loss = losses.autoregressive(noise)
    return -jax.grad(lambda p: loss(p, predicted + residual).sum())(predicted)


def movie_gradient(
    encoders: Sequence[tuple[Any, Any]],
    movie: np.ndarray,
    behaviour: np.ndarray,
    weighted: np.ndarray,
    *,
    readout: int = 0,
) -> np.ndarray:
    """What derivatives at the predicted responses are at the pixels: J^T `weighted`, J of the encoders' mean.

    Each frame is looked at once, in the windows of the default recipe; one window at a time, forward once for all
    samples, so that memory is bounded.

    Args:
      encoders: (encoder, variables) of every member.
      movie: (time, height, width), grey values 0..255.
      behaviour: (time, 4).
      weighted: (sample, time, neuron), from `weighted_residuals`.
      readout: which animal's.

    Returns:
      (sample, time, height, width), per grey value.

    Raises:
      NeuroreconError: shapes that don't fit or values that are not finite.
    """
    check_encoders(encoders, readout, same_canvas=False)
    movie, behaviour, weighted = np.asarray(movie), np.asarray(behaviour), np.asarray(weighted)
    first = encoders[0][0]
    neurons = first.num_neurons[readout]
    if movie.ndim != 3 or movie.shape[1:] != tuple(first.screen) or behaviour.shape != (len(movie), 4):
        raise NeuroreconError(
            f"movie_gradient: expected a movie (time, {', '.join(map(str, first.screen))}) and behaviour (time, 4), "
            f"found {movie.shape} and {behaviour.shape}"
        )
    if weighted.ndim != 3 or weighted.shape[1:] != (len(movie), neurons):
        raise NeuroreconError(
            f"movie_gradient, weighted: expected (sample, {len(movie)}, {neurons}), found {weighted.shape}"
        )
    if not all(np.isfinite(x).all() for x in (movie, behaviour, weighted)):
        raise NeuroreconError("movie_gradient: expected finite arrays")
    each = [np.asarray(_gradient(e, readout, v, movie, behaviour, weighted)) for e, v in encoders]
    return np.mean(each, axis=0)


@partial(jax.jit, static_argnums=(0, 1))
def _gradient(encoder, readout: int, variables, movie, behaviour, weighted):
    """(sample, time, height, width) of one encoder."""
    plan = _whole_movie(encoder, len(movie))

    def one_stack(place: windows.WindowPlan):  # of one window: (time,) in the encoder's frames
        def predict(frames):
            given = jnp.take(behaviour, place.frames, axis=0)[None]
            return encoder.apply(
                variables, make_inputs(frames[None], given, tuple(encoder.canvas), encoder.padding), readout=readout
            )[0]

        seen = jnp.take(movie, place.frames, axis=0)
        predicted, to_pixels = jax.vjp(predict, seen)
        counted = jnp.take(weighted, place.frames, axis=1) * place.valid[:, None]
        return lax.map(lambda u: to_pixels(u)[0], counted.astype(predicted.dtype))

    flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), plan)
    gradients = lax.map(one_stack, flat)  # (window and stack, sample, time, height, width)
    in_windows = jnp.moveaxis(gradients, 1, 2)[:, None]  # as one stack each: (window, 1, time, sample, ...)
    whole = windows.stitch_sum(in_windows, jax.tree.map(lambda x: x[:, None], flat), len(movie))
    return jnp.moveaxis(whole, 1, 0)


def _whole_movie(encoder, num_frames: int) -> windows.WindowPlan:
    """Every frame's response once."""
    if encoder.time_invariant:
        context = encoder.warmup_frames * encoder.frame_step
        return windows.tiled_plan(num_frames, tile_frames=400, frame_step=encoder.frame_step, context_frames=context)
    return windows.shifted_plan(
        num_frames, jnp.int32(0), window_frames=encoder.window_frames, frame_step=encoder.frame_step
    )
