"""Training an ensemble of encoders: `initial_state -> train_step -> train`, every draw a function of (seed, step)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from neurorecon import hosts
from neurorecon.encoders.prediction import predict_trial
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.response_metrics import single_trial_correlation
from neurorecon.recordings.prepared import PreparedRecording
from neurorecon.training.batches import draw_batches, split_trials
from neurorecon.training.distillation import Teachers
from neurorecon.training.initialise import response_means
from neurorecon.training.prefetch import Prefetch
from neurorecon.training.settings import TrainingSettings, check_settings
from neurorecon.training.sharding import place_batches, place_state, training_mesh
from neurorecon.training.step import TrainState, initial_state, train_step

__all__ = [
    "TrainState",
    "TrainingSettings",
    "check_settings",
    "draw_batches",
    "initial_state",
    "split_trials",
    "train",
    "train_step",
    "validation_scores",
]

Encoder = Any


def validation_scores(
    encoder: Encoder, variables: Any, recordings: Sequence[PreparedRecording], trial_ids: Sequence[Sequence[str]]
) -> np.ndarray:
    """(model,) single-trial correlation on the given trials, mean over animals; variables are stacked."""
    num_models = jax.tree.leaves(variables)[0].shape[0]
    scores = np.zeros((num_models, len(recordings)))
    every = max(1, encoder.window_frames * encoder.frame_step // 2)  # every frame twice; all windows would take long
    for model in range(num_models):
        member = jax.tree.map(lambda x, m=model: x[m], variables)
        for animal, recording in enumerate(recordings):
            trials = [recording.target(i) for i in trial_ids[animal]]
            predictions = [
                predict_trial(encoder, member, t.stimulus, t.behaviour, readout=animal, every=every) for t in trials
            ]
            shortest = min(t.num_frames for t in trials)
            scores[model, animal] = single_trial_correlation(
                predictions, [t.responses for t in trials], skip=min(50, shortest // 4)
            )
    return scores.mean(1)


def train(
    encoder: Encoder,
    recordings: Sequence[PreparedRecording],
    settings: TrainingSettings,
    *,
    num_models: int,
    seed: int,
    validation_tier: str = "train",
    parallel: bool | None = None,
    state: TrainState | None = None,
    teachers: Teachers | None = None,
    on_step: Callable[[TrainState, dict[str, Any]], None] | None = None,
) -> TrainState:
    """Trains an ensemble from `state` (or from scratch) to the end.

    Step k depends on (seed, k) and the state alone, so a resumed run is the same run. Where several hosts have joined
    (`hosts.join`), all call this alike; the state then lies over all of them, see `hosts.gathered`.

    Args:
      encoder: one readout for each recording, in the same order.
      recordings: one for each animal.
      settings: see `TrainingSettings`; with `shard`, over all devices of all hosts.
      num_models: trained side by side, each with its own start and batches.
      seed: of everything random.
      validation_tier: whose trials choose the best moment of each model, see `split_trials`.
      parallel: models at once by `vmap` (default on accelerators) or one after another (default on CPU).
      state: where to go on.
      teachers: trained encoders whose predictions are the other animals' targets, see `distillation`.
      on_step: called after each step with the state and what there is to log; the state's buffers are given away by
        the next step, so copy what is kept.

    Raises:
      NeuroreconError: neurons or frame sizes that don't fit the encoder, or a loss that is not finite.
    """
    check_settings(settings)
    _check(encoder, recordings)
    mesh = training_mesh(settings, num_models=num_models)
    if parallel is None:
        parallel = jax.default_backend() != "cpu" or (mesh is not None and mesh.shape["model"] > 1)
    key = jax.random.key(seed)
    if state is None:
        state = initial_state(encoder, recordings, settings, num_models=num_models, key=key)
    splits = [
        split_trials(r, validation_tier=validation_tier, num_validation=settings.validation_trials) for r in recordings
    ]
    windows = [
        r.windows("train", encoder.window_frames, encoder.frame_step, trial_ids=fit)
        for r, (fit, _) in zip(recordings, splits)
    ]
    for recording, legal in zip(recordings, windows):
        if not len(legal):
            span = (encoder.window_frames - 1) * encoder.frame_step + 1
            raise NeuroreconError(f"{recording.name}: no training trial has the {span} frames of one window")
    weights = [_neuron_weights(r, settings.balanced) for r in recordings]
    if mesh is not None:
        whole = NamedSharding(mesh, PartitionSpec())
        state = place_state(hosts.same(state), mesh)
        teachers = hosts.placed(teachers, whole)
        if hosts.several():
            key, weights = hosts.placed((key, weights), whole)

    def drawn(step: int) -> Any:
        draw = partial(
            draw_batches, encoder, recordings, windows, settings, num_models=num_models, seed=seed, step=step
        )
        if mesh is None:
            return jax.device_put(draw())
        return place_batches(
            lambda models, rows: draw(models=models, rows=rows),
            mesh,
            num_models=num_models,
            batch_size=settings.batch_size,
        )

    with Prefetch(drawn, range(int(state.step), settings.num_steps)) as prefetch:
        for step, batches in prefetch:
            state, loss = train_step(
                encoder, settings, parallel, state, batches, weights, jax.random.fold_in(key, step), teachers
            )
            if mesh is not None:
                state = place_state(state, mesh)  # where they lie already, unless the compiler thought otherwise
            losses = hosts.gathered(loss)
            if not np.isfinite(losses).all():
                bad = int(np.argmin(np.isfinite(losses)))
                raise NeuroreconError(
                    f"training: the loss of model {bad} is not finite at step {step}; lower the learning rate"
                )
            record: dict[str, Any] = {"step": step + 1, "loss": losses.tolist()}
            if (step + 1) % settings.validation_every == 0 or step + 1 == settings.num_steps:
                seen = state.ema if mesh is None else hosts.gathered(state.ema)  # off the mesh
                scores = validation_scores(encoder, seen, recordings, [held_out for _, held_out in splits])
                if mesh is not None and hosts.several():  # all chose by the same numbers
                    scores = np.array(hosts.from_first(scores.tolist))
                    compared = hosts.placed(scores.astype(np.float32), NamedSharding(mesh, PartitionSpec("model")))
                else:
                    compared = jnp.asarray(scores, jnp.float32)
                state = _keep_best(state, compared)
                record["validation_correlation"] = scores.tolist()
            if on_step is not None:
                on_step(state, record)
    return state


def _keep_best(state: TrainState, scores: jax.Array) -> TrainState:
    better = scores > state.best_score

    def choose(new, old):
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return state._replace(
        best=jax.tree.map(choose, state.ema, state.best), best_score=jnp.maximum(scores, state.best_score)
    )


def _neuron_weights(recording: PreparedRecording, balanced: bool) -> np.ndarray:
    if not balanced:
        return np.ones(recording.num_neurons, np.float32)
    means = response_means(recording)
    # A near-silent neuron must not outweigh the rest of the population.
    return (1.0 / np.maximum(means, 0.1 * np.median(means))).astype(np.float32)


def _check(encoder: Encoder, recordings: Sequence[PreparedRecording]) -> None:
    have, want = tuple(r.num_neurons for r in recordings), tuple(encoder.num_neurons)
    if have != want:
        raise NeuroreconError(f"recordings: expected {want} neurons, one number for each readout, found {have}")
    for recording in recordings:
        if tuple(recording.frame_shape) != tuple(encoder.screen):
            raise NeuroreconError(
                f"{recording.name}: expected frames of {tuple(encoder.screen)} as the encoder's screen, "
                f"found {tuple(recording.frame_shape)}"
            )
