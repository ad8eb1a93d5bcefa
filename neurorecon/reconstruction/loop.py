"""The pixel descent: recorded responses in, movie out.

    movie -> windows -> encoder -> predicted responses -> response loss -> gradient of the pixels -> update -> movie

`_step` is that line; `advance` scans it on the device over steps, and batches it over movies (one per encoder, or one
for all) and clips. Nothing here knows the true movie. Axes: movie, clip, model, window, stack, time, height, width.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from neurorecon.encoders.canvas import make_inputs
from neurorecon.reconstruction import losses, windows
from neurorecon.reconstruction.recipes import Recipe

Encoder = Any  # a linen module with the signature of `encoders`
Variables = Any


class State(NamedTuple):
    """Where a descent stands.

    Attributes:
      step: () int, updates made.
      latent: (movie, clip, time, height, width) what is descended.
      optimiser: state of the recipe's update rule, with the same leading axes.
    """

    step: jax.Array
    latent: jax.Array
    optimiser: Any


class Recorded(NamedTuple):
    """What the descent knows of a clip.

    Attributes:
      responses: (clip, time, neuron).
      behaviour: (clip, time, 4).
      neuron_weights: (neuron,); 0 leaves a neuron out.
    """

    responses: jax.Array
    behaviour: jax.Array
    neuron_weights: jax.Array


@dataclasses.dataclass(frozen=True)
class Settings:
    """The static part of a compiled descent."""

    recipe: Recipe
    encoders: tuple[Encoder, ...]  # one per group of encoders of equal architecture
    readout: int
    shape: tuple[int, int, int]  # of the descended movie
    num_steps: int
    window_chunk: int | None  # windows at once through an encoder; bounds memory
    parallel: bool  # batch movies, clips and models by vmap, or one after another


def _batched(function: Callable, xs: Any, *, parallel: bool) -> Any:
    """`function` over the leading axis of `xs`, at once or one after another."""
    if jax.tree.leaves(xs)[0].shape[0] == 1:
        return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], xs)))
    return jax.vmap(function)(xs) if parallel else lax.map(function, xs)


def _window_gradients(settings: Settings, encoder, variables, movie, clip: Recorded, plan: windows.WindowPlan):
    """Gradient of the response loss at the pixels of every window: (window, stack, time, height, width), and its trace."""
    recipe = settings.recipe
    padding = recipe.start if recipe.canvas else encoder.padding

    def one_window(place: windows.WindowPlan):
        seen = jnp.take(movie, place.frames, axis=0)
        target = jnp.take(clip.responses, place.frames, axis=0)
        behaviour = jnp.take(clip.behaviour, place.frames, axis=0)
        weights = place.valid[..., None] * clip.neuron_weights

        def response_loss(inputs):
            predicted = encoder.apply(variables, inputs, readout=settings.readout)
            total, terms = losses.combine(
                recipe.losses, predicted[None], target[None], weights[None], mean=recipe.mean_loss
            )
            return total[0], {name: value[0] for name, value in terms.items()}

        def pixels_only(seen):
            return response_loss(make_inputs(seen, behaviour, tuple(encoder.canvas), padding))

        if recipe.normalise_windows:
            inputs, to_pixels = jax.vjp(lambda s: make_inputs(s, behaviour, tuple(encoder.canvas), padding), seen)
            (total, terms), gradient = jax.value_and_grad(response_loss, has_aux=True)(inputs)
            norm = jnp.sqrt(jnp.sum(gradient**2))
            (gradient,) = to_pixels(gradient / (norm + 1e-6))
        else:
            (total, terms), gradient = jax.value_and_grad(pixels_only, has_aux=True)(seen)
            norm = jnp.sqrt(jnp.sum(gradient**2))
        return gradient * place.inside[..., None, None], {
            "window_loss": total,
            "window_gradient_norm": norm,
            **terms,
        }

    if settings.window_chunk is None:
        return jax.vmap(one_window)(plan)
    return lax.map(one_window, plan, batch_size=settings.window_chunk)


def _pixel_gradient(settings: Settings, variables: tuple, movie, clip: Recorded, key):
    """Gradient of the response loss, averaged over the encoders: (time, height, width), and its trace."""
    recipe = settings.recipe
    num_frames = settings.shape[0]
    gradient, traces, num_models = jnp.zeros_like(movie), [], 0
    for encoder, group in zip(settings.encoders, variables):
        plan = recipe.plan(encoder, num_frames, key)
        # A plan that looks at a part of the responses stands for all of them.
        share = 1.0 if recipe.mean_loss else num_frames / jnp.maximum(plan.valid.sum(), 1)
        stitch = windows.stitch_mean if recipe.stitch == "mean" else windows.stitch_sum

        def one_model(member, encoder=encoder, plan=plan, share=share, stitch=stitch):
            in_windows, trace = _window_gradients(settings, encoder, member, movie, clip, plan)
            trace["loss"] = (trace["window_loss"].mean() if recipe.mean_loss else trace["window_loss"].sum()) * share
            return stitch(in_windows, plan, num_frames) * share, trace

        gradients, trace = _batched(one_model, group, parallel=settings.parallel)
        gradient = gradient + gradients.sum(0)
        num_models += gradients.shape[0]
        traces.append(trace)
    trace = {name: jnp.concatenate([t[name] for t in traces]) for name in traces[0] if _stackable(name, traces)}
    trace = {k: v if k.startswith("window_") else v.mean() for k, v in trace.items()}
    return gradient / num_models, trace


def _stackable(name: str, traces: list[dict[str, jax.Array]]) -> bool:
    """Encoders of different windows have no common window axis; their per-window values are left out of the trace."""
    return len({t[name].shape[1:] for t in traces}) == 1


def _step(settings: Settings, variables: tuple, clip: Recorded, mask, key, carry):
    """One update of one movie of one clip."""
    recipe = settings.recipe
    step, latent, optimiser = carry
    parametrisation = recipe.parametrisation(settings.shape, latent.dtype)
    movie, to_latent = jax.vjp(parametrisation.to_pixels, latent)
    gradient, trace = _pixel_gradient(settings, variables, movie, clip, jax.random.fold_in(key, step))
    gradient = gradient * mask
    for name, (weight, prior) in recipe.priors.items():
        trace[name], pull = jax.value_and_grad(prior)(movie)
        gradient = gradient + weight * pull
    (latent_gradient,) = to_latent(gradient)
    penalty, pull = jax.value_and_grad(parametrisation.penalty)(latent)
    latent_gradient = latent_gradient + recipe.penalty_weight * pull
    updates, optimiser = recipe.update(settings.num_steps).update(latent_gradient, optimiser, latent)
    latent = parametrisation.project(optax.apply_updates(latent, updates))
    trace["penalty"] = penalty
    return (step + 1, latent, optimiser), trace


@partial(jax.jit, static_argnames=("settings", "num_steps"), donate_argnames=("state",))
def advance(settings: Settings, num_steps: int, state: State, variables: tuple, recorded: Recorded, mask, key):
    """`num_steps` updates of every movie of every clip; traces are (movie, clip, step, ...)."""

    def one_clip(args, members):
        latent, optimiser, responses, behaviour = args
        clip = Recorded(responses, behaviour, recorded.neuron_weights)

        def body(carry, _):
            return _step(settings, members, clip, mask, key, carry)

        (_, latent, optimiser), trace = lax.scan(body, (state.step, latent, optimiser), length=num_steps)
        return latent, optimiser, trace

    def one_movie(args):
        latent, optimiser, members = args
        return _batched(
            lambda xs: one_clip(xs, members),
            (latent, optimiser, recorded.responses, recorded.behaviour),
            parallel=settings.parallel,
        )

    latent, optimiser, trace = _batched(
        one_movie, (state.latent, state.optimiser, variables), parallel=settings.parallel
    )
    return State(state.step + num_steps, latent, optimiser), trace
