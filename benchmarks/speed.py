"""Seconds an iteration of the published recipe: the published script, its best case, and ours; beside the floor.

    python -m benchmarks.speed --size small --sensorium sensorium --reconstruction movie_reconstruction_code

Checkouts and PyTorch as for `benchmarks.parity`, which runs the published script; without them ours is timed alone.
The same weights and trial for all, turn by turn: as published; with its weights frozen (it computes gradients of the
weights that nobody uses); ours. Medians over the turns, without compilation and without the iterations that store.
Every window costs the same: on a slow machine --frames 64 (10 stacks instead of 70) gives the ratios in less time.

The floor is the larger of operations / measured peak of a matrix product and bytes / measured memory bandwidth.
Operations and bytes are XLA's count for one window's gradient of the compiled encoder, times the windows; bytes count
every array that goes to or from memory once, cached or not, so that a good use of caches can beat this floor.
"""

import argparse
import contextlib
import importlib
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import parity
from neurorecon.encoders import DwiseNeuro, depthwise, load_published
from neurorecon.encoders.canvas import make_inputs
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import losses, published_recipe, reconstruct
from neurorecon.reconstruction.windows import published_plan
from neurorecon.recordings import Trial
from neurorecon.stimuli.natural import natural_movie

SMALL = {
    "core_features": (16, 16, 32, 32),
    "spatial_strides": (2, 1, 2, 1),
    "expansion_ratio": 4,
    "se_reduce_ratio": 8,
    "cortex_features": (128, 256),
}
SIZES: dict[str, dict[str, Any]] = {
    "small": {"network": SMALL, "neurons": 500, "frames": 300},
    "full": parity.SIZES["paper"],
}


def random_variables(encoder: DwiseNeuro, seed: int) -> dict[str, Any]:
    """Random weights of usual sizes, without compiling the encoder: NumPy arrays."""
    inputs = jax.ShapeDtypeStruct((1, encoder.window_frames, *encoder.canvas, 5), jnp.float32)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), inputs)
    rng = np.random.default_rng(seed)

    def drawn(path: Any, like: Any) -> np.ndarray:
        if like.dtype != jnp.float32:
            return np.zeros(like.shape, like.dtype)
        if path[-1].key in ("var", "scale", "inv_freq"):
            return np.ones(like.shape, np.float32)
        return rng.standard_normal(like.shape, np.float32) / np.float32(max(1, like.size / like.shape[-1])) ** 0.5

    return jax.tree_util.tree_map_with_path(drawn, shapes)


def alone(size: dict[str, Any], frames: int, models: int = 1) -> tuple[list[Any], Trial]:
    """(encoder, variables) of random weights and a trial, without the published code."""
    encoder = DwiseNeuro(num_neurons=(size["neurons"],), **size["network"])
    trial = parity.random_trial("random", natural_movie(0, num_frames=frames), size["neurons"])
    return [(encoder, random_variables(encoder, seed)) for seed in range(models)], trial


def ours(
    encoder: Any, trial: Any, updates: int, chunk: int | None = None, shard: str = "", precision: str = "float32"
) -> float:
    """Seconds of an iteration: the first call, which may compile, is left out.

    The updates follow each other on the device, as in use, where a call makes 20.
    """
    ends: list[float] = []
    reconstruct(
        [encoder],
        trial.responses,
        trial.behaviour,
        recipe=published_recipe(),
        key=jax.random.key(0),
        num_steps=2 * updates,
        steps_per_call=updates,
        window_chunk=chunk,
        shard=shard,
        precision=precision,
        on_call=lambda progress: ends.append(time.perf_counter()),
    )
    return (ends[1] - ends[0]) / updates


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """Models that are loaded meanwhile have weights without gradients."""
    argus = importlib.import_module("argus")
    load = argus.load_model

    def loaded(*args: Any, **options: Any) -> Any:
        model = load(*args, **options)
        model.nn_module.requires_grad_(False)
        return model

    with mock.patch.object(argus, "load_model", loaded):
        yield


def seconds(function: Callable, *args: Any) -> float:
    """The quickest of five calls, compiled before."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*args))
    found = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        found.append(time.perf_counter() - start)
    return min(found)


def ceilings() -> dict[str, float]:
    """Operations a second of a float32 (and, on accelerators, bfloat16) matrix product; bytes a second of memory."""
    on_cpu = jax.default_backend() == "cpu"
    size, numbers = (1024, 1 << 25) if on_cpu else (8192, 1 << 29)
    found = {}
    for dtype in (jnp.float32,) if on_cpu else (jnp.float32, jnp.bfloat16):
        factor = jnp.ones((size, size), dtype)
        found[f"{dtype.__name__} operations"] = 2 * size**3 / seconds(jnp.matmul, factor, factor)
    found["bytes"] = 2 * 4 * numbers / seconds(lambda x: x + 1, jnp.ones(numbers, jnp.float32))
    return found


def counts(encoder: Any, trial: Any) -> tuple[float, float]:
    """Operations and bytes of one window's gradient, as XLA counts them for the encoder without inner loops."""
    network, variables = encoder
    span = network.window_frames
    target, behaviour = (jnp.asarray(x[: 2 * span]).reshape(2, span, -1) for x in (trial.responses, trial.behaviour))

    def gradient(movie: jax.Array) -> jax.Array:
        def loss(movie: jax.Array) -> jax.Array:
            inputs = make_inputs(movie, behaviour, network.canvas, network.padding)
            return losses.poisson(network.apply(variables, inputs), target).mean()

        return jax.grad(loss)(movie)

    movie = jnp.full((2, span, *network.canvas), 127.5)
    with mock.patch.object(depthwise, "_CACHED", sys.maxsize):  # XLA counts the body of a loop once
        analysis: Any = jax.jit(gradient).lower(movie).compile().cost_analysis()
    return analysis["flops"], analysis["bytes accessed"]


def report(times: dict[str, list[float]], encoder: Any, trial: Any) -> None:
    """Prints the medians, the ratios and the floor."""
    windows = len(published_plan(len(trial.responses)).frames)
    operations, moved = (windows * count for count in counts(encoder, trial))
    peak = ceilings()
    print("measured ceilings:", ", ".join(f"{value / 1e9:.3g} G{name} a second" for name, value in peak.items()))
    by_operations, by_bytes = operations / peak["float32 operations"], moved / peak["bytes"]
    floor = max(by_operations, by_bytes)
    print(f"an iteration: {windows} windows of 2 stacks, {operations / 1e9:.4g} GFLOP, {moved / 1e9:.4g} GB")
    print(f"floor: {by_operations:.3g} s by operations, {by_bytes:.3g} s by bytes")
    print(f"{'':12}{'median, s':>11}{'least':>9}{'most':>9}{'/ floor':>9}{'/ ours':>9}{'ratio by turns':>16}")
    for name, values in times.items():
        median = statistics.median(values)
        ratio = statistics.median(a / b for a, b in zip(values, times["ours"]))
        print(
            f"{name:12}{median:11.4g}{min(values):9.4g}{max(values):9.4g}{median / floor:9.3g}"
            f"{median / statistics.median(times['ours']):9.3g}{ratio:16.3g}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sensorium", type=Path, help="checkout of lRomul/sensorium")
    parser.add_argument("--reconstruction", type=Path, help="checkout of movie_reconstruction_code")
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--frames", type=int, help="of the trial, 48 or more (default: 300)")
    parser.add_argument("--turns", type=int, default=3, help="of all, one after the other (default 3)")
    parser.add_argument("--updates", type=int, default=2, help="timed updates in a turn (default 2)")
    parser.add_argument("--window_chunk", type=int, help="ours: windows at once, to bound memory")
    parser.add_argument("--cpu_devices", type=int, default=1, help="ours: devices to make of the processor, see config")
    options = parser.parse_args()
    logging.disable(logging.INFO)  # the published code's
    warnings.simplefilter("ignore")  # that its PyTorch was older, and of constant movies
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves a GPU's memory to both
    if options.cpu_devices > 1:
        jax.config.update("jax_num_cpu_devices", options.cpu_devices)
    shard = "windows" if options.cpu_devices > 1 else ""
    size = SIZES[options.size]
    frames = options.frames or size["frames"]
    try:
        if frames < 48 or min(options.turns, options.updates) < 1:
            raise NeuroreconError("--frames, --turns, --updates: expected at least 48, 1 and 1")
        if (options.sensorium is None) != (options.reconstruction is None):
            raise NeuroreconError("--sensorium, --reconstruction: expected both checkouts or none, found one")
        device = f"jax {jax.__version__}, {jax.devices()[0].device_kind}; {len(os.sched_getaffinity(0))} cores"
        print(f"{options.size}, {frames} frames, one model; {device}", flush=True)
        times: dict[str, list[float]] = {"published": [], "frozen": [], "ours": []}
        if options.sensorium is None:
            print("no checkouts of the published code were given: ours alone, random weights")
            (encoder,), trial = alone(size, frames)
            times = {
                "ours": [
                    ours(encoder, trial, options.updates, options.window_chunk, shard) for _ in range(options.turns)
                ]
            }
            report(times, encoder, trial)
            return
        parity.importable(options.sensorium, options.reconstruction)
        torch: Any = importlib.import_module("torch")
        print(f"torch {torch.__version__}, {'GPU' if torch.cuda.is_available() else 'CPU'}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            setting = parity.prepare(Path(folder), options.reconstruction, size, 1, frames)
            source = options.reconstruction.resolve()
            encoder = load_published(setting.weights[0])
            # The script stores its first and last iteration, and the first warms up.
            number = options.updates + 2
            for turn in range(options.turns):
                times["published"].append(parity.published(setting, source, number, number).seconds)
                with frozen():
                    times["frozen"].append(parity.published(setting, source, number, number).seconds)
                times["ours"].append(ours(encoder, setting.trial, options.updates, options.window_chunk, shard))
                print(f"turn {turn}:", {name: round(values[-1], 4) for name, values in times.items()}, flush=True)
            report(times, encoder, setting.trial)
    except NeuroreconError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    np.seterr(all="ignore")  # the published scores of constant movies
    main()
