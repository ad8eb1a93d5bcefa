"""How long until a movie explains the responses as well as the published recipe's: seconds to equal response loss.

    python -m benchmarks.time_to_loss --encoders runs/small --recording FOLDER --tier oracle

Descends to one clip with one trained DwiseNeuro in the published layout (--config.dwiseneuro.readout_kind=published),
by the published recipe to its end, and by the default recipe, once as it is and once for each of --likelihood_weights
(the default's prior keeps it from explaining the noise of a trial; the larger the weight, the less). The measure is the
same for all: the published response loss, Poisson, mean over the published windows, of the descended movie before
smoothing; of the published one also of the screen alone, since the rest of the descended canvas, which explains
responses too, is thrown away; and of the grey movie that all begin with. With --canvas the default recipe descends the
whole canvas too, in each of these weights. With --expected, the file of the true expected responses of a simulated clip
(time, neuron), the loss for these is printed too, which is what other trials of the clip would give on average:
explaining more of the noise of one trial explains less of the others.

Ours is timed call by call, without compilation and without working out the loss. With --sensorium and --reconstruction
(and PyTorch, see `benchmarks.parity`) an iteration of the published script is timed at the same size on the same
machine; our published recipe has its movies (`benchmarks.parity`), so its loss is the published one's.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import itertools
import json
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import parity
from neurorecon.encoders import DwiseNeuro, load_encoder
from neurorecon.encoders.canvas import crop_from_canvas, make_inputs
from neurorecon.errors import NeuroreconError
from neurorecon.files import save_json
from neurorecon.reconstruction import Recipe, default_recipe, losses, published_recipe, reconstruct
from neurorecon.reconstruction.windows import published_plan
from neurorecon.recordings import Trial, open_recording

LOOKS = (10, 60, 200, 500, 999)  # iterations of the published recipe whose loss is a mark


class Point(NamedTuple):
    """Attributes: step, updates made; seconds, that they took; losses, of the movie then, of each trial; cropped, the
    same for the screen alone, which is all that is kept of a descended canvas.
    """

    step: int
    seconds: float
    losses: tuple[float, ...]
    cropped: tuple[float, ...]


@functools.partial(jax.jit, static_argnames=("encoder", "padding"))
def response_loss(
    encoder: Any, variables: Any, movie: jax.Array, responses: jax.Array, behaviour: jax.Array, padding: float
) -> jax.Array:
    """() published response loss of a movie (time, height, width), a window at a time."""
    plan = published_plan(len(movie), window_frames=encoder.window_frames, frame_step=encoder.frame_step)

    def one(frames: jax.Array) -> jax.Array:
        inputs = make_inputs(movie[frames], behaviour[frames], tuple(encoder.canvas), padding)
        return losses.poisson(encoder.apply(variables, inputs), responses[frames]).mean()

    return jax.lax.map(one, jnp.asarray(plan.frames)).mean()


def losses_of(encoder: Any, trials: list[Trial], movie: jax.Array) -> tuple[float, ...]:
    """Response loss of a movie of the screen (time, height, width) for the responses of each trial."""
    network, variables = encoder
    return tuple(
        float(response_loss(network, variables, movie, t.responses, t.behaviour, network.padding)) for t in trials
    )


def watched(encoder: Any, trials: list[Trial], recipe: Recipe, every: int) -> list[Point]:
    """The descent to the first trial's movie, looked at after every so many updates."""
    points: list[Point] = []
    network, variables = encoder
    frame = tuple(network.canvas if recipe.canvas else network.screen)
    shape = (len(trials[0].responses), *frame)
    shown = jax.jit(recipe.parametrisation(shape, jnp.float32).to_pixels)
    padding = recipe.start if recipe.canvas else network.padding
    began, spent = time.perf_counter(), 0.0

    def loss(movie: jax.Array, trial: Trial, padding: float) -> float:
        return float(response_loss(network, variables, movie, trial.responses, trial.behaviour, padding))

    def look(progress: Any) -> None:
        nonlocal began, spent
        spent += time.perf_counter() - began
        movie = shown(jnp.asarray(progress.states[0].latent)[0, 0])
        whole = tuple(loss(movie, t, padding) for t in trials)
        screen = jnp.asarray(crop_from_canvas(np.asarray(movie), tuple(network.screen)))
        cropped = losses_of(encoder, trials, screen) if recipe.canvas else whole
        points.append(Point(progress.step, spent, whole, cropped))
        if sys.stderr.isatty() or progress.step % (20 * every) == 0:
            print(
                f"\r{recipe.name}: {progress.step} of {recipe.num_steps} updates", end="", file=sys.stderr, flush=True
            )
        began = time.perf_counter()

    for warm in (True, False):  # the first run compiles
        points.clear()
        began, spent = time.perf_counter(), 0.0
        with contextlib.suppress(Enough):
            reconstruct(
                [encoder],
                trials[0].responses,
                trials[0].behaviour,
                recipe=recipe,
                key=jax.random.key(0),
                steps_per_call=every,
                on_call=_enough if warm else look,
            )
    print(file=sys.stderr)
    return points


class Enough(Exception):
    """Everything is compiled."""


def _enough(progress: Any) -> None:
    raise Enough


def published_seconds(options: argparse.Namespace, network: Any, frames: int) -> float:
    """Of an iteration of the published script with a network of these widths."""
    parity.importable(options.sensorium, options.reconstruction)
    size = {
        "neurons": network.num_neurons[0],
        "network": {name: getattr(network, name) for name in parity.SIZES["paper"]["network"]},
    }
    with tempfile.TemporaryDirectory() as folder:
        setting = parity.prepare(Path(folder), options.reconstruction, size, 1, frames)
        return parity.published(
            setting, options.reconstruction.resolve(), options.updates + 2, options.updates + 2
        ).seconds


def published_losses(options: argparse.Namespace, encoder: Any, trials: list[Trial]) -> dict[str, Any]:
    """Losses of the published recipe, and seconds of an iteration of ours; from --keep where it holds them."""
    what = {k: str(getattr(options, k)) for k in ("encoders", "recording", "tier", "frames", "iterations")}
    if options.keep and options.keep.is_file():
        kept = json.loads(options.keep.read_text())
        if kept["what"] != what:
            raise NeuroreconError(f"{options.keep}: expected losses of {what}, found those of {kept['what']}")
        print(f"published losses: from {options.keep}")
        return kept
    points = watched(encoder, trials, published_recipe(num_steps=options.iterations), 10)
    own = points[-1].seconds / points[-1].step
    print(f"published recipe, ours: {own:.4g} s an iteration")
    found = [p for p in points if p.step in (*LOOKS, options.iterations)]
    for p in found:
        cropped = ", ".join(f"{loss:.5f}" for loss in p.cropped)
        print(
            f"  after {p.step}: loss {p.losses[0]:.5f}, of the expected ones {of_expected(p)}; of the screen: {cropped}"
        )
    marks = {p.step: p.losses[0] for p in found}
    cropped_marks = {p.step: p.cropped[0] for p in found}
    measured = {"what": what, "our_seconds": own, "marks": marks, "cropped": cropped_marks}
    if options.keep:
        save_json(options.keep, measured)
    return measured


def targets_of(options: argparse.Namespace) -> list[Trial]:
    """The tier's first trial, cut to so many frames; and with the expected responses in place of its own."""
    recording = open_recording(options.recording)
    names = recording.trial_ids(options.tier)
    if not names:
        raise NeuroreconError(f"--tier: expected trials of the tier {options.tier!r} in the recording, found none")
    trial = recording.trial(names[0])
    if trial.num_frames < options.frames:
        raise NeuroreconError(f"--frames: expected at most the {trial.num_frames} of the clip, found {options.frames}")
    responses = [trial.responses]
    if options.expected:
        expected = np.load(options.expected)
        if expected.shape != trial.responses.shape:
            raise NeuroreconError(
                f"{options.expected}: expected shape {trial.responses.shape}, as recorded, found {expected.shape}"
            )
        responses.append(expected.astype(np.float32))
    cut = slice(options.frames)
    return [
        dataclasses.replace(trial, stimulus=trial.stimulus[cut], responses=r[cut], behaviour=trial.behaviour[cut])
        for r in responses
    ]


def report(name: str, points: list[Point], marks: dict[str, dict[int, float]], each: float, source: str) -> None:
    """Prints when the recipe's loss falls below that of the published one after so many iterations."""
    losses_seen = [p.losses[0] for p in points]
    best = points[int(np.argmin(losses_seen))]
    print(
        f"{name}: least loss {best.losses[0]:.5f} after {best.step} updates, of the expected ones {of_expected(best)}"
    )
    for what, (iteration, mark) in ((what, item) for what, found in marks.items() for item in found.items()):
        reached = next((p for p in points if p.losses[0] <= mark), None)
        if reached is None:
            print(f"  never at {mark:.5f}, the {what} loss after {iteration} iterations")
        else:
            seconds = each * iteration
            print(
                f"  at {mark:.5f}, the {what} loss after {iteration} iterations ({seconds:.1f} s, {source}), after "
                f"{reached.step} updates, {reached.seconds:.2f} s: {seconds / reached.seconds:.3g} times as quick; "
                f"of the expected ones {of_expected(reached)}"
            )


def of_expected(point: Point) -> str:
    return f"{point.losses[1]:.5f}" if len(point.losses) > 1 else "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--encoders", type=Path, required=True, help="work folder of a training")
    parser.add_argument("--recording", type=Path, required=True)
    parser.add_argument("--tier", default="oracle", help="whose first clip (default oracle)")
    parser.add_argument("--expected", type=Path, help="npy of the clip's true expected responses")
    parser.add_argument("--frames", type=int, default=64, help="of the clip, 48 or more (default 64)")
    parser.add_argument("--iterations", type=int, default=999, help="of the published recipe (default 999, all)")
    parser.add_argument("--likelihood_weights", default="1,10,100", help="besides the default's own")
    parser.add_argument("--steps", type=int, default=200, help="of the default recipe in other weights (default 200)")
    parser.add_argument("--learning_rate", type=float, default=0.3, help="in other weights (default 0.3, its own)")
    parser.add_argument(
        "--canvas",
        nargs="?",
        const="also",
        choices=["also", "only"],
        help="other weights also descend the whole canvas; only: nothing but that",
    )
    parser.add_argument("--every", type=int, default=1, help="updates between two looks at the loss (default 1)")
    parser.add_argument("--sensorium", type=Path, help="checkout of lRomul/sensorium")
    parser.add_argument("--reconstruction", type=Path, help="checkout of movie_reconstruction_code")
    parser.add_argument("--keep", type=Path, help="file for the published recipe's losses, which take long; not times")
    parser.add_argument("--updates", type=int, default=3, help="timed iterations of the published script (default 3)")
    options = parser.parse_args()
    logging.disable(logging.INFO)  # the published code's
    warnings.simplefilter("ignore")  # that its PyTorch was older, and of constant movies
    try:
        weights = [float(w) for w in options.likelihood_weights.split(",") if w]
        if options.frames < 48 or min(options.iterations, options.steps, options.updates, options.every) < 1:
            raise NeuroreconError("--frames, --iterations, --steps, --updates, --every: expected at least 48, then 1")
        if (options.sensorium is None) != (options.reconstruction is None):
            raise NeuroreconError("--sensorium, --reconstruction: expected both checkouts or none, found one")
        encoder = load_encoder(options.encoders / "encoders" / "0")
        if not isinstance(encoder[0], DwiseNeuro) or encoder[0].readout_kind != "published":
            raise NeuroreconError(
                f"{options.encoders}: expected a DwiseNeuro with the published readout, found another"
            )
        trials = targets_of(options)
        device = jax.devices()[0].device_kind
        print(
            f"{options.frames} frames, {encoder[0].num_neurons[0]} neurons, one model; jax {jax.__version__}, {device}"
        )
        measured = published_losses(options, encoder, trials)
        named = {"published": measured["marks"], "published screen's": measured["cropped"]}
        marks = {name: {int(k): v for k, v in values.items()} for name, values in named.items()}
        each, source = measured["our_seconds"], "ours"
        if options.sensorium is not None:  # timed anew, beside ours
            each, source = published_seconds(options, encoder[0], options.frames), "published script"
            version = importlib.import_module("torch").__version__
            print(f"published script, torch {version}: {each:.4g} s an iteration")
        for name, movie in (("grey", np.full_like(trials[0].stimulus, 127.5)), ("true movie", trials[0].stimulus)):
            seen = ", ".join(f"{loss:.5f}" for loss in losses_of(encoder, trials, jnp.asarray(movie, jnp.float32)))
            print(f"{name}: loss {seen}, of the recorded responses and the expected ones, where these are known")
        report("default", watched(encoder, trials, default_recipe(), options.every), marks, each, source)
        canvases = {None: [False], "also": [False, True], "only": [True]}[options.canvas]
        for canvas, weight in itertools.product(canvases, weights):
            changes = {"num_steps": options.steps, "canvas": canvas, "learning_rate": options.learning_rate}
            recipe = default_recipe(likelihood_weight=weight, **changes)
            name = f"default, {'whole canvas, ' if canvas else ''}likelihood weight {weight:g}"
            report(name, watched(encoder, trials, recipe, options.every), marks, each, source)
    except NeuroreconError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
