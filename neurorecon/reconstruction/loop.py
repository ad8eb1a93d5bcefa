"""The pixel descent: recorded responses in, movie out.

    movie -> windows -> encoder -> predicted responses -> response loss -> gradient of the pixels -> update -> movie

`_step` is that line; `advance` repeats it on the device, for every movie (one per encoder, or one for all) of every
clip. Nothing here knows the true movie. Axes: movie, clip, model, window, stack, time, height, width.

With a mesh all this runs on each of its devices for a share of clips, models and windows, see `devices`.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from neurorecon.encoders.canvas import make_inputs
from neurorecon.encoders.precision import predict
from neurorecon.reconstruction import devices, losses, stopping, windows
from neurorecon.reconstruction.recipes import Recipe

Encoder = Any  # a linen module with the signature of `encoders`
Variables = Any


class State(NamedTuple):
    """Where a descent stands.

    Attributes:
      step: () int, updates made.
      latent: (movie, clip, time, height, width) what is descended.
      optimiser: state of the recipe's update rule, with the same leading axes.
      watch: of the recipe's rule for stopping, with the same leading axes; empty where there is none.
    """

    step: jax.Array
    latent: jax.Array
    optimiser: Any
    watch: Any = ()


class Recorded(NamedTuple):
    """What the descent knows of a clip.

    Attributes:
      responses: (clip, time, neuron).
      behaviour: (clip, time, 4).
      baseline: (clip, time, height, width), added to what the latent shows: zeros, or a decoder's movie.
      neuron_weights: (neuron,); 0 leaves a neuron out.
      prior_scale: (clip, time, height, width), times the latent: standard deviations of this clip over the prior's, see
        `adaptation`; (clip, 1, 1, 1) where there are none.
      held_out: (clip, neuron) weights of those that are not descended to and decide when to stop, see `stopping`.
    """

    responses: jax.Array
    behaviour: jax.Array
    baseline: jax.Array
    neuron_weights: jax.Array
    prior_scale: jax.Array
    held_out: jax.Array


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["recipe"],
    meta_fields=[
        *("encoders", "readout", "shape", "num_steps", "steps_per_call", "window_chunk", "parallel", "mesh"),
        *("models_at_once", "clips_at_once", "precision"),
    ],
)
@dataclasses.dataclass(frozen=True)
class Settings:
    """What a descent is compiled for; only the arrays that the recipe holds are arguments."""

    recipe: Recipe
    encoders: tuple[Encoder, ...]  # one per group of encoders of equal architecture
    readout: int
    shape: tuple[int, int, int]  # of the descended movie
    num_steps: int
    steps_per_call: int  # at most; the space for the trace
    window_chunk: int  # windows at once through an encoder; bounds memory
    parallel: bool  # batch movies, clips and models by vmap, or one after another
    mesh: Mesh | None = None  # devices that share the work; None: one
    models_at_once: int = sys.maxsize  # bounds what `parallel` batches: models of a movie, or movies of their own
    clips_at_once: int = sys.maxsize
    precision: str = "float32"  # of the encoders' activations, see `encoders.precision`


def _batched(function: Callable, xs: Any, at_once: int) -> Any:
    """`function` over the leading axis of `xs`, so many at once."""
    number = jax.tree.leaves(xs)[0].shape[0]
    if number == 1:
        return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], xs)))
    if at_once >= number:
        return jax.vmap(function)(xs)
    return lax.map(function, xs, batch_size=at_once if at_once > 1 else None)


def join_models(values: Sequence[Any], axis: int) -> Any:
    """Joins values (..., model at `axis`, window); where encoders differ in windows, each keeps its mean over them."""
    if len({v.shape[-1] for v in values}) > 1:
        values = [v.mean(-1, keepdims=True) for v in values]
    return jnp.concatenate(values, axis) if isinstance(values[0], jax.Array) else np.concatenate(values, axis)


def window_gradients(settings: Settings, encoder, variables, movie, clip: Recorded, plan: windows.WindowPlan):
    """Gradient of each window's response loss at its pixels: (window, stack, time, height, width), and its trace."""
    recipe = settings.recipe
    padding = recipe.start if recipe.canvas else encoder.padding

    def one_window(place: windows.WindowPlan):
        seen, target, behaviour = (jnp.take(x, place.frames, axis=0) for x in (movie, clip.responses, clip.behaviour))
        weights = place.valid[..., None] * clip.neuron_weights

        def response_loss(inputs):
            predicted = predict(encoder, variables, inputs, readout=settings.readout, precision=settings.precision)
            total, terms = losses.combine(recipe.losses, predicted, target, weights, mean=recipe.mean_loss)
            if recipe.stop:
                terms |= stopping.products(predicted, target, clip.held_out, place.valid)
            return total, terms

        inputs, to_pixels = jax.vjp(lambda s: make_inputs(s, behaviour, tuple(encoder.canvas), padding), seen)
        (total, terms), gradient = jax.value_and_grad(response_loss, has_aux=True)(inputs)
        norm = jnp.sqrt(jnp.sum(gradient**2))
        if recipe.normalise_windows:
            gradient = gradient / (norm + 1e-6)
        return *to_pixels(gradient), {"window_loss": total, "window_gradient_norm": norm, **terms}

    if settings.window_chunk >= plan.frames.shape[0]:
        return jax.vmap(one_window)(plan)
    return lax.map(one_window, plan, batch_size=settings.window_chunk if settings.window_chunk > 1 else None)


def pixel_gradient(settings: Settings, variables: Sequence[Variables], movie, clip: Recorded, key):
    """Gradient of the response loss at the pixels, averaged over windows and then over encoders.

    Args:
      settings: static.
      variables: for each group of encoders, stacked along a model axis.
      movie: (time, height, width).
      clip: without the clip axis.
      key: of this step.

    Returns:
      (time, height, width), and the trace: () per loss, (model, window) for names that begin with `window_`.
    """
    recipe, num_frames = settings.recipe, settings.shape[0]
    gradients, traces = [], []
    for encoder, group in zip(settings.encoders, variables):
        plan = recipe.plan(encoder, num_frames, key)
        here = devices.own_windows(settings.mesh, plan)
        # A plan that looks at a part of the responses stands for all of them.
        share = 1.0 if recipe.mean_loss else num_frames / jnp.maximum(plan.valid.sum(), 1).astype(movie.dtype)

        def one_model(member, encoder=encoder, plan=plan, here=here, share=share):
            in_windows, trace = window_gradients(settings, encoder, member, movie, clip, here)
            stitched = windows.stitch_sum(in_windows, here, num_frames)
            return (windows.mean_of_sum(stitched, plan) if recipe.stitch == "mean" else stitched) * share, trace

        gradient, trace = _batched(one_model, group, settings.models_at_once if settings.parallel else 1)
        trace = devices.gathered(settings.mesh, trace, plan, models=recipe.ensemble == "gradients")
        trace["loss"] = trace["window_loss"]
        reduce = jnp.mean if recipe.mean_loss else jnp.sum
        traces.append({k: v if k.startswith("window_") else reduce(v, -1) * share for k, v in trace.items()})
        gradients.append(gradient)
    trace = {}
    for name in traces[0]:
        values = [t[name] for t in traces]
        trace[name] = join_models(values, 0) if name.startswith("window_") else jnp.concatenate(values).mean()
    if recipe.stop:
        trace["held_out_correlation"] = stopping.correlation(trace)
    gradient = jnp.concatenate(gradients).mean(0)
    return devices.summed(settings.mesh, gradient, models=recipe.ensemble == "gradients"), trace


def _step(settings: Settings, variables: Sequence[Variables], clip: Recorded, mask, key, carry):
    """One update of one movie of one clip."""
    recipe = settings.recipe
    step, latent, optimiser, watch = carry
    parametrisation = recipe.parametrisation(settings.shape, latent.dtype)
    movie, to_latent = jax.vjp(lambda z: clip.baseline + parametrisation.to_pixels(clip.prior_scale * z), latent)
    gradient, trace = pixel_gradient(settings, variables, movie, clip, jax.random.fold_in(key, step))
    gradient = gradient * mask
    for name, (weight, prior) in recipe.priors.items():
        trace[name], pull = jax.value_and_grad(prior)(movie)
        gradient = gradient + weight * pull
    (latent_gradient,) = to_latent(gradient)
    trace["penalty"], pull = jax.value_and_grad(parametrisation.penalty)(latent)
    latent_gradient = latent_gradient + recipe.penalty_weight * pull
    watch = stopping.looked(recipe.stop, watch, trace, latent)
    updates, optimiser = recipe.update(settings.num_steps).update(latent_gradient, optimiser, latent)
    latent = parametrisation.project(optax.apply_updates(latent, updates))
    return (step + 1, latent, optimiser, watch), trace


@partial(jax.jit, donate_argnames="state")
def advance(settings: Settings, num_steps: int, state: State, variables: tuple, recorded: Recorded, mask, key):
    """`num_steps` <= `steps_per_call` updates of every movie of every clip.

    The number of steps is not compiled in: a run cut anywhere runs the same code, and ends the same, as one that isn't.

    Args:
      settings: the recipe made for the movie's shape, see `Recipe.made_for`.
      num_steps: () int.
      state: where the descent stands; its buffers are given away to the new one.
      variables: for each group of encoders, stacked (movie, model, ...).
      recorded: the clips.
      mask: (height, width), times the gradient of the responses.
      key: of the whole descent.

    Returns:
      The new state; the trace (movie, clip, step, ...), of which the first `num_steps` are filled.
    """
    descend = devices.shared(settings.mesh, _descend, movies=settings.recipe.ensemble == "movies")
    return descend(settings, num_steps, state, variables, recorded, mask, key)


def _descend(settings: Settings, num_steps: int, state: State, variables: tuple, recorded: Recorded, mask, key):
    """`advance` for what one device holds."""

    def one_clip(args, members):
        latent, optimiser, watch, responses, behaviour, baseline, prior_scale, held_out = args
        clip = Recorded(responses, behaviour, baseline, recorded.neuron_weights, prior_scale, held_out)
        # Compiled on its own, the step is traced once for the shapes of its trace and the loop together.
        step = jax.jit(partial(_step, settings, members, clip, mask, key), inline=True)

        def wanted(loop):
            i, (_, _, _, watch), _ = loop
            return (i < num_steps) & stopping.goes_on(settings.recipe.stop, watch)

        def body(loop):
            i, carry, traces = loop
            carry, trace = step(carry)
            return i + 1, carry, jax.tree.map(lambda values, value: values.at[i].set(value), traces, trace)

        carry = (state.step, latent, optimiser, watch)
        _, trace = jax.eval_shape(step, carry)
        traces = jax.tree.map(lambda x: jnp.zeros((settings.steps_per_call, *x.shape), x.dtype), trace)
        _, (_, *carry), traces = lax.while_loop(wanted, body, (jnp.int32(0), carry, traces))
        return *carry, traces

    def one_movie(args):
        *descended, members = args
        each = (recorded.responses, recorded.behaviour, recorded.baseline, recorded.prior_scale, recorded.held_out)
        clips = (*descended, *each)
        at_once = settings.clips_at_once if settings.parallel else 1
        return _batched(lambda clip: one_clip(clip, members), clips, at_once)

    movies = (*state[1:], variables)
    *descended, trace = _batched(one_movie, movies, settings.models_at_once if settings.parallel else 1)
    return State(state.step + num_steps, *descended), trace
