"""A training killed at random moments, again and again: are its encoders those of the uninterrupted one, bit for bit?

    python -m benchmarks.interruptions

A tiny simulated animal is trained once without interruption, then by the same command under SIGKILL: some kills come at
a random moment after the process was started, the others after a random number of new steps. Checkpoints are written
every --checkpoint_seconds. In the end every number of the encoders, and the steps of the log, must be the same. Exits
with status 1 where they are not. About five seconds of a core for each kill.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from neurorecon.encoders import load_encoder
from neurorecon.errors import NeuroreconError
from neurorecon.runs import read_metrics

ROOT = Path(__file__).resolve().parents[1]
ANIMAL = {"num_neurons": 12, "train": 6, "oracle": 2, "num_frames": 60, "height": 12, "width": 16}
TRAINING = {"validation_every": 20, "validation_trials": 2, "batch_size": 2}
FACTORIZED = {"window_frames": 14, "frame_step": 2, "warmup_frames": 4}
LAYERS = {"features": (3, 4), "spatial_kernels": (3, 3), "temporal_kernels": (3, 2)}


def command(job: str, workdir: Path, **values: object) -> list[str]:
    """The command of an experiment with these values of its config."""
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    config = ROOT / "experiments/configs/base.py"
    return [sys.executable, "-m", f"experiments.{job}", f"--config={config}", f"--workdir={workdir}", *flags]


def weights(workdir: Path, num_models: int) -> list[np.ndarray]:
    """Every number of the encoders of a work folder."""
    members = [load_encoder(workdir / "encoders" / str(k))[1] for k in range(num_models)]
    return [np.asarray(x) for x in jax.tree.leaves(members)]


def steps_in(workdir: Path) -> list[int]:
    """The steps that a training's log holds."""
    return [record["step"] for record in read_metrics(workdir / "metrics.jsonl")]


def run(arguments: list[str], environment: dict[str, str]) -> None:
    """Runs a command to its end."""
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NeuroreconError(f"{' '.join(arguments[1:4])}: failed: {done.stderr.strip().splitlines()[-1:]}")


def killed(arguments: list[str], environment: dict[str, str], workdir: Path, rng: random.Random, most: int) -> str:
    """Starts a command and kills it at a random moment; says where it was, "" where it had ended before.

    A quarter of the moments are within three seconds of the start; the others after up to `most` new steps.
    """
    early = rng.random() < 0.25
    reached = len(steps_in(workdir)) + (0 if early else rng.randint(1, most))
    delay = rng.uniform(0, 3.0 if early else 0.2)
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not early and process.poll() is None and len(steps_in(workdir)) < reached:
            time.sleep(0.01)
        time.sleep(delay)
        alive = process.poll() is None
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    return f"{'after its start' if early else f'after step {reached}'} + {delay:.2f} s" if alive else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="(default 20)")
    parser.add_argument("--steps", type=int, default=400, help="of the training (default 400)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--checkpoint_seconds", type=float, default=0.2, help="between checkpoints (default 0.2)")
    options = parser.parse_args()
    rng, models = random.Random(options.seed), 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Compiled code is kept between the starts, or each would spend its life compiling.
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        environment |= {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
        environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        values: dict[str, object] = {f"simulation.{key}": value for key, value in ANIMAL.items()}
        values |= {f"training.{key}": value for key, value in TRAINING.items()}
        values |= {f"factorized.{key}": value for key, value in {**FACTORIZED, **LAYERS}.items()}
        values |= {"num_models": models, "training.num_steps": options.steps}
        values |= {"checkpoint_seconds": options.checkpoint_seconds}
        try:
            run(command("simulate", folder / "animal", **values), environment)
            values["recordings"] = next((folder / "animal" / "recordings").iterdir())
            run(command("train", folder / "whole", **values), environment)
            expected = weights(folder / "whole", models)
            most = max(1, options.steps // options.kills)  # half as many on average: it must outlive the kills
            workdir, kills = folder / "interrupted", 0
            for _ in range(options.kills):
                at = killed(command("train", workdir, **values), environment, workdir, rng, most)
                kills += bool(at)
                last = steps_in(workdir)
                print(f"kill {kills}: {at or 'it had ended'}; step {last[-1] if last else 0}", flush=True)
                if not at:
                    break
            run(command("train", workdir, **values), environment)
        except NeuroreconError as error:
            raise SystemExit(f"error: {error}") from None
        found = weights(workdir, models)
        same = len(found) == len(expected) and all(
            a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(found, expected)
        )
        complete = steps_in(workdir) == list(range(1, options.steps + 1))
    print(
        f"{kills} kills; encoders {'bit for bit the same' if same else 'DIFFER'}; log {'whole' if complete else 'TORN'}"
    )
    if not same or not complete or kills < options.kills:
        raise SystemExit("error: expected the uninterrupted training's encoders and log, after all kills")


if __name__ == "__main__":
    main()
