"""Everything that is to be measured on an accelerator, unattended, in less than --minutes.

    python -m benchmarks.accelerator --sensorium sensorium --reconstruction movie_reconstruction_code

Needs JAX for the accelerator, Flax, Optax, Orbax and SciPy; the published code (optional) also PyTorch. What is pure
Python and missing can be brought in a folder on PYTHONPATH: `pip install --no-deps --target vendored imagehash
pytorch-argus ml-collections`. Weights and clips are random; the full size is the published network with 7,863 neurons
and 300 frames. --size small tries it all out on a processor.

Stages run one after another, the most wanted first, each in a process of its own: one that fails or finds no time left
is told of in a line and takes nothing from the others. Results are appended to --out as they come, a line of JSON each,
and printed at the end beside the goals.
"""

import argparse
import contextlib
import functools
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import parity, speed, training_speed
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import default_recipe, published_recipe, reconstruct, reconstruct_clips
from neurorecon.reconstruction.windows import published_plan

GIB = 1 << 30
LEAST_SECONDS = 20  # in which no stage can do anything
GOALS = {
    "ours_bfloat16": "60 ms an iteration; 25 times the published",
    "default_bfloat16": "10 s a clip of 300 frames with seven models",
    "training": "3 times the published step",
}


def memory() -> dict[str, float]:
    """Peak of the device's memory in GiB, where it tells."""
    told = jax.local_devices()[0].memory_stats() or {}
    return {"peak_gib": round(told["peak_bytes_in_use"] / GIB, 2)} if "peak_bytes_in_use" in told else {}


def frames_of(options: argparse.Namespace) -> int:
    return options.frames or speed.SIZES[options.size]["frames"]


def ceilings(options: argparse.Namespace) -> dict[str, Any]:
    """Operations and bytes a second."""
    device = jax.local_devices()[0]
    return {"device": device.device_kind, "jax": jax.__version__, **speed.ceilings()}


def iteration(options: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Seconds of an iteration of the published recipe, one model."""
    (encoder,), trial = speed.alone(speed.SIZES[options.size], frames_of(options))
    values = [speed.ours(encoder, trial, options.updates, precision=precision) for _ in range(2)]
    return {"seconds": statistics.median(values), **memory()}


def published(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the published loop's iteration, as published and with its weights frozen."""
    parity.importable(options.sensorium, options.reconstruction)
    torch: Any = importlib.import_module("torch")
    with tempfile.TemporaryDirectory() as folder:
        size = speed.SIZES[options.size]
        setting = parity.prepare(Path(folder), options.reconstruction, size, 1, frames_of(options))
        source = options.reconstruction.resolve()
        plain = parity.published(setting, source, 4, 4).seconds
        with speed.frozen():
            frozen = parity.published(setting, source, 4, 4).seconds
    return {"seconds": plain, "frozen_seconds": frozen, "torch": torch.__version__, "on_gpu": torch.cuda.is_available()}


class Enough(Exception):
    """The first call is over: everything is compiled."""


def enough(progress: Any) -> None:
    raise Enough


def clips(options: argparse.Namespace, precision: str, number: int) -> dict[str, Any]:
    """Seconds of the default recipe with all models, for so many clips together; after a call that compiles."""
    encoders, trial = speed.alone(speed.SIZES[options.size], frames_of(options), options.models)
    recipe = default_recipe() if options.steps is None else default_recipe(num_steps=options.steps)
    given = [np.stack([x] * number) for x in (trial.responses, trial.behaviour)]
    settings = {"recipe": recipe, "key": jax.random.key(0), "precision": precision}
    start = time.perf_counter()
    with contextlib.suppress(Enough):
        reconstruct_clips(encoders, *given, on_call=enough, **settings)
    compiled = time.perf_counter()
    result = reconstruct_clips(encoders, *given, **settings)
    seconds = time.perf_counter() - compiled
    return {
        "seconds": seconds,
        "seconds_a_clip": seconds / number,
        "first_call_seconds": compiled - start,
        "encoder_windows_a_clip": result.encoder_windows,
        **memory(),
    }


def agreement(options: argparse.Namespace) -> dict[str, Any]:
    """Correlation, and largest difference in grey levels, of the small encoder's movies with those of the processor."""
    encoders, trial = speed.alone(speed.SIZES["small"], 64)
    kinds = {"float32": (None, "float32", "default"), "float32_highest": (None, "float32", "highest")}
    kinds |= {"bfloat16": (None, "bfloat16", "default"), "processor": ("cpu", "float32", "highest")}
    found: dict[str, Any] = {}
    for name, recipe in (("published", published_recipe(num_steps=3)), ("default", default_recipe(num_steps=20))):
        movies = {}
        for kind, (platform, precision, products) in kinds.items():
            with jax.default_device(jax.devices(platform)[0]), jax.default_matmul_precision(products):
                movies[kind] = reconstruct(
                    encoders,
                    trial.responses,
                    trial.behaviour,
                    recipe=recipe,
                    key=jax.random.key(0),
                    precision=precision,
                ).movie
        reference = movies.pop("processor")
        for kind, movie in movies.items():
            found[f"{name}_{kind}"] = float(np.corrcoef(movie.ravel(), reference.ravel())[0, 1])
            found[f"{name}_{kind}_difference"] = float(abs(movie - reference).max())
    return found


def training(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a training step in bfloat16, and of the published one where it is at hand."""
    small = options.size == "small"
    size, batch = speed.SIZES[options.size], 2 if small else 32
    found: dict[str, Any] = {"batch": batch}
    with tempfile.TemporaryDirectory() as folder:
        recordings = training_speed.random_recordings(Path(folder), 1, size["neurons"], (36, 64))
    step, _ = training_speed.our_step(recordings, size["network"], batch, "bfloat16")
    start = time.perf_counter()
    step()
    found["first_seconds"] = time.perf_counter() - start
    found["seconds"] = training_speed.timed(step, 3)[0]
    found |= memory()
    if options.sensorium is not None:
        other = training_speed.published_step(options.sensorium, size["network"], size["neurons"], 1, batch)
        training_speed.timed(other, 2)
        found["published_seconds"] = training_speed.timed(other, 3)[0]
        found["ratio"] = found["published_seconds"] / found["seconds"]
    return found


def floor(options: argparse.Namespace) -> dict[str, Any]:
    """Operations and bytes of an iteration of the published recipe, as the compiler counts them."""
    (encoder,), trial = speed.alone(speed.SIZES[options.size], frames_of(options))
    operations, moved = speed.counts(encoder, trial)
    windows = len(published_plan(len(trial.responses)).frames)
    return {"windows": windows, "gflop": windows * operations / 1e9, "gbytes": windows * moved / 1e9}


STAGES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "ceilings": ceilings,
    "ours_bfloat16": functools.partial(iteration, precision="bfloat16"),
    "published": published,
    "default_bfloat16": functools.partial(clips, precision="bfloat16", number=1),
    "eight_clips_bfloat16": functools.partial(clips, precision="bfloat16", number=8),
    "ours_float32": functools.partial(iteration, precision="float32"),
    "training": training,
    "agreement": agreement,
    "default_float32": functools.partial(clips, precision="float32", number=1),
    "floor": floor,
}


def run_stage(name: str, left: float, arguments: list[str]) -> dict[str, Any]:
    """What a stage of a process of its own found, or why it found nothing."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.accelerator", "--stage", name, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired:
        return {"stage": name, "error": f"not over after {left:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        return {"stage": name, "error": last[:300]}
    return {"stage": name, **json.loads(lines[-1]), "wall_seconds": round(time.perf_counter() - start, 1)}


def report(rows: list[dict[str, Any]]) -> None:
    """Prints every stage, then what follows from several."""
    found = {row["stage"]: row for row in rows if "error" not in row}
    for row in rows:
        values = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k != "stage")
        goal = f"   goal: {GOALS[row['stage']]}" if row["stage"] in GOALS else ""
        print(f"{row['stage']:22}{', '.join(values)}{goal}")
    peaks, counted = found.get("ceilings"), found.get("floor")
    for name in ("ours_bfloat16", "ours_float32"):
        if name not in found:
            continue
        seconds = found[name]["seconds"]
        if "published" in found:
            other = found["published"]
            print(
                f"published / {name}: {other['seconds'] / seconds:.3g}; frozen: {other['frozen_seconds'] / seconds:.3g}"
            )
        if peaks and counted:
            peak = peaks.get(f"{name.removeprefix('ours_')} operations", peaks["float32 operations"])
            operations, moved = (
                1e9 * counted["gflop"] / seconds / peak,
                1e9 * counted["gbytes"] / seconds / peaks["bytes"],
            )
            print(
                f"{name}: {operations:.1%} of the measured peak; float32 arrays once each: {moved:.1%} of the bandwidth"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("accelerator.jsonl"), help="results are appended to it")
    parser.add_argument("--minutes", type=float, default=7.5, help="in which all is over (default 7.5)")
    parser.add_argument("--stages", default=",".join(STAGES), help="which, in order (default: all)")
    parser.add_argument("--sensorium", type=Path, help="checkout of lRomul/sensorium")
    parser.add_argument("--reconstruction", type=Path, help="checkout of movie_reconstruction_code")
    parser.add_argument("--size", choices=sorted(speed.SIZES), default="full")
    parser.add_argument("--frames", type=int, help="of a clip, 48 or more (default: 300)")
    parser.add_argument("--models", type=int, default=7, help="of the default recipe (default 7)")
    parser.add_argument("--steps", type=int, help="of the default recipe (default: its own)")
    parser.add_argument("--updates", type=int, default=10, help="timed updates of the published recipe (default 10)")
    parser.add_argument("--cache", default="", help="folder for compiled code (default: none)")
    parser.add_argument("--stage", choices=sorted(STAGES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves memory to PyTorch
    warnings.simplefilter("ignore")  # the published code's PyTorch was older
    wanted = [name for name in options.stages.split(",") if name]
    try:
        if not wanted or not set(wanted) <= set(STAGES):
            raise NeuroreconError(f"--stages: expected some of {', '.join(STAGES)}, found {options.stages!r}")
        if options.minutes <= 0 or (options.frames or 48) < 48 or options.models < 1:
            raise NeuroreconError("--minutes, --frames, --models: expected more than 0, at least 48 and at least 1")
        if (options.sensorium is None) != (options.reconstruction is None):
            raise NeuroreconError("--sensorium, --reconstruction: expected both checkouts or none, found one")
        if options.stage:
            if options.cache:
                jax.config.update("jax_compilation_cache_dir", options.cache)
            print(json.dumps(STAGES[options.stage](options)))
            return
    except NeuroreconError as error:
        raise SystemExit(f"error: {error}") from None
    if options.sensorium is None:
        wanted = [name for name in wanted if name != "published"]
        print("no checkouts of the published code were given: ours alone")
    rows = []
    end = time.perf_counter() + 60 * options.minutes
    for number, name in enumerate(wanted):
        left = end - time.perf_counter()
        if left < LEAST_SECONDS:
            row = {"stage": name, "error": "no time was left"}
        else:
            print(f"{number + 1} of {len(wanted)}: {name}, {left:.0f} s left", flush=True)
            row = run_stage(name, left, sys.argv[1:])
        rows.append(row)
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
    report(rows)


if __name__ == "__main__":
    np.seterr(all="ignore")  # the published scores of constant movies
    main()
