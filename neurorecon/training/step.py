"""One update of every model of an ensemble, and the state that it updates."""

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from neurorecon.encoders.canvas import make_inputs
from neurorecon.encoders.pending import Pending
from neurorecon.recordings.prepared import PreparedRecording
from neurorecon.training.distillation import Teachers, distilled_loss, taught
from neurorecon.training.initialise import start_from_data
from neurorecon.training.objective import cut_inputs, moving_average, poisson_loss
from neurorecon.training.optimiser import belongs_to_animal, make_optimiser
from neurorecon.training.settings import TrainingSettings

Encoder = Any


class TrainState(NamedTuple):
    """Leaves have a leading model axis, but for `step`.

    Attributes:
      step: () updates made.
      variables: what is descended, {"params": ..., "batch_stats": ...}.
      optimiser: its state.
      ema: running mean of `variables`.
      best: the `ema` that did best on the validation trials so far.
      best_score: (model,) its single-trial correlation.
    """

    step: jax.Array
    variables: Any
    optimiser: Any
    ema: Any
    best: Any
    best_score: jax.Array


def initial_state(
    encoder: Encoder,
    recordings: Sequence[PreparedRecording],
    settings: TrainingSettings,
    *,
    num_models: int,
    key: jax.Array,
) -> TrainState:
    """Random weights of each model, with scales and positions from the training trials."""
    variables = _random_start(encoder, jax.random.split(key, num_models))
    variables = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
    first = jax.tree.map(lambda x: x[0], variables)
    like = start_from_data(first, recordings, encoder=encoder)
    # What the data set is the same for every model; the rest keeps its own random start.
    variables = jax.tree.map(
        lambda all_models, from_data, random: (
            all_models if np.array_equal(from_data, random) else jnp.broadcast_to(from_data, all_models.shape)
        ),
        variables,
        like,
        first,
    )
    return state_of(variables, settings)


def state_of(variables: Any, settings: TrainingSettings) -> TrainState:
    """The state before the first step; variables have a leading model axis."""
    optimiser = jax.vmap(make_optimiser(settings).init)(variables["params"])
    num_models = jax.tree.leaves(variables)[0].shape[0]
    copy = partial(jax.tree.map, jnp.array)
    return TrainState(
        jnp.zeros((), jnp.int32),
        copy(variables),
        optimiser,
        copy(variables),
        copy(variables),
        jnp.full((num_models,), -jnp.inf, jnp.float32),
    )


# Op by op, it would take several times as long.
@partial(jax.jit, static_argnames=("encoder",))
def _random_start(encoder, keys):
    inputs = jnp.zeros((1, encoder.window_frames, *encoder.canvas, 5))
    return jax.vmap(lambda key: encoder.init({"params": key, "dropout": key}, inputs))(keys)


@partial(jax.jit, static_argnames=("encoder", "settings", "parallel"), donate_argnames=("state",))
def train_step(
    encoder, settings: TrainingSettings, parallel: bool, state: TrainState, batches, weights, key, teachers=None
):
    """One update of every model.

    Args:
      encoder, settings, parallel: static; `parallel` batches the models by vmap, otherwise one after another.
      state: given away.
      batches: for each animal what `draw_batches` gives, (stimulus (model, window, time, height, width), responses,
        behaviour), and boxes where CutMix is as published.
      weights: for each animal (neuron,).
      key: of this step.
      teachers: `Teachers` whose predictions are the other animals' targets; None without distillation.

    Returns:
      The new state and the loss of each model, (model,), for each response.
    """
    transform = make_optimiser(settings)
    gradient_of = _gradient(encoder, settings, weights, teachers)

    def one_model(args):
        variables, optimiser, ema, batch, key = args
        loss, statistics, gradient = gradient_of(variables, batch, key)
        updates, optimiser = transform.update(gradient, optimiser, variables["params"])
        new = {"params": optax.apply_updates(variables["params"], updates)}
        if "batch_stats" in variables:
            new["batch_stats"] = statistics
        decay = settings.ema_decay
        if settings.ema_warmup:
            decay = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
        ema = moving_average(ema, new, decay)
        if settings.frozen_core:  # neither adding 0 nor averaging equals keeps every bit
            new, ema = _with_core_of(variables, new), _with_core_of(variables, ema)
        return new, optimiser, ema, loss

    num_models = state.best_score.shape[0]
    xs = (state.variables, state.optimiser, state.ema, batches, jax.random.split(key, num_models))
    if parallel:
        out = jax.vmap(one_model)(xs)
    else:
        # Unrolled: on CPU a device loop would cost half as much again (convolutions are slower inside).
        members = [one_model(jax.tree.map(lambda x, m=m: x[m], xs)) for m in range(num_models)]
        out = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    variables, optimiser, ema, loss = out
    return TrainState(state.step + 1, variables, optimiser, ema, state.best, state.best_score), loss


def _gradient(encoder: Encoder, settings: TrainingSettings, weights: Sequence[Any], teachers: Teachers | None = None):
    """(variables, batch, key) -> loss, batch statistics, gradient of the parameters."""
    skip = encoder.warmup_frames if encoder.time_invariant else 0
    num_responses = sum(w.shape[0] for w in weights) * (encoder.window_frames - skip)
    half = settings.precision == "bfloat16"
    seen_by, normalised = _normalised_outside(encoder) if half else (encoder, lambda x: x)

    def loss_of(params, statistics, pieces, key):
        total = 0.0
        if settings.frozen_core:
            params = {n: p if belongs_to_animal(n) else jax.lax.stop_gradient(p) for n, p in params.items()}
        # Scales are multiplied with the output, which is float32 again.
        cast = {n: p if n.startswith("log_scale") or not half else _as_bfloat16(p) for n, p in params.items()}
        for readout, (inputs, responses, *others) in enumerate(pieces):
            with nn.intercept_methods(_half_outputs) if half else contextlib.nullcontext():
                predicted, changed = seen_by.apply(
                    {"params": cast, "batch_stats": statistics},
                    inputs,
                    readout=readout if teachers is None else None,
                    train=not settings.frozen_core,
                    rngs={"dropout": jax.random.fold_in(key, readout)},
                    mutable=["batch_stats"],
                )
            statistics = {**statistics, **changed.get("batch_stats", {})}
            target = jax.nn.relu(responses[:, skip:])
            if teachers is not None:
                total += distilled_loss(predicted, target, *others, readout, teachers.ratio, weights)
                continue
            total += poisson_loss(predicted[:, skip:].astype(responses.dtype), target, weights[readout])
        return total / num_responses, statistics

    def gradient_of(variables, batch, key):
        params, statistics = variables["params"], variables.get("batch_stats", {})
        animals = []
        for stimulus, responses, behaviour, *boxes in batch:
            inputs = make_inputs(stimulus.astype(jnp.float32), behaviour, encoder.canvas, encoder.padding)
            inputs = cut_inputs(inputs, *boxes) if boxes else inputs
            others = () if teachers is None else (taught(teachers, inputs),)
            inputs = normalised(inputs)
            animals.append((inputs.astype(jnp.bfloat16) if half else inputs, responses, *others))
        descend = jax.value_and_grad(loss_of, has_aux=True)
        if settings.accumulate == 1:
            (loss, statistics), gradient = descend(params, statistics, animals, key)
            return loss, statistics, gradient
        pieces = jax.tree.map(lambda x: _pieces(x, settings.accumulate), animals)
        keys = jax.random.split(key, settings.accumulate)

        def add(carry, piece):
            statistics, loss, gradient = carry
            (of_piece, statistics), new = descend(params, statistics, *piece)
            return (statistics, loss + of_piece, jax.tree.map(jnp.add, gradient, new)), None

        start = (statistics, jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        (statistics, loss, gradient), _ = jax.lax.scan(add, start, (pieces, keys))
        loss, gradient = jax.tree.map(lambda x: x / settings.accumulate, (loss, gradient))
        return loss, statistics, gradient

    return gradient_of


def _pieces(x: jax.Array, number: int) -> jax.Array:
    """(window, ...) -> (piece, window, ...); every `number`-th window, so that devices keep theirs."""
    return jnp.swapaxes(x.reshape(-1, number, *x.shape[1:]), 0, 1)


def _as_bfloat16(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)


def _half_outputs(call, args, kwargs, context):
    """A layer that works in float32 inside, as batch norm does, gives on what it was given."""
    out = call(*args, **kwargs)
    if context.method_name != "__call__" or not context.module.path or isinstance(out, Pending):
        return out
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, out)


def _normalised_outside(encoder: Encoder):
    """The encoder without its input statistics, and a function that applies them in float32.

    Behaviour is raw, often a large mean with small changes, of which bfloat16's eight bits would leave little.
    """
    if not hasattr(encoder, "behaviour_mean"):
        return encoder, lambda x: x
    mean = jnp.asarray([encoder.stimulus_mean, *encoder.behaviour_mean])
    std = jnp.asarray([encoder.stimulus_std, *encoder.behaviour_std])
    plain = encoder.clone(stimulus_mean=0.0, stimulus_std=1.0, behaviour_mean=(0.0,) * 4, behaviour_std=(1.0,) * 4)
    return plain, lambda x: (x - mean) / std


def _with_core_of(kept: Any, new: Any) -> Any:
    """`new` with the core's parameters and all batch statistics of `kept`."""
    params = {n: p if belongs_to_animal(n) else kept["params"][n] for n, p in new["params"].items()}
    return {**kept, "params": params}
