"""Descent of the correction: state, batches and steps, every draw a function of (seed, step)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from neurorecon.decoders.network import Correction
from neurorecon.decoders.settings import DecoderSettings
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.movie_metrics import movie_correlation
from neurorecon.training.optimiser import make_optimiser
from neurorecon.training.settings import TrainingSettings

EMA_DECAY = 0.98


class Trials(NamedTuple):
    """What the network is given of each trial, at every frame.

    Attributes:
      linear: (time, rows, columns), deviation of the linear movie from grey, in units of `scale`.
      activity: (time, neuron).
      truth: as `linear`.
    """

    linear: Sequence[np.ndarray]
    activity: Sequence[np.ndarray]
    truth: Sequence[np.ndarray]


class DecoderState(NamedTuple):
    """Of the descent: steps made, parameters, optimiser, running mean, the best of these and its score."""

    step: jax.Array
    params: Any
    optimiser: Any
    ema: Any
    best: Any
    best_score: jax.Array


def optimiser_of(settings: DecoderSettings) -> optax.GradientTransformation:
    """Muon for the convolutions, AdamW for the rest, as encoders are trained."""
    return make_optimiser(
        TrainingSettings(
            optimiser="muon",
            num_steps=settings.num_steps,
            warmup_steps=min(20, settings.num_steps // 4),
            learning_rate=settings.learning_rate,
            kernel_rate=settings.kernel_rate,
            weight_decay=settings.weight_decay,
        )
    )


def initial_decoder_state(
    network: Correction, positions: np.ndarray, settings: DecoderSettings, *, box: tuple[int, int], seed: int
) -> DecoderState:
    """Random weights, neurons at `positions` (neuron, 2) in cells; the correction is 0.

    Args:
      network, settings: which.
      positions: where each neuron starts.
      box: rows and columns of pixels.
      seed: of the weights.
    """
    params = _start(network, jax.random.key(seed), box, len(positions))
    params = {**params, "splat": {**params["splat"], "position": jnp.asarray(positions, jnp.float32)}}
    copy = partial(jax.tree.map, jnp.array)
    optimiser = optimiser_of(settings).init(params)
    return DecoderState(
        jnp.zeros((), jnp.int32), params, optimiser, copy(params), copy(params), jnp.array(-jnp.inf, jnp.float32)
    )


@partial(jax.jit, static_argnames=("network", "box", "neurons"))
def _start(network, key, box, neurons):
    linear, activity = jnp.zeros((1, 2, *box)), jnp.zeros((1, 1 + network.num_lags, neurons))
    return network.init({"params": key, "dropout": key}, linear, activity, jnp.zeros(1, bool))["params"]


def descend(
    network: Correction,
    trials: Trials,
    validation: Trials,
    settings: DecoderSettings,
    *,
    mask: np.ndarray,
    seed: int,
    state: DecoderState,
    skip_frames: int = 0,
    on_step: Callable[[DecoderState, dict[str, Any]], None] | None = None,
) -> DecoderState:
    """From `state` to the end; the best moment is chosen on the validation trials.

    Args:
      network, settings, seed: see `fit_convolutional_decoder`.
      trials, validation: to fit, and to choose by.
      mask: (rows, columns) of the box.
      state: its buffers are given away.
      skip_frames: of each validation trial, which do not count in the choice.
      on_step: called after each step with the state and what there is to log.

    Raises:
      NeuroreconError: the loss is not finite.
    """
    step_frames = settings.lag_step
    window = min(len(x) for x in trials.activity) // step_frames
    inside, key = jnp.asarray(mask, jnp.float32), jax.random.key(seed)
    if int(state.step) == 0:  # the linear movie itself: what no step improves on stays
        state = _scored(network, state, state.params, validation, mask, step_frames, skip_frames)
    for step in range(int(state.step), settings.num_steps):
        batch = draw(trials, window, network.num_lags, settings, seed=seed, step=step)
        state, loss = _update(network, settings, state, batch, inside, jax.random.fold_in(key, step))
        if not np.isfinite(float(loss)):
            raise NeuroreconError(
                f"convolutional decoder: the loss is not finite at step {step}; "
                "lower --config.convolutional_decoder.learning_rate and kernel_rate"
            )
        record: dict[str, Any] = {"step": step + 1, "loss": float(loss)}
        if (step + 1) % settings.validation_every == 0 or step + 1 == settings.num_steps:
            state = _scored(network, state, state.ema, validation, mask, step_frames, skip_frames)
            record["validation_correlation"] = float(state.best_score)
        if on_step is not None:
            on_step(state, record)
    return state


def draw(
    trials: Trials, window: int, num_lags: int, settings: DecoderSettings, *, seed: int, step: int
) -> tuple[np.ndarray, ...]:
    """Linear movies, activity, truths and which are mirrored, of the trials of one step."""
    rng = np.random.default_rng([seed, 2, step])
    parts = []
    for _ in range(settings.batch_size):
        i = int(rng.integers(len(trials.activity)))
        start = int(rng.integers(len(trials.activity[i]) - settings.lag_step * window + 1))
        start = start if start else int(rng.integers(settings.lag_step))  # whole trials: another phase each time
        flip = bool(rng.integers(2))
        linear, truth = (_strided(x[i], start, window, settings.lag_step) for x in (trials.linear, trials.truth))
        activity = _strided(trials.activity[i], start, window + num_lags - 1, settings.lag_step)
        side = slice(None, None, -1 if flip else None)
        parts.append((linear[..., side], activity, truth[..., side], np.array(flip)))
    return tuple(np.stack([np.asarray(p[k]) for p in parts]) for k in range(4))


def _strided(x: np.ndarray, start: int, count: int, step: int) -> np.ndarray:
    """`count` frames of x from `start` on in strides, 0 beyond the end; float32."""
    found = np.asarray(x[start::step][:count], np.float32)
    return np.pad(found, [(0, count - len(found)), *[(0, 0)] * (x.ndim - 1)])


def corrected(network: Correction, params: Any, linear: np.ndarray, activity: np.ndarray, step: int) -> np.ndarray:
    """The corrected movie (time, rows, columns), each phase of the network's time step by itself."""
    movie = np.empty(linear.shape, np.float32)
    for phase in range(min(step, len(linear))):
        movie[phase::step] = _corrected_phase(network, params, linear, activity, step, phase)
    return movie


def _corrected_phase(
    network: Correction, params: Any, linear: np.ndarray, activity: np.ndarray, step: int, phase: int
) -> np.ndarray:
    """Every `step`-th frame of the corrected movie, from `phase` on; filled up to one length for all phases."""
    count = -(-len(linear) // step)
    seen = _strided(linear, phase, count, step)
    lagged = _strided(activity, phase, count + network.num_lags - 1, step)
    return (seen + np.asarray(_apply(network, params, seen[None], lagged[None]))[0])[: len(linear[phase::step])]


@partial(jax.jit, static_argnames=("network",))
def _apply(network, params, linear, activity):
    return network.apply({"params": params}, linear, activity, jnp.zeros(len(linear), bool))


@partial(jax.jit, static_argnames=("network", "settings"), donate_argnames=("state",))
def _update(network, settings: DecoderSettings, state: DecoderState, batch, mask, key):
    linear, activity, truth, flipped = batch
    inside = jnp.where(flipped[:, None, None], mask[:, ::-1], mask)[:, None]

    def loss_of(params):
        correction = network.apply({"params": params}, linear, activity, flipped, train=True, rngs={"dropout": key})
        return jnp.sum(inside * jnp.square(linear + correction - truth)) / (jnp.sum(inside) * linear.shape[1])

    loss, gradient = jax.value_and_grad(loss_of)(state.params)
    updates, optimiser = optimiser_of(settings).update(gradient, state.optimiser, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(EMA_DECAY, (1.0 + state.step) / (10.0 + state.step))
    ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params)
    return DecoderState(state.step + 1, params, optimiser, ema, state.best, state.best_score), loss


def _scored(
    network: Correction,
    state: DecoderState,
    params: Any,
    validation: Trials,
    mask: np.ndarray,
    step: int,
    skip_frames: int,
) -> DecoderState:
    """The state, `params` in place of the best where they do better; one phase of each validation trial is seen."""
    movies = []
    for linear, activity in zip(validation.linear, validation.activity, strict=True):
        better = np.empty(linear.shape, np.float32)
        better[::step] = _corrected_phase(network, params, linear, activity, step, 0)
        movies.append(better)
    found = score(validation, movies, mask, step, skip_frames)
    if found <= float(state.best_score):
        return state
    return state._replace(best=jax.tree.map(jnp.array, params), best_score=jnp.array(found, jnp.float32))


def score(trials: Trials, movies: Sequence[np.ndarray], mask: np.ndarray, step: int, skip_frames: int) -> float:
    """Movie correlation in the mask over every `step`-th frame from `skip_frames` on, mean over trials with contrast.

    Raises:
      NeuroreconError: no trial has any.
    """
    first = -(-skip_frames // step) * step

    def kept(x: np.ndarray) -> np.ndarray:
        return np.asarray(x[first::step], np.float32)

    values = [movie_correlation(kept(t), kept(m), mask) for t, m in zip(trials.truth, movies, strict=True)]
    values = [v for v in values if np.isfinite(v)]
    if not values:
        raise NeuroreconError("validation_movies: expected contrast in the mask and movies that vary, found constants")
    return float(np.mean(values))
