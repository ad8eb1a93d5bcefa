"""Memory that a descent needs: as compiled, and while it runs.

    python -m benchmarks.memory
    python -m benchmarks.memory --run --windows 1

By default seven full encoders of 8,000 neurons descend to one movie of 300 frames by the default recipe's windows. Two
ways are compiled: as on a processor (a window of a model at a time) against --host_gib, and as on an accelerator, with
as much at once as the automatic choice takes for a device of --device_gib. Without an accelerator the second is an
estimate: the accelerator's program, laid out in memory by the processor's compiler.

--run also makes one update and prints the peak of resident memory. Its time goes with the windows, its memory hardly:
--windows 1 looks at the plan's first alone. Weights and clip are random.
"""

import argparse
import contextlib
import dataclasses
import resource
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import parity, speed
from neurorecon.encoders import DwiseNeuro
from neurorecon.encoders.canvas import place_on_canvas
from neurorecon.encoders.precision import in_precision
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import chunking, default_recipe, published_recipe
from neurorecon.reconstruction.loop import Recorded, Settings, State, advance
from neurorecon.reconstruction.windows import WindowPlan
from neurorecon.stimuli.natural import natural_movie

SIZES: dict[str, dict[str, Any]] = {"small": speed.SIZES["small"], "full": parity.SIZES["paper"]}
RECIPES = {"default": default_recipe, "published": published_recipe}
GIB = chunking.GIB


@dataclasses.dataclass(frozen=True)
class Device:
    """Of a given memory."""

    gib: float

    def memory_stats(self) -> dict[str, int]:
        return {"bytes_limit": int(self.gib * GIB)}


def first_windows(plan: Callable, number: int) -> Callable:
    """The plan's first windows alone."""

    def cut(encoder: Any, num_frames: int, key: jax.Array) -> WindowPlan:
        return jax.tree.map(lambda x: x[:number], plan(encoder, num_frames, key))

    return cut


def arguments(options: argparse.Namespace) -> tuple[Settings, tuple, chunking.AtOnce]:
    """Settings, the other arguments of `loop.advance`, and how many windows, models and clips there are."""
    size = SIZES[options.size]
    encoder = DwiseNeuro(num_neurons=(size["neurons"],), **size["network"])
    members = [speed.random_variables(encoder, seed) for seed in range(options.models)]
    folded = [in_precision(encoder, member, options.precision) for member in members]
    encoder = folded[0][0]
    recipe = RECIPES[options.recipe]()
    if options.windows:
        recipe = recipe.replace(plan=first_windows(recipe.plan, options.windows))
    shape = (options.frames, *(encoder.canvas if recipe.canvas else encoder.screen))
    recipe = recipe.made_for(shape, jnp.float32)
    axis = 1 if recipe.ensemble == "movies" else 0  # of (movie, model), the one that has a single place
    variables = jax.tree.map(lambda *x: np.expand_dims(np.stack(x), axis), *(member for _, member in folded))
    movies = options.models if recipe.ensemble == "movies" else 1
    latent = jnp.zeros((movies, options.clips, *shape), jnp.float32)
    optimiser = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (movies, options.clips, *jnp.shape(x))), recipe.update(1).init(latent[0, 0])
    )
    trial = parity.random_trial("random", natural_movie(0, num_frames=options.frames), size["neurons"])
    responses, behaviour = (np.stack([x] * options.clips) for x in (trial.responses, trial.behaviour))
    weights, scales = np.ones(size["neurons"]), np.ones((options.clips, 1, 1, 1))
    recorded = Recorded(
        responses,
        behaviour,
        np.zeros(latent.shape[1:], np.float32),
        weights,
        scales,
        np.zeros((options.clips, size["neurons"])),
    )
    recorded = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), recorded)
    mask = place_on_canvas(np.ones(encoder.screen, np.float32), shape[1:])
    windows = recipe.plan(encoder, options.frames, jax.random.key(0)).frames.shape[0]
    settings = Settings(recipe, (encoder,), 0, shape, 1, 1, 1, False, precision=options.precision)
    state = State(jnp.zeros((), jnp.int32), latent, optimiser)
    rest = (np.int32(1), state, (variables,), recorded, mask, jax.random.key(0))
    return settings, rest, chunking.AtOnce(windows, options.models, options.clips)


def compiled(settings: Settings, rest: tuple, limit: float, name: str) -> None:
    """Prints what the update is compiled to need."""
    start = time.perf_counter()
    made = advance.lower(settings, *rest).compile()
    took = time.perf_counter() - start
    analysis: Any = made.memory_analysis()
    parts = {
        "arguments": analysis.argument_size_in_bytes,
        "temporary": analysis.temp_size_in_bytes,
        "results": analysis.output_size_in_bytes,
    }
    total = (sum(parts.values()) - analysis.alias_size_in_bytes) / GIB  # the new state lies where the old one was
    print(
        f"{name}: {total:.2f} GiB ({', '.join(f'{part} {value / GIB:.2f}' for part, value in parts.items())}), "
        f"compiled in {took:.0f} s; {limit:g} GiB {'hold' if total <= limit else 'DO NOT hold'} it",
        flush=True,
    )


@contextlib.contextmanager
def as_an_accelerator() -> Any:
    """The program that an accelerator would run, whatever there is."""
    backend = jax.default_backend()
    with mock.patch.object(jax, "default_backend", lambda: "gpu" if backend == "cpu" else backend):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="default")
    parser.add_argument("--models", type=int, default=7)
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--windows", type=int, default=0, help="the plan's first (default: all)")
    parser.add_argument("--precision", default="float32", help="or bfloat16")
    parser.add_argument("--host_gib", type=float, default=24.0)
    parser.add_argument("--device_gib", type=float, default=16.0, help="0: leave the accelerator out")
    parser.add_argument("--run", action="store_true", help="also make an update as on a processor")
    options = parser.parse_args()
    try:
        if min(options.models, options.clips) < 1 or options.frames < 48 or options.windows < 0:
            raise NeuroreconError("--models, --clips, --frames, --windows: expected at least 1, 1, 48 and 0")
        settings, rest, counts = arguments(options)
        what = f"{options.size}, {counts.models} models, {counts.clips} clips, {options.frames} frames"
        print(f"{what}, {counts.windows} windows of the {options.recipe} recipe; {options.precision}", flush=True)
        compiled(settings, rest, options.host_gib, "a window at a time")
        if options.device_gib:
            wanted = dataclasses.replace(settings, window_chunk=sys.maxsize, parallel=True)
            state, variables, recorded = rest[1:4]
            with as_an_accelerator():
                device = Device(options.device_gib)
                fits = chunking.chosen(wanted, state, variables, recorded, counts, device=device)
                each = chunking.window_bytes(wanted, variables, recorded) / GIB
                sizes = f"{fits.window_chunk} windows, {fits.models_at_once} models, {fits.clips_at_once} clips"
                print(
                    f"a window is taken to need {each:.2f} GiB; {options.device_gib:g} GiB: {sizes} at once", flush=True
                )
                compiled(fits, rest, options.device_gib, "as on an accelerator")
        if options.run:
            state, _ = advance(settings, np.int32(0), *rest[1:])  # compiles, and takes the state
            start = time.perf_counter()
            state, _ = jax.block_until_ready(advance(settings, rest[0], state, *rest[2:]))
            took = time.perf_counter() - start
            if not np.isfinite(np.asarray(state.latent)).all():
                raise NeuroreconError("the update is not finite")
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
            print(f"one update: {took:.1f} s; peak of resident memory, compiler and all: {peak:.2f} GiB")
    except NeuroreconError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
