"""`reconstruct`: checks what it is given, runs the descent in calls of a few steps, and finishes the movie."""

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter

from neurorecon import hosts
from neurorecon.encoders.canvas import crop_from_canvas
from neurorecon.encoders.precision import in_precision
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import chunking, devices, stopping
from neurorecon.reconstruction.agreement import as_first
from neurorecon.reconstruction.checks import check_encoders, check_key, mask_on, recorded_clips
from neurorecon.reconstruction.loop import Encoder, Recorded, Settings, State, Variables, advance, join_models
from neurorecon.reconstruction.progress import Progress
from neurorecon.reconstruction.recipes import Recipe


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """The outcome. From `reconstruct_clips` every array has a leading clip axis.

    Attributes:
      movie: (time, height, width) of the screen, grey values 0..255.
      movies: (movie, time, height, width) before averaging and smoothing, over what was descended (the screen, or the
        encoder's canvas); in the order of the encoders where each has its own.
      trace: name -> values (step, ...) before each update: `loss`, the response loss, and each of its terms before its
        weight, means over the encoders; each prior under its own name; `penalty` of the parametrisation;
        `window_loss` and `window_gradient_norm` (step, model, window), models in the order of the encoders;
        `held_out_correlation`, and the sums it is made of, where the recipe stops by it. Of a movie that stopped before
        others, the last values stay.
      encoder_windows: windows pushed through encoders, forward and back, for one clip, in units of the frames that
        the encoder is trained on; the mean over clips that stopped at different steps.
      num_steps: updates made, the mean over movies and clips.
    """

    movie: np.ndarray
    movies: np.ndarray
    trace: dict[str, np.ndarray]
    encoder_windows: float
    num_steps: float


class Job(NamedTuple):
    """Encoders of one compiled descent.

    Attributes:
      encoders: one of each architecture.
      variables: for each of them, stacked (movie, model, ...).
      members: places in the caller's sequence, in the order of movies and models here.
    """

    encoders: tuple[Encoder, ...]
    variables: tuple[Variables, ...]
    members: tuple[int, ...]


def reconstruct(
    encoders: Sequence[tuple[Encoder, Variables]],
    responses: np.ndarray,
    behaviour: np.ndarray,
    *,
    recipe: Recipe,
    key: jax.Array,
    update_mask: np.ndarray | None = None,
    readout: int = 0,
    num_steps: int | None = None,
    **options: Any,
) -> Reconstruction:
    """Reconstructs the movie behind the responses of one clip.

    Args:
      encoders: (encoder, variables) of every member of the ensemble.
      responses: (time, neuron) as recorded.
      behaviour: (time, 4).
      recipe: see `recipes`.
      key: for the random choices of the recipe.
      update_mask: (height, width) of the screen or of the encoder's canvas.
      readout: which animal's readout.
      num_steps: pixel updates, in place of the recipe's.
      **options: see `reconstruct_clips`; `baseline` and `prior_scale` without their clip axis.

    Raises:
      NeuroreconError: shapes that don't fit, responses that are not finite, or a descent that stopped being finite.
    """
    for name in ("baseline", "prior_scale"):
        if options.get(name) is not None:
            options[name] = np.asarray(options[name])[None]
    result = reconstruct_clips(
        encoders,
        np.asarray(responses)[None],
        np.asarray(behaviour)[None],
        recipe=recipe,
        key=key,
        update_mask=update_mask,
        readout=readout,
        num_steps=num_steps,
        **options,
    )
    trace = {name: values[0] for name, values in result.trace.items()}
    return dataclasses.replace(result, movie=result.movie[0], movies=result.movies[0], trace=trace)


def reconstruct_clips(
    encoders: Sequence[tuple[Encoder, Variables]],
    responses: np.ndarray,
    behaviour: np.ndarray,
    *,
    recipe: Recipe,
    key: jax.Array,
    update_mask: np.ndarray | None = None,
    neurons: np.ndarray | None = None,
    baseline: np.ndarray | None = None,
    prior_scale: np.ndarray | None = None,
    readout: int = 0,
    num_steps: int | None = None,
    steps_per_call: int = 20,
    window_chunk: int | None = None,
    parallel: bool | None = None,
    memory_gib: float = 0.0,
    precision: str = "float32",
    shard: str = "",
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
      update_mask: (height, width) of the screen or of the encoder's canvas, times which the gradient of the responses
        goes on; priors act everywhere.
      neurons: (neuron,) bool, those to use; the rest is left out as `recipe.ablation` says.
      baseline: (clip, time, height, width) of the screen, grey values, to which the parametrisation's movie is added.
        With a recipe whose prior mean is 0 it is the prior's mean for each clip: a decoder's movie, say.
      prior_scale: (clip, time, height, width) of what is descended: the latent is multiplied by it. With the default
        recipe, the clip's standard deviation of each cosine coefficient over the prior's, see `adaptation`.
      readout: which animal's readout.
      num_steps: pixel updates, in place of the recipe's.
      steps_per_call: updates between two returns to the host.
      window_chunk: windows at once through an encoder, at most. Left out: one on CPU (measured three to four times
        faster than all, since activations stay in cache), as many as fit into memory elsewhere, see `chunking`.
      parallel: batch encoders and clips by `vmap`, as far as memory allows (default on accelerators), or one after
        another (default on CPU, where activations then stay in cache).
      memory_gib: bounds the memory that is planned for on each device; 0: what the device says it has.
      precision: of the encoders' activations, "float32" or "bfloat16"; pixels and losses are float32 at least.
      shard: what the devices share, those of all hosts that have joined (`hosts.join`): "clips", "models" (of the
        ensemble), "windows" (of a model's step), or whatever of these is quickest ("auto"). Empty: one device does
        all. The movies differ by the order of sums. Several hosts call this alike; each has the outcome.
      progress: where to go on, from `on_call` of an earlier run with the same arguments; the outcome is the same, bit
        for bit.
      on_call: called after every `steps_per_call` updates.

    Raises:
      NeuroreconError: shapes that don't fit, responses that are not finite, or a descent that stopped being finite.
    """
    steps = recipe.num_steps if num_steps is None else num_steps
    if not (math.isfinite(memory_gib) and memory_gib >= 0):
        raise NeuroreconError(f"memory_gib: expected 0 or more, found {memory_gib}")
    for name, value in (("num_steps", steps), ("steps_per_call", steps_per_call), ("window_chunk", window_chunk)):
        if value is not None and value < 1:
            raise NeuroreconError(f"{name}: expected at least 1, found {value}")
    check_key(key)
    on_cpu = jax.default_backend() == "cpu"
    limits = {
        "num_steps": steps,
        "steps_per_call": min(steps_per_call, steps),
        "window_chunk": (1 if on_cpu else sys.maxsize) if window_chunk is None else window_chunk,
        "parallel": not on_cpu if parallel is None else parallel,
        "precision": precision,
        "readout": readout,
    }
    clips = (responses, behaviour, neurons, baseline, prior_scale)
    ready = hosts.agreed(lambda: _ready(encoders, clips, recipe, update_mask, shard, memory_gib, limits))
    variables = [job.variables for job in ready.jobs]
    settings, recorded, mask, progress = as_first(ready.settings, variables, ready.recorded, ready.mask, key, progress)
    progress = (
        Progress(ready.start, tuple({} for _ in variables)) if progress is None else progress.resumed(ready.start)
    )
    for group, setting in enumerate(settings):
        put = partial(devices.placed, setting.mesh, movies=recipe.ensemble == "movies")
        args = put((setting, np.int32(0), progress.states[group], variables[group], recorded, mask, key))
        state, done = args[2], int(progress.states[group].step)
        if hosts.several():  # none may wait for another's compiler within a step
            hosts.agreed(lambda args=args: advance.lower(*args).compile())  # type: ignore[misc]
        while done < steps and np.any(stopping.goes_on(recipe.stop, progress.states[group].watch)):
            now = min(setting.steps_per_call, steps - done)
            state, trace = advance(args[0], np.int32(now), state, *args[3:])
            filled = {name: values[:, :, :now] for name, values in hosts.gathered(trace).items()}
            _check_finite(filled, done)
            progress = progress.extended(group, hosts.gathered(state), filled)
            done += now
            if on_call is not None:
                on_call(progress)
    screen = tuple(encoders[0][0].screen)
    return _finish(progress, settings, ready.jobs, recorded, screen)


class _Ready(NamedTuple):
    """The descents of `reconstruct_clips`: settings, encoders and start of each, and what they have in common."""

    settings: list[Settings]
    jobs: list[Job]
    start: tuple[State, ...]
    recorded: Recorded
    mask: Any


def _ready(
    encoders: Sequence[tuple[Encoder, Variables]],
    clips: tuple[Any, Any, Any, Any, Any],
    recipe: Recipe,
    update_mask: np.ndarray | None,
    shard: str,
    memory_gib: float,
    limits: dict[str, Any],
) -> _Ready:
    """Checks the arguments of `reconstruct_clips`, `clips` its responses, behaviour, neurons, baseline, prior_scale."""
    readout = limits["readout"]
    check_encoders(encoders, readout, same_canvas=recipe.canvas)
    encoders = [in_precision(*member, limits["precision"]) for member in encoders]
    jobs = _jobs(encoders, recipe.ensemble)
    dtype = _dtype(encoders)
    first = encoders[0][0]
    screen, canvas = tuple(first.screen), tuple(first.canvas)
    frame = canvas if recipe.canvas else screen
    recorded = recorded_clips(*clips, num_neurons=first.num_neurons[readout], frame=frame, recipe=recipe, dtype=dtype)
    num_clips, num_frames = recorded.responses.shape[:2]
    mask = mask_on(update_mask, screen, canvas, frame, dtype)
    recipe = recipe.made_for((num_frames, *frame), dtype)
    meshes = devices.descent_meshes(shard, [_work(recipe, job, num_clips, num_frames) for job in jobs])
    settings = [
        Settings(recipe=recipe, encoders=job.encoders, shape=(num_frames, *frame), mesh=mesh, **limits)
        for job, mesh in zip(jobs, meshes)
    ]
    start = tuple(_start(s, job, num_clips, dtype) for s, job in zip(settings, jobs))
    settings = [_within_memory(s, job, at, recorded, memory_gib) for s, job, at in zip(settings, jobs, start)]
    return _Ready(settings, jobs, start, recorded, mask)


def _jobs(encoders: Sequence[tuple[Encoder, Variables]], ensemble: str) -> list[Job]:
    """Encoders of equal architecture are stacked; each architecture is a job where each encoder has its own movie."""
    groups: dict[Encoder, list[int]] = {}
    for place, (encoder, _) in enumerate(encoders):
        groups.setdefault(encoder, []).append(place)

    def stack(members: list[int], axis: int) -> Variables:
        arrays = [encoders[member][1] for member in members]
        stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *arrays)
        return jax.tree.map(lambda x: jnp.expand_dims(x, axis), stacked)

    if ensemble == "movies":
        return [Job((encoder,), (stack(members, 1),), tuple(members)) for encoder, members in groups.items()]
    variables = tuple(stack(members, 0) for members in groups.values())
    return [Job(tuple(groups), variables, tuple(place for members in groups.values() for place in members))]


def _dtype(encoders: Sequence[tuple[Encoder, Variables]]) -> Any:
    """What the pixels are computed in: the weights' precision, and float32 at least."""
    leaves = jax.tree.leaves([variables for _, variables in encoders])
    return jnp.result_type(jnp.float32, *(x.dtype for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)))


def _start(settings: Settings, job: Job, num_clips: int, dtype: Any) -> State:
    parametrisation = settings.recipe.parametrisation(settings.shape, dtype)
    latent = jnp.zeros(settings.shape, dtype)
    if not parametrisation.starts_at_prior:
        latent = parametrisation.from_pixels(jnp.full(settings.shape, settings.recipe.start, dtype))
    optimiser = settings.recipe.update(settings.num_steps).init(latent)
    num_movies = jax.tree.leaves(job.variables[0])[0].shape[0]
    latent, optimiser, watch = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (num_movies, num_clips, *jnp.shape(x))),
        (latent, optimiser, stopping.begun(settings.recipe.stop, latent)),
    )
    return State(jnp.zeros((), jnp.int32), latent, optimiser, watch)


def _check_finite(trace: dict[str, np.ndarray], done: int) -> None:
    for name, values in trace.items():
        if not np.isfinite(values).all():
            movie, clip, step = np.argwhere(~np.isfinite(values))[0][:3]
            raise NeuroreconError(
                f"reconstruction: {name} of clip {clip}, movie {movie} is not finite at step {done + step}; "
                "lower the learning rate, or look for extreme responses"
            )


def _finish(
    progress: Progress,
    settings: Sequence[Settings],
    jobs: Sequence[Job],
    recorded: Recorded,
    screen: tuple[int, int],
) -> Reconstruction:
    baseline, scale = np.asarray(recorded.baseline), np.asarray(recorded.prior_scale)
    recipe = settings[0].recipe
    movies = []
    for state, setting in zip(progress.states, settings):
        to_pixels = recipe.parametrisation(setting.shape, state.latent.dtype).to_pixels
        latent = state.watch.latent if recipe.stop else state.latent
        shown = jax.vmap(jax.vmap(to_pixels))(jnp.asarray(np.asarray(latent) * scale)) + baseline
        movies.append(np.asarray(jnp.clip(shown, 0.0, 255.0)))
    stacked = np.concatenate(movies).swapaxes(0, 1)  # clip, movie, time, height, width
    order = np.argsort([member for job in jobs for member in job.members])
    if recipe.ensemble == "movies":
        stacked = stacked[:, order]
    for clip, values in enumerate(stacked):
        if not np.isfinite(values).all():
            raise NeuroreconError(f"reconstruction: the movie of clip {clip} is not finite; lower the learning rate")
    movie = stacked.astype(np.float64).mean(1)
    if recipe.smoothing:
        movie = gaussian_filter(movie, (0, *[recipe.smoothing] * 3))
    movie = crop_from_canvas(movie, screen).astype(np.float32)
    made = [
        np.full(s.latent.shape[:2], s.step) if not recipe.stop else np.asarray(s.watch.seen) for s in progress.states
    ]
    trace = {}
    for name in progress.traces[0]:  # (movie, clip, step, ...) of every job
        values = [_held(trace[name], own, max(m.max() for m in made)) for trace, own in zip(progress.traces, made)]
        if name.startswith("window_"):  # with a model axis, beside or in place of the movies'
            models = [np.moveaxis(v, 0, 2).reshape(*v.shape[1:3], -1, v.shape[-1]) for v in values]
            trace[name] = join_models(models, 2)[:, :, order]
        else:
            trace[name] = np.concatenate(values).mean(0)
    steps = [float(m.mean()) for m in made]
    return Reconstruction(movie, stacked, trace, _encoder_windows(settings, jobs, steps), float(np.mean(steps)))


def _held(values: np.ndarray, made: np.ndarray, length: int) -> np.ndarray:
    """A trace (movie, clip, step, ...) of so many steps: of movies that made fewer, the last value stays."""
    last = np.minimum(np.arange(length), made[..., None] - 1)
    return np.take_along_axis(values, last.reshape(*last.shape, *[1] * (values.ndim - 3)), axis=2)


def _encoder_windows(settings: Sequence[Settings], jobs: Sequence[Job], steps: Sequence[float]) -> float:
    total = 0.0
    for setting, job, made in zip(settings, jobs, steps):
        for encoder, variables in zip(job.encoders, job.variables):
            frames = _plan_shape(setting.recipe, encoder, setting.shape[0])
            movies, models = jax.tree.leaves(variables)[0].shape[:2]
            total += movies * models * math.prod(frames) / encoder.window_frames * made
    return total


def _plan_shape(recipe: Recipe, encoder: Encoder, num_frames: int) -> tuple[int, ...]:
    return jax.eval_shape(lambda key: recipe.plan(encoder, num_frames, key), jax.random.key(0)).frames.shape


def _within_memory(settings: Settings, job: Job, state: State, recorded: Recorded, memory_gib: float) -> Settings:
    work = _work(settings.recipe, job, len(recorded.responses), settings.shape[0])
    shares = (1, 1, 1) if settings.mesh is None else tuple(settings.mesh.shape.values())  # clip, model, window
    counts = chunking.AtOnce(-(-max(work.windows) // shares[2]), max(work.models) // shares[1], work.clips // shares[0])
    device = jax.local_devices()[0]
    return chunking.chosen(settings, state, job.variables, recorded, counts, device=device, memory_gib=memory_gib)


def _work(recipe: Recipe, job: Job, num_clips: int, num_frames: int) -> devices.Work:
    """Movies of their own count as models: devices can share either."""
    models = [math.prod(jax.tree.leaves(variables)[0].shape[:2]) for variables in job.variables]
    windows = [_plan_shape(recipe, encoder, num_frames)[0] for encoder in job.encoders]
    return devices.Work(num_clips, tuple(models), tuple(windows))
