"""`reconstruct`: checks what it is given, runs the descent in calls of a few steps, and finishes the movie."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter

from neurorecon.encoders.canvas import crop_from_canvas, place_on_canvas
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction.loop import Recorded, Settings, State, advance
from neurorecon.reconstruction.recipes import Recipe

Encoder = Any  # a linen module with the signature of `encoders`
Variables = Any


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """The outcome. From `reconstruct_clips` every array has a leading clip axis.

    Attributes:
      movie: (time, height, width) of the screen, grey values 0..255.
      movies: (movie, time, height, width) before averaging and smoothing, over what was descended (the screen, or the
        encoder's canvas).
      trace: name -> (step, ...) values on the way: `loss`, the response loss; every loss and prior under its own name;
        `window_loss` and `window_gradient_norm` (step, model, window).
      encoder_windows: windows pushed through encoders, forward and back, for one clip, in units of the frames that
        the encoder is trained on.
    """

    movie: np.ndarray
    movies: np.ndarray
    trace: dict[str, np.ndarray]
    encoder_windows: float


class Progress(NamedTuple):
    """A descent that can be stored and gone on with.

    Attributes:
      states: one for each group of encoders that is descended on its own; a `State`, or its leaves as read from disk.
      traces: for each of them name -> (movie, clip, step, ...).
    """

    states: tuple[Any, ...]
    traces: tuple[dict[str, np.ndarray], ...]

    @property
    def step(self) -> int:
        """Updates made, the mean over the groups."""
        return sum(int(jax.tree.leaves(state)[0]) for state in self.states) // len(self.states)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Flat names -> arrays, for storage."""
        arrays = {}
        for group, (state, trace) in enumerate(zip(self.states, self.traces)):
            arrays |= {f"state:{group}:{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
            arrays |= {f"trace:{group}:{name}": values for name, values in trace.items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "Progress":
        """The inverse of `to_arrays`."""
        count = 1 + max(int(name.split(":")[1]) for name in arrays)
        states: list[dict[int, np.ndarray]] = [{} for _ in range(count)]
        traces: list[dict[str, np.ndarray]] = [{} for _ in range(count)]
        for key, values in arrays.items():
            kind, group, name = key.split(":", 2)
            if kind == "state":
                states[int(group)][int(name)] = values
            else:
                traces[int(group)][name] = values
        return cls(tuple([s[i] for i in range(len(s))] for s in states), tuple(traces))


class Job(NamedTuple):
    """Encoders of one compiled descent, and their variables stacked (movie, model, ...) for each architecture."""

    encoders: tuple[Encoder, ...]
    variables: tuple[Variables, ...]


def reconstruct(
    encoders: Sequence[tuple[Encoder, Variables]],
    responses: np.ndarray,
    behaviour: np.ndarray,
    *,
    recipe: Recipe,
    key: jax.Array,
    **options: Any,
) -> Reconstruction:
    """Reconstructs the movie behind the responses of one clip.

    Args:
      encoders: (encoder, variables) of every member of the ensemble.
      responses: (time, neuron) as recorded.
      behaviour: (time, 4).
      recipe: see `recipes`.
      key: for the random choices of the recipe.
      **options: see `reconstruct_clips`.

    Raises:
      NeuroreconError: shapes that don't fit, responses that are not finite, or a descent that stopped being finite.
    """
    result = reconstruct_clips(
        encoders, np.asarray(responses)[None], np.asarray(behaviour)[None], recipe=recipe, key=key, **options
    )
    return Reconstruction(
        result.movie[0],
        result.movies[0],
        {name: values[0] for name, values in result.trace.items()},
        result.encoder_windows,
    )


def reconstruct_clips(
    encoders: Sequence[tuple[Encoder, Variables]],
    responses: np.ndarray,
    behaviour: np.ndarray,
    *,
    recipe: Recipe,
    key: jax.Array,
    update_mask: np.ndarray | None = None,
    neurons: np.ndarray | None = None,
    readout: int = 0,
    num_steps: int | None = None,
    steps_per_call: int = 20,
    window_chunk: int | None = None,
    parallel: bool | None = None,
    progress: Progress | None = None,
    on_call: Callable[[Progress], None] | None = None,
) -> Reconstruction:
    """Reconstructs clips of equal length in one compiled descent; equal to one by one.

    Args:
      encoders: (encoder, variables) of every member of the ensemble; architectures may differ.
      responses: (clip, time, neuron) as recorded.
      behaviour: (clip, time, 4).
      recipe: see `recipes`.
      key: for the random choices of the recipe; step k uses `fold_in(key, k)`.
      update_mask: (height, width) of the screen or of the encoder's canvas: pixels outside get no gradient from the
        responses.
      neurons: (neuron,) bool, those to use; the rest is left out as `recipe.ablation` says.
      readout: which animal's readout.
      num_steps: pixel updates, in place of the recipe's.
      steps_per_call: updates between two returns to the host.
      window_chunk: windows at once through an encoder; bounds memory.
      parallel: batch encoders and clips by `vmap` (default on accelerators) or one after another (default on CPU,
        where activations then stay in cache).
      progress: where to go on, from `on_call` of an earlier run with the same arguments.
      on_call: called after every `steps_per_call` updates.

    Raises:
      NeuroreconError: shapes that don't fit, responses that are not finite, or a descent that stopped being finite.
    """
    steps = recipe.num_steps if num_steps is None else num_steps
    if steps < 1:
        raise NeuroreconError(f"num_steps: expected at least 1, found {steps}")
    jobs = _jobs(encoders, recipe.ensemble)
    dtype = jnp.result_type(*(x for x in jax.tree.leaves(jobs[0].variables) if jnp.issubdtype(x.dtype, jnp.floating)))
    recorded = _recorded(encoders, responses, behaviour, neurons, readout, recipe, dtype)
    num_clips, num_frames = recorded.responses.shape[:2]
    screen = tuple(encoders[0][0].screen)
    frame = tuple(encoders[0][0].canvas) if recipe.canvas else screen
    mask = _mask(update_mask, screen, frame, dtype)
    settings = [
        Settings(
            recipe=recipe,
            encoders=job.encoders,
            readout=readout,
            shape=(num_frames, *frame),
            num_steps=steps,
            window_chunk=window_chunk,
            parallel=jax.default_backend() != "cpu" if parallel is None else parallel,
        )
        for job in jobs
    ]
    start = tuple(_start(s, job, num_clips, dtype) for s, job in zip(settings, jobs))
    progress = Progress(start, tuple({} for _ in jobs)) if progress is None else _resumed(progress, start)
    for index, (job, setting) in enumerate(zip(jobs, settings)):
        while (done := int(progress.states[index].step)) < steps:
            # `advance` gives its buffers away: what the caller keeps must not be among them.
            state = jax.tree.map(lambda x: jnp.array(x), progress.states[index])
            state, trace = advance(
                setting, min(steps_per_call, steps - done), state, job.variables, recorded, mask, key
            )
            trace = {name: np.asarray(values) for name, values in trace.items()}
            _check_finite(trace, done)
            progress = _extended(progress, index, state, trace)
            if on_call is not None:
                on_call(progress)
    return _finish(progress, settings, screen)


def _jobs(encoders: Sequence[tuple[Encoder, Variables]], ensemble: str) -> list[Job]:
    if not encoders:
        raise NeuroreconError("encoders: expected at least one (encoder, variables) pair, found none")
    groups: dict[Encoder, list[Variables]] = {}
    for encoder, variables in encoders:
        groups.setdefault(encoder, []).append(variables)

    def stack(members: list[Variables]) -> Variables:
        return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *members)

    if ensemble == "movies":
        return [
            Job((encoder,), (jax.tree.map(lambda x: x[:, None], stack(members)),))
            for encoder, members in groups.items()
        ]
    return [Job(tuple(groups), tuple(jax.tree.map(lambda x: x[None], stack(m)) for m in groups.values()))]


def _recorded(encoders, responses, behaviour, neurons, readout, recipe, dtype) -> Recorded:
    responses, behaviour = np.asarray(responses), np.asarray(behaviour)
    if responses.ndim != 3:
        raise NeuroreconError(f"responses: expected axes (clip, time, neuron), found shape {responses.shape}")
    clips, frames, num_neurons = responses.shape
    if behaviour.shape != (clips, frames, 4):
        raise NeuroreconError(
            f"behaviour: expected shape {(clips, frames, 4)} to go with the responses, found {behaviour.shape}"
        )
    for encoder, _ in encoders:
        if not 0 <= readout < len(encoder.num_neurons):
            raise NeuroreconError(f"readout: expected 0..{len(encoder.num_neurons) - 1}, found {readout}")
        if encoder.num_neurons[readout] != num_neurons:
            raise NeuroreconError(
                f"responses: expected {encoder.num_neurons[readout]} neurons, as many as readout {readout} of the encoder "
                f"predicts, found {num_neurons}; use an encoder trained on this animal"
            )
        if tuple(encoder.screen) != tuple(encoders[0][0].screen):
            raise NeuroreconError(
                f"encoders: expected one screen size, found {tuple(encoders[0][0].screen)} and {tuple(encoder.screen)}"
            )
        if recipe.canvas and tuple(encoder.canvas) != tuple(encoders[0][0].canvas):
            raise NeuroreconError(
                f"encoders: the recipe descends the canvas, which must be one size, found "
                f"{tuple(encoders[0][0].canvas)} and {tuple(encoder.canvas)}"
            )
    for name, values in (("responses", responses), ("behaviour", behaviour)):
        if not np.isfinite(values).all():
            clip, frame, column = np.argwhere(~np.isfinite(values))[0]
            raise NeuroreconError(
                f"{name}: expected finite values, found {values[clip, frame, column]} in clip {clip}, frame {frame}, "
                f"column {column}"
            )
    weights = np.ones(num_neurons)
    if neurons is not None:
        neurons = np.asarray(neurons)
        if neurons.shape != (num_neurons,) or neurons.dtype != bool or not neurons.any():
            raise NeuroreconError(
                f"neurons: expected ({num_neurons},) booleans, at least one True, found {neurons.dtype} {neurons.shape}"
            )
        if recipe.ablation == "exclude":
            weights = neurons.astype(float)
        else:  # the published way: the neurons stay, as if they had been silent
            responses = np.where(neurons, responses, 0.0)
    return Recorded(*(jnp.asarray(x, dtype) for x in (responses, behaviour, weights)))


def _mask(update_mask: np.ndarray | None, screen: tuple, frame: tuple, dtype: Any) -> jax.Array:
    if update_mask is None:
        return jnp.ones(frame, dtype)
    mask = np.asarray(update_mask)
    if mask.shape not in (screen, frame):
        raise NeuroreconError(f"update_mask: expected shape {screen} or {frame}, found {mask.shape}")
    if mask.shape != frame:
        mask = np.asarray(place_on_canvas(jnp.asarray(mask, dtype)[None], frame, 0.0))[0]
    return jnp.asarray(mask, dtype)


def _start(settings: Settings, job: Job, num_clips: int, dtype: Any) -> State:
    parametrisation = settings.recipe.parametrisation(settings.shape, dtype)
    latent = jnp.zeros(settings.shape, dtype)
    if not parametrisation.starts_at_prior:
        latent = parametrisation.from_pixels(jnp.full(settings.shape, settings.recipe.start, dtype))
    optimiser = settings.recipe.update(settings.num_steps).init(latent)
    lead = (jax.tree.leaves(job.variables[0])[0].shape[0], num_clips)
    latent, optimiser = jax.tree.map(lambda x: jnp.broadcast_to(x, (*lead, *jnp.shape(x))), (latent, optimiser))
    return State(jnp.zeros((), jnp.int32), latent, optimiser)


def _resumed(progress: Progress, start: tuple[State, ...]) -> Progress:
    """The progress with its states in the structure of this descent's own."""
    leaves = [jax.tree.leaves(state) for state in progress.states]
    expected = [jax.tree.leaves(state) for state in start]
    if [[np.shape(x) for x in xs] for xs in leaves] != [[np.shape(x) for x in xs] for xs in expected]:
        raise NeuroreconError(
            "progress: belongs to a descent of other shapes or another recipe; start again without it"
        )
    states = tuple(
        jax.tree.unflatten(jax.tree.structure(state), [jnp.asarray(x) for x in xs]) for state, xs in zip(start, leaves)
    )
    return Progress(states, progress.traces)


def _check_finite(trace: dict[str, np.ndarray], done: int) -> None:
    for name, values in trace.items():
        if not np.isfinite(values).all():
            movie, clip, step = np.argwhere(~np.isfinite(values))[0][:3]
            raise NeuroreconError(
                f"reconstruction: {name} of clip {clip}, movie {movie} is not finite at step {done + step}; "
                "lower the learning rate, or look for extreme responses"
            )


def _extended(progress: Progress, index: int, state: State, trace: dict[str, np.ndarray]) -> Progress:
    states, traces = list(progress.states), list(progress.traces)
    states[index] = state
    traces[index] = {
        name: np.concatenate([traces[index][name], values], axis=2) if traces[index] else values
        for name, values in trace.items()
    }
    return Progress(tuple(states), tuple(traces))


def _finish(progress: Progress, settings: Sequence[Settings], screen: tuple[int, int]) -> Reconstruction:
    recipe = settings[0].recipe
    movies = []
    for state, setting in zip(progress.states, settings):
        to_pixels = recipe.parametrisation(setting.shape, state.latent.dtype).to_pixels
        movies.append(np.asarray(jnp.clip(jax.vmap(jax.vmap(to_pixels))(state.latent), 0.0, 255.0)))
    stacked = np.concatenate(movies).swapaxes(0, 1)  # clip, movie, time, height, width
    movie = stacked.astype(np.float64).mean(1)
    if recipe.smoothing:
        movie = gaussian_filter(movie, (0, *[recipe.smoothing] * 3))
    movie = crop_from_canvas(movie, screen).astype(np.float32)
    # Traces have a movie axis where each encoder descends alone; as the model axis it is already there otherwise.
    names = set.intersection(*(set(trace) for trace in progress.traces))
    trace = {name: _joined([trace[name] for trace in progress.traces], name) for name in sorted(names)}
    return Reconstruction(movie, stacked, trace, _encoder_windows(settings, progress))


def _joined(values: list[np.ndarray], name: str) -> np.ndarray:
    """(movie, clip, step, [model, window]) of every job -> (clip, step, [model, window])."""
    if not name.startswith("window_"):
        return np.concatenate(values).mean(0)
    if len({v.shape[-1] for v in values}) > 1:
        values = [v.mean(-1, keepdims=True) for v in values]
    return np.concatenate([np.moveaxis(v, 0, 2).reshape(*v.shape[1:3], -1, v.shape[-1]) for v in values], axis=2)


def _encoder_windows(settings: Sequence[Settings], progress: Progress) -> float:
    total = 0.0
    for setting, state in zip(settings, progress.states):
        for encoder in setting.encoders:
            plan = jax.eval_shape(
                lambda key, encoder=encoder, setting=setting: setting.recipe.plan(encoder, setting.shape[0], key),
                jax.random.key(0),
            )
            total += plan.frames.size / encoder.window_frames * setting.num_steps
    return total
