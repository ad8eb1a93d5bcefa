"""The published training step and ours, on the same network, batch and machine: how long each takes.

    git clone https://github.com/lRomul/sensorium
    python -m venv parity; parity/bin/pip install -e . torch pytorch-argus
    parity/bin/python -m benchmarks.training_speed --sensorium sensorium

The published step is that of the checkout's own MouseModel: forward, Poisson loss, backward, AdamW, running mean of
the weights; its batch is ready on the device as float32 planes. Ours does the same and starts from the raw windows
(movie and behaviour apart), which it lays out on the device. CutMix and reading are left out of both. Turn by turn,
medians over the turns, without compilation and the first, warming calls. Without a checkout ours is timed alone. Where
others use the machine, compare processor time (with OMP_WAIT_POLICY=passive, or PyTorch's waiting counts as work).

--size paper --batch 32 --precision bfloat16 is the full size on a GPU; the published step then runs under float16
autocast, as it was trained. Operations are XLA's count for our step without inner loops; their share of the peak is of
a measured matrix product in the precision of the activations.
"""

import argparse
import importlib
import itertools
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from benchmarks import parity, speed
from neurorecon.encoders import DwiseNeuro, depthwise
from neurorecon.errors import NeuroreconError
from neurorecon.recordings import Trial, open_recording, write_sensorium
from neurorecon.recordings.prepared import PreparedRecording, prepare
from neurorecon.training.trainer import TrainingSettings, draw_batches, initial_state, train_step

SIZES: dict[str, dict[str, Any]] = {"small": speed.SIZES["small"], "paper": parity.SIZES["paper"]}
FRAMES = 80  # of a trial


def random_recordings(folder: Path, animals: int, neurons: int, screen: tuple[int, int]) -> list[PreparedRecording]:
    """Recordings of a few random trials, as large as training needs."""
    found = []
    for animal in range(animals):
        rng = np.random.default_rng(animal)
        trials = [
            Trial(
                str(k),
                f"mouse{animal}",
                "train",
                rng.uniform(0, 255, (FRAMES, *screen)).round().astype(np.float32),
                rng.gamma(0.5, 6.0, (FRAMES, neurons)).astype(np.float32),
                rng.uniform(0, 50, (FRAMES, 4)).astype(np.float32),
            )
            for k in range(3)
        ]
        tree = folder / f"mouse{animal}"
        write_sensorium(tree, trials)
        found.append(prepare(open_recording(tree), None))
    return found


def our_step(
    recordings: list[PreparedRecording], network: dict[str, Any], batch: int, precision: str
) -> tuple[Callable[[], None], Callable[[], float]]:
    """A function that makes one step and waits, and one that counts a step's operations."""
    encoder = DwiseNeuro(num_neurons=tuple(r.num_neurons for r in recordings), **network)
    settings = TrainingSettings(
        num_steps=1000,
        batch_size=batch,
        optimiser="adamw",
        learning_rate=1e-3,
        weight_decay=0.05,
        ema_decay=0.999,
        ema_warmup=False,
        balanced=False,
        precision=precision,
    )
    key = jax.random.key(0)
    windows = [r.windows("train", encoder.window_frames, encoder.frame_step) for r in recordings]
    batches = draw_batches(encoder, recordings, windows, settings, num_models=1, seed=0, step=0)
    weights = [np.ones(r.num_neurons, np.float32) for r in recordings]
    state = initial_state(encoder, recordings, settings, num_models=1, key=key)
    batches, weights = jax.device_put((batches, weights))

    def step() -> None:
        nonlocal state
        state, loss = train_step(encoder, settings, False, state, batches, weights, key)
        jax.block_until_ready((state, loss))

    def operations() -> float:
        with mock.patch.object(depthwise, "_CACHED", sys.maxsize):  # XLA counts the body of a loop once
            jax.clear_caches()
            compiled = train_step.lower(encoder, settings, False, state, batches, weights, key).compile()
        analysis: Any = compiled.cost_analysis()
        return analysis["flops"]

    return step, operations


def published_step(sensorium: Path, network: dict[str, Any], neurons: int, animals: int, batch: int) -> Callable:
    """A function that makes one published step and waits."""
    importable(sensorium)
    torch: Any = importlib.import_module("torch")
    models = importlib.import_module("src.argus_models")
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    params = {
        "nn_module": ("dwiseneuro", {"readout_outputs": (neurons,) * animals, **parity.NETWORK, **network}),
        "loss": ("mice_poisson", {"log_input": False, "full": False, "eps": 1e-8}),
        "optimizer": ("AdamW", {"lr": 1e-3, "weight_decay": 0.05}),
        "device": device,
        "amp": device != "cpu",
        "iter_size": 1,
    }
    model = models.MouseModel(params)
    importlib.import_module("src.utils").init_weights(model.nn_module)
    model.model_ema = importlib.import_module("src.ema").ModelEma(model.nn_module, decay=0.999)
    inputs = torch.rand(batch, 5, 16, 64, 64, device=device) * 255
    targets = [torch.rand(batch, neurons, 16, device=device) * 6 for _ in range(animals)]
    weights = torch.zeros(batch, animals, device=device)
    weights[torch.arange(batch), torch.arange(batch) % animals] = 1.0

    def step() -> None:
        model.train_step((inputs, (targets, weights)), None)
        if device != "cpu":
            torch.cuda.synchronize()

    return step


def importable(sensorium: Path) -> None:
    """Makes the checkout importable.

    Raises:
      NeuroreconError: no checkout there, or no PyTorch.
    """
    if not (sensorium / "src/argus_models.py").is_file():
        raise NeuroreconError(f"{sensorium}: expected a checkout with src/argus_models.py, found none")
    sys.path.insert(0, str(sensorium.resolve()))
    for name in ("torch", "argus"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise NeuroreconError(f"{name}: can't be imported ({error}); install torch and pytorch-argus") from None


def timed(step: Callable[[], None], number: int) -> tuple[float, float]:
    """Seconds of a step by the clock and of processors, the medians of `number`."""
    found = [(time.perf_counter(), time.process_time())]
    for _ in range(number):
        step()
        found.append((time.perf_counter(), time.process_time()))
    clock, processor = (statistics.median(b - a for a, b in itertools.pairwise(times)) for times in zip(*found))
    return clock, processor


def report(times: dict[str, list[tuple[float, float]]], batch: int, operations: float, peak: float) -> None:
    """Prints medians, windows a second, the share of the peak and the ratios."""
    print(f"a step: {operations / 1e9:.4g} GFLOP; measured peak {peak / 1e9:.4g} GFLOP a second")
    print(f"{'':12}{'median, s':>11}{'least':>9}{'most':>9}{'windows / s':>13}{'of peak':>9}{'processor, s':>14}")
    for name, values in times.items():
        clock, processor = zip(*values)
        median = statistics.median(clock)
        print(
            f"{name:12}{median:11.4g}{min(clock):9.4g}{max(clock):9.4g}{batch / median:13.4g}"
            f"{operations / median / peak:9.1%}{statistics.median(processor):14.4g}"
        )
    if "published" in times:
        turns = [(a[0] / b[0], a[1] / b[1]) for a, b in zip(times["published"], times["ours"])]
        clock, processor = map(statistics.median, zip(*turns))
        print(f"published / ours, medians over turns: {clock:.3g} by the clock, {processor:.3g} by processor time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sensorium", type=Path, help="checkout of lRomul/sensorium")
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--batch", type=int, default=8, help="windows of a step (default 8)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of our activations")
    parser.add_argument("--turns", type=int, default=5, help="of both, one after the other (default 5)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps in a turn (default 3)")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")  # the published code's PyTorch was older
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves a GPU's memory to both
    size = SIZES[options.size]
    try:
        if min(options.batch, options.turns, options.steps) < 1:
            raise NeuroreconError("--batch, --turns, --steps: expected at least 1")
        device = f"jax {jax.__version__}, {jax.devices()[0].device_kind}; {len(os.sched_getaffinity(0))} cores"
        print(f"{options.size}, batch {options.batch}, {options.precision}; {device}", flush=True)
        steps: dict[str, Callable[[], None]] = {}
        if options.sensorium is None:
            print("no checkout of the published code was given: ours alone")
        else:
            args = (options.sensorium, size["network"], size["neurons"], 1, options.batch)
            steps["published"] = published_step(*args)
            torch: Any = importlib.import_module("torch")
            print(f"torch {torch.__version__}, {'GPU' if torch.cuda.is_available() else 'CPU'}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            recordings = random_recordings(Path(folder), 1, size["neurons"], (36, 64))
        steps["ours"], operations = our_step(recordings, size["network"], options.batch, options.precision)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
        for step in steps.values():
            timed(step, 2)  # compiles
        for _ in range(options.turns):
            for name, step in steps.items():
                times[name].append(timed(step, options.steps))
                print(f"{name}: {times[name][-1][0]:.4g} s, processor {times[name][-1][1]:.4g} s", flush=True)
        peaks = speed.ceilings()
        counted = f"{options.precision} operations"
        report(times, options.batch, operations(), peaks.get(counted, peaks["float32 operations"]))
    except NeuroreconError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
