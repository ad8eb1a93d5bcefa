"""Killed at any moment, the same command goes on and ends with the same result."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import experiments.descent_groups
import experiments.preparation
import experiments.reconstruct
import experiments.train
from experiments.reconstruct import reconstruct_recordings
from experiments.train import train_encoders
from neurorecon import runs
from neurorecon.runs import Checkpoints, read_metrics
from tests.tiny_run import CONFIG_FILE, ORACLE, movie, random_encoders, simulated, tiny_config, weights

ROOT = Path(__file__).resolve().parents[1]
CHANGES = {"checkpoint_seconds": 0.0, "controls": "grey,shuffled_neurons", "prior__spectrum": "flat"}


class Killed(BaseException):
    """Stands in for the signal: nothing in the library may catch it."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return simulated(tmp_path_factory.mktemp("animal"))


@pytest.fixture(scope="module")
def trained(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train_encoders(tiny_config(recordings=str(tree), **CHANGES), str(folder))
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    return random_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def reconstructed(tree, encoders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reconstructed")
    reconstruct_recordings(tiny_config(recordings=str(tree), encoders=str(encoders), **CHANGES), str(folder))
    return folder


@pytest.fixture
def one_recipe(monkeypatch):
    """Every run of a test shares one recipe, and so the compiled descent; nothing that it depends on changes."""
    made, original = [], experiments.preparation._recipe

    def recipe(*args, **kwargs):
        if not made:
            made.append(original(*args, **kwargs))
        return made[0]

    monkeypatch.setattr(experiments.preparation, "_recipe", recipe)


def assert_same_weights(a, b):
    for x, y in zip(weights(a), weights(b), strict=True):
        np.testing.assert_array_equal(x, y)


def assert_same_movies(a, b):
    for trial_id in ORACLE:
        np.testing.assert_array_equal(movie(a, trial_id), movie(b, trial_id))
        x, y = (runs.load_arrays(f / f"controls/shuffled_neurons/mouse1/{trial_id}.npz") for f in (a, b))
        np.testing.assert_array_equal(x["movie"], y["movie"])
        np.testing.assert_array_equal(x["trace_loss"], y["trace_loss"])


def killed_at(monkeypatch, owner, name, call, *, before):
    """The `call`-th call of `owner.name` is the last thing that happens, or the first that doesn't."""
    original, calls = getattr(owner, name), [0]

    def watched(*args, **kwargs):
        calls[0] += 1
        if before and calls[0] == call:
            raise Killed
        result = original(*args, **kwargs)
        if not before and calls[0] == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, watched)


TRAIN_POINTS = [
    (Checkpoints, "save", 1, True),
    (Checkpoints, "save", 1, False),
    (Checkpoints, "save", 3, True),
    (Checkpoints, "save", 5, False),
    (runs.MetricsLog, "write", 3, False),
    (experiments.train, "save_encoder", 1, True),
    (experiments.train, "save_encoder", 1, False),
    (experiments.train, "save_encoder", 2, False),
    (experiments.train, "save_json", 1, False),
]


@pytest.mark.parametrize("owner, name, call, before", TRAIN_POINTS)
def test_training_goes_on(tree, trained, tmp_path, monkeypatch, owner, name, call, before):
    config = tiny_config(recordings=str(tree), **CHANGES)
    with monkeypatch.context() as patch:
        killed_at(patch, owner, name, call, before=before)
        with pytest.raises(Killed):
            train_encoders(config, str(tmp_path))
    train_encoders(config, str(tmp_path))
    assert_same_weights(tmp_path, trained)
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_training_killed_again_and_again(tree, trained, tmp_path, monkeypatch):
    config = tiny_config(recordings=str(tree), **CHANGES)
    kills = 0
    for _ in range(20):
        with monkeypatch.context() as patch:
            killed_at(patch, Checkpoints, "save", 1, before=False)
            try:
                train_encoders(config, str(tmp_path))
            except Killed:
                kills += 1
                continue
        break
    assert kills == 5  # one step further each time
    assert_same_weights(tmp_path, trained)


RECONSTRUCTION_POINTS = [
    (experiments.reconstruct, "report", 1, True),
    (experiments.reconstruct.runs, "save_arrays", 1, True),
    (experiments.reconstruct.runs, "save_arrays", 2, False),
    (experiments.reconstruct.runs, "save_arrays", 5, False),
    (experiments.reconstruct, "save_movie", 1, True),
    (experiments.reconstruct, "save_movie", 3, False),
    (experiments.reconstruct, "evaluate", 1, True),
]


def test_reconstruction_goes_on_from_every_point(tree, encoders, reconstructed, tmp_path, monkeypatch, one_recipe):
    """One folder, killed at one point after another; compiled once, so that many points are cheap."""
    config = tiny_config(recordings=str(tree), encoders=str(encoders), **CHANGES)
    for owner, name, call, before in RECONSTRUCTION_POINTS:
        folder = tmp_path / f"{name}{call}"
        if name != "report":  # films take the most time of all
            monkeypatch.setattr(experiments.reconstruct, "report", lambda workdir: None)
        with monkeypatch.context() as patch:
            killed_at(patch, owner, name, call, before=before)
            with pytest.raises(Killed):
                reconstruct_recordings(config, str(folder))
        metrics = reconstruct_recordings(config, str(folder))
        assert_same_movies(folder, reconstructed)
        assert len(metrics["clips"]) == 2 and (folder / "report.html").is_file() == (name == "report")
        assert not list((folder / "progress").glob("*.npz"))


def test_reconstruction_goes_on_in_the_middle_of_a_movie(
    tree, encoders, reconstructed, tmp_path, monkeypatch, one_recipe
):
    config = tiny_config(recordings=str(tree), encoders=str(encoders), **CHANGES)
    with monkeypatch.context() as patch:
        killed_at(patch, experiments.reconstruct.runs, "save_arrays", 2, before=False)
        with pytest.raises(Killed):
            reconstruct_recordings(config, str(tmp_path))
    assert len(list((tmp_path / "progress").glob("*.npz"))) == 1
    steps = []
    original = experiments.descent_groups.reconstruct_clips

    def watched(*args, progress, **kwargs):
        steps.append(0 if progress is None else progress.step)
        return original(*args, progress=progress, **kwargs)

    monkeypatch.setattr(experiments.descent_groups, "reconstruct_clips", watched)
    reconstruct_recordings(config, str(tmp_path))
    # Two validation clips, two clips and their shuffled controls, of which the first was under way.
    assert steps[0] > 0 and steps[1:] == [0] * 5
    assert_same_movies(tmp_path, reconstructed)


# The true signal.


def command(job, folder, tmp_path, **overrides):
    (tmp_path / "config.py").write_text(CONFIG_FILE)
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    return [
        sys.executable, "-m", f"experiments.{job}", f"--config={tmp_path / 'config.py'}", f"--workdir={folder}", *flags,
    ]  # fmt: skip


def environment(tmp_path):
    # Compiled code is kept between the starts, or each would spend its life compiling.
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def run_and_kill(arguments, tmp_path, moment, delay):
    """Starts the command and kills it `delay` seconds after `moment()` is true; False where it was done before."""
    with open(tmp_path / "output.log", "a") as log:
        process = subprocess.Popen(arguments, cwd=ROOT, env=environment(tmp_path), stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 240
            while process.poll() is None and not moment():
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(delay)
            alive = process.poll() is None
            process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
            process.wait()
    return alive


def finish(arguments, tmp_path):
    done = subprocess.run(
        arguments, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def newer(folder, pattern):
    """True as soon as `folder` holds a path that it doesn't hold now."""
    known = set(folder.glob(pattern))
    return lambda: bool(set(folder.glob(pattern)) - known)


@pytest.mark.slow
def test_sigkill_in_training(tree, trained, tmp_path):
    folder, rng = tmp_path / "run", random.Random(0)
    arguments = command("train", folder, tmp_path, recordings=tree, checkpoint_seconds=0.0)
    kills = 0
    for moment in ("checkpoints/[0-9]*", "encoders/0"):
        kills += run_and_kill(arguments, tmp_path, newer(folder, moment), rng.uniform(0, 0.1))
    assert kills == 2
    done = finish(arguments, tmp_path)
    assert "trained" in done.stdout
    assert_same_weights(folder, trained)
    assert [r["step"] for r in read_metrics(folder / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    names = sorted(p.name for p in (folder / "encoders").iterdir() if not p.name.startswith("."))
    assert names == ["0", "1", "animals.json"]


@pytest.mark.slow
def test_sigkill_in_reconstruction(tree, encoders, reconstructed, tmp_path):
    folder, rng = tmp_path / "run", random.Random(1)
    changes = {"recordings": tree, "encoders": encoders, "checkpoint_seconds": 0.0}
    changes |= {"controls": CHANGES["controls"], "prior__spectrum": "flat"}
    arguments = command("reconstruct", folder, tmp_path, **changes)
    kills = 0
    for moment in ("progress/*.npz", "controls/shuffled_neurons/mouse1/*"):
        kills += run_and_kill(arguments, tmp_path, newer(folder, moment), rng.uniform(0, 0.1))
    assert kills == 2
    finish(arguments, tmp_path)
    assert_same_movies(folder, reconstructed)
