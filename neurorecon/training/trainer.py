"""Training an ensemble of encoders: `initial_state -> train_step -> train`, every draw a function of (seed, step)."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from neurorecon.encoders.canvas import make_inputs
from neurorecon.encoders.prediction import predict_trial
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.response_metrics import single_trial_correlation
from neurorecon.recordings import Recording
from neurorecon.recordings.prepared import PreparedRecording
from neurorecon.training.initialise import response_means, start_from_data
from neurorecon.training.objective import cutmix, moving_average, poisson_loss
from neurorecon.training.schedule import warmup_cosine

Encoder = Any


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How encoders are trained.

    Attributes:
      num_steps: updates of each model.
      batch_size: windows of each animal in a step.
      optimiser: "adamw", or "muon": Muon (Jordan et al. 2024) for the kernels of convolutions, AdamW for the rest.
      learning_rate: peak of AdamW's schedule; `warmup_steps` up to it, then a cosine to 1 %.
      kernel_rate: peak of Muon's, which runs alongside; not used by "adamw".
      weight_decay: of AdamW, on kernels and readout weights (not on biases, norms, positions and scales).
      position_rate: learning rate of the readout positions, as a share of the others'.
      ema_decay: of the running mean of weights and statistics, which is what is saved; warms up as (1 + k) / (10 + k).
      cutmix_probability: of mixing a batch.
      validation_every: steps between two looks at the validation trials.
      validation_trials: how many of them.
      balanced: weigh each neuron's loss by the inverse of its mean response, so that quiet neurons count as well.
    """

    num_steps: int = 600
    batch_size: int = 8
    optimiser: str = "adamw"
    learning_rate: float = 5e-3
    kernel_rate: float = 0.16
    warmup_steps: int = 30
    weight_decay: float = 0.01
    position_rate: float = 0.1
    ema_decay: float = 0.98
    cutmix_probability: float = 0.0
    validation_every: int = 100
    validation_trials: int = 8
    balanced: bool = True


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


def _optimiser(settings: TrainingSettings) -> optax.GradientTransformation:
    def schedule(peak: float) -> optax.Schedule:
        return warmup_cosine(peak, warmup_steps=settings.warmup_steps, num_steps=settings.num_steps)

    def decayed(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: _name(path) in ("kernel", "weights", "space", "time"), params
        )

    def slowed(updates, params=None):
        # Positions start from the data, close to where they belong: at the full rate Adam's noise carries them off.
        del params
        return jax.tree_util.tree_map_with_path(
            lambda path, u: u * settings.position_rate if _name(path) == "position" else u, updates
        )

    with_muon = settings.optimiser == "muon"
    descent = optax.adamw(
        schedule(settings.learning_rate), weight_decay=settings.weight_decay, mask=decayed, nesterov=with_muon
    )
    if with_muon:
        muon = optax.contrib.scale_by_muon(weight_dimension_numbers=_as_matrices)
        kernels = optax.chain(muon, optax.scale_by_learning_rate(schedule(settings.kernel_rate)))
        descent = optax.partition({True: kernels, False: descent}, _convolutions)
    return optax.chain(
        optax.clip_by_global_norm(1e4),  # against a single burst, far above the usual norm
        descent,
        optax.stateless(slowed),
    )


def _convolutions(params: Any) -> Any:
    """True for kernels (taps ..., channel, feature) that mix channels."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: _name(path) == "kernel" and x.ndim > 2 and min(x.shape[-2:]) > 1, params
    )


def _as_matrices(params: Any) -> Any:
    """A kernel is to Muon the matrix from all taps and channels to features."""
    return jax.tree.map(lambda x: optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1), params)


def _name(path: tuple) -> str:
    return str(getattr(path[-1], "key", path[-1]))


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
    optimiser = jax.vmap(_optimiser(settings).init)(variables["params"])
    copy = partial(jax.tree.map, jnp.array)
    return TrainState(
        jnp.zeros((), jnp.int32),
        variables,
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
def train_step(encoder, settings: TrainingSettings, parallel: bool, state: TrainState, batches, weights, key):
    """One update of every model.

    Args:
      encoder, settings, parallel: static; `parallel` batches the models by vmap, otherwise one after another.
      state: given away.
      batches: for each animal (stimulus (model, window, time, height, width), responses, behaviour).
      weights: for each animal (neuron,).
      key: of this step.

    Returns:
      The new state and the loss of each model, (model,), for each response.
    """
    transform = _optimiser(settings)
    skip = encoder.warmup_frames if encoder.time_invariant else 0
    num_responses = sum(w.shape[0] for w in weights) * (encoder.window_frames - skip)

    def one_model(args):
        variables, optimiser, ema, batch, key = args

        def loss_of(params):
            statistics, total = variables.get("batch_stats", {}), 0.0
            for readout, (stimulus, responses, behaviour) in enumerate(batch):
                inputs = make_inputs(stimulus.astype(jnp.float32), behaviour, encoder.canvas, encoder.padding)
                predicted, changed = encoder.apply(
                    {"params": params, "batch_stats": statistics},
                    inputs,
                    readout=readout,
                    train=True,
                    rngs={"dropout": jax.random.fold_in(key, readout)},
                    mutable=["batch_stats"],
                )
                statistics = {**statistics, **changed.get("batch_stats", {})}
                target = jax.nn.relu(responses[:, skip:])
                total += poisson_loss(predicted[:, skip:], target, weights[readout])
            return total / num_responses, statistics

        (loss, statistics), gradient = jax.value_and_grad(loss_of, has_aux=True)(variables["params"])
        updates, optimiser = transform.update(gradient, optimiser, variables["params"])
        new = {"params": optax.apply_updates(variables["params"], updates)}
        if "batch_stats" in variables:
            new["batch_stats"] = statistics
        decay = jnp.minimum(settings.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = moving_average(ema, new, decay)
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


def draw_batches(
    encoder: Encoder,
    recordings: Sequence[PreparedRecording],
    windows: Sequence[np.ndarray],
    settings: TrainingSettings,
    *,
    num_models: int,
    seed: int,
    step: int,
) -> list[tuple[np.ndarray, ...]]:
    """The batches of one step, the same whenever it is asked for: (stimulus, responses, behaviour) of each animal."""
    batches = []
    for animal, (recording, legal) in enumerate(zip(recordings, windows)):
        models = []
        for model in range(num_models):
            rng = np.random.default_rng([seed, step, animal, model])
            chosen = legal[rng.integers(len(legal), size=settings.batch_size)]
            batch = recording.gather(chosen, encoder.window_frames, encoder.frame_step, raw=True)
            models.append(cutmix(*batch, rng, settings.cutmix_probability))
        batches.append(tuple(np.stack(parts) for parts in zip(*models)))
    return batches


def split_trials(
    recording: PreparedRecording | Recording, *, validation_tier: str, num_validation: int
) -> tuple[list[str], list[str]]:
    """Ids of the trials to fit and of those to validate on.

    With `validation_tier` "train", `num_validation` trials spread evenly over the training tier are held out from
    fitting; otherwise the first ones of that tier are used.

    Raises:
      NeuroreconError: no trial is left to fit or to validate on.
    """
    training = recording.trial_ids("train")
    if num_validation < 1:
        raise NeuroreconError(f"validation_trials: expected at least 1, found {num_validation}")
    if validation_tier != "train":
        return training, recording.trial_ids(validation_tier)[:num_validation]
    if len(training) <= num_validation:
        raise NeuroreconError(
            f"{recording.name}: expected more than {num_validation} training trials, since so many are held out for "
            f"validation, found {len(training)}; lower validation_trials"
        )
    held_out = {training[int((k + 0.5) * len(training) / num_validation)] for k in range(num_validation)}
    return [i for i in training if i not in held_out], [i for i in training if i in held_out]


def validation_scores(
    encoder: Encoder, variables: Any, recordings: Sequence[PreparedRecording], trial_ids: Sequence[Sequence[str]]
) -> np.ndarray:
    """(model,) single-trial correlation on the given trials, mean over animals; variables are stacked."""
    num_models = jax.tree.leaves(variables)[0].shape[0]
    scores = np.zeros((num_models, len(recordings)))
    for model in range(num_models):
        member = jax.tree.map(lambda x, m=model: x[m], variables)
        for animal, recording in enumerate(recordings):
            trials = [recording.target(i) for i in trial_ids[animal]]
            predictions = [predict_trial(encoder, member, t.stimulus, t.behaviour, readout=animal) for t in trials]
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
    on_step: Callable[[TrainState, dict[str, Any]], None] | None = None,
) -> TrainState:
    """Trains an ensemble from `state` (or from scratch) to the end.

    Step k depends on (seed, k) and the state alone, so a resumed run is the same run.

    Args:
      encoder: one readout for each recording, in the same order.
      recordings: one for each animal.
      settings: see `TrainingSettings`.
      num_models: trained side by side, each with its own start and batches.
      seed: of everything random.
      validation_tier: whose trials choose the best moment of each model, see `split_trials`.
      parallel: models at once by `vmap` (default on accelerators) or one after another (default on CPU).
      state: where to go on.
      on_step: called after each step with the state and what there is to log; the state's buffers are given away by
        the next step, so copy what is kept.

    Raises:
      NeuroreconError: neurons or frame sizes that don't fit the encoder, or a loss that is not finite.
    """
    check_settings(settings)
    _check(encoder, recordings)
    parallel = jax.default_backend() != "cpu" if parallel is None else parallel
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
    while (step := int(state.step)) < settings.num_steps:
        batches = draw_batches(encoder, recordings, windows, settings, num_models=num_models, seed=seed, step=step)
        state, loss = train_step(encoder, settings, parallel, state, batches, weights, jax.random.fold_in(key, step))
        losses = np.asarray(loss)
        if not np.isfinite(losses).all():
            bad = int(np.argmin(np.isfinite(losses)))
            raise NeuroreconError(
                f"training: the loss of model {bad} is not finite at step {step}; lower the learning rate"
            )
        record: dict[str, Any] = {"step": step + 1, "loss": losses.tolist()}
        if (step + 1) % settings.validation_every == 0 or step + 1 == settings.num_steps:
            scores = validation_scores(encoder, state.ema, recordings, [held_out for _, held_out in splits])
            state = _keep_best(state, jnp.asarray(scores, jnp.float32))
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


def check_settings(settings: TrainingSettings) -> None:
    """Raises NeuroreconError where a number is out of its range."""
    if settings.optimiser not in ("adamw", "muon"):
        raise NeuroreconError(f"training.optimiser: expected adamw or muon, found {settings.optimiser!r}")
    for name, low in (("num_steps", 1), ("batch_size", 1), ("validation_every", 1), ("validation_trials", 1)):
        if getattr(settings, name) < low:
            raise NeuroreconError(f"training.{name}: expected at least {low}, found {getattr(settings, name)}")
    for name in ("ema_decay", "cutmix_probability"):
        if not 0 <= getattr(settings, name) <= 1:
            raise NeuroreconError(f"training.{name}: expected 0 to 1, found {getattr(settings, name)}")


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
