"""One training over two processes: the losses and encoders of one process with as many devices.

In processes of their own, since devices and their hosts come first.
"""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.train import train_encoders
from neurorecon import hosts
from neurorecon.errors import NeuroreconError
from neurorecon.runs import read_metrics
from neurorecon.training.trainer import draw_batches
from tests.test_training import ENCODER, SETTINGS, animal
from tests.tiny_run import simulated, tiny_config, weights

ROOT = Path(__file__).resolve().parents[1]
# Round after round in the same processes, so that JAX starts once.
PROGRAM = """
import sys
from experiments import train
from neurorecon.runs import Checkpoints
from neurorecon import hosts
from tests.tiny_run import tiny_config

tree, folder, key = sys.argv[1:]
hosts.join(key)

def run(shard, **changes):
    config = tiny_config(
        recordings=tree, hosts=key, training__shard=shard, training__num_steps=4, training__optimiser="adamw",
        factorized__features=(3,), factorized__spatial_kernels=(3,), factorized__temporal_kernels=(3,),
        factorized__strides=(3,), **changes,
    )
    train.train_encoders(config, f"{folder}/{shard}")

class Killed(Exception):
    pass

def save_and_die(*args):
    save(*args)
    raise Killed

if not key:
    run("windows")
    sys.exit()
run("models")
save, Checkpoints.save = Checkpoints.save, save_and_die
try:
    run("windows", checkpoint_seconds=0.0)
except Killed:
    print("killed")
Checkpoints.save = save
run("windows")
try:
    run("windows", seed=1)
except train.NeuroreconError as error:
    print("refused:", error)
"""
VARIABLES = dict.fromkeys(hosts.VARIABLES, "")


def started(folder: Path, hosts_key: str, **variables: str) -> subprocess.Popen:
    tree = folder.parent / "animal" / "recordings" / "mouse1"
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tree), str(folder), hosts_key],
        cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu", **VARIABLES, **variables},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder of one process with two devices, folder of two processes with one each, what the two printed)."""
    base = tmp_path_factory.mktemp("hosts")
    simulated(base / "animal")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    # Compiling is most of the time.
    flag = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count="
    two = {"XLA_FLAGS": flag + "1", "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    processes = [started(base / "one", "", XLA_FLAGS=flag + "2")]
    processes += [started(base / "two", "auto", **two, JAX_PROCESS_ID=str(index)) for index in range(2)]
    try:
        printed = [process.communicate(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, printed):
        if "collectives" in errors and "not available" in errors:
            pytest.skip("this jaxlib has no collectives between processes on CPU")
        assert process.returncode == 0, errors[-3000:]
    return base / "one", base / "two", printed[1:]


@pytest.mark.parametrize("shard", ["models", "windows"])
def test_two_processes_train_the_encoders_of_one(trained, shard):
    one, two, _ = trained
    alone, shared = (read_metrics(folder / "metrics.jsonl") for folder in (one / "windows", two / shard))
    assert [r["step"] for r in shared] == [1, 2, 3, 4]  # written once, though both know it
    losses = [r["loss"] for r in alone]
    np.testing.assert_allclose([r["loss"] for r in shared], losses, rtol=1e-5)
    assert np.ptp(losses, axis=0).min() > 0.01
    for a, b in zip(weights(two / shard), weights(one / "windows"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert sorted(p.name for p in (two / shard).iterdir()) == ["config.json", "encoders", "jobs.json", "metrics.jsonl"]


def test_two_processes_go_on_and_refuse_together(trained):
    _, _, ((first, _), (second, _)) = trained
    for printed in (first, second):
        assert "killed" in printed and "refused" in printed and "seed = 0, now 1" in printed
    assert "goes on at step 1 of 4" in first and "trained;" in first
    assert "goes on" not in second and "trained" not in second


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return animal(tmp_path_factory.mktemp("animals"), "five", 5, 0)


MIXING = [
    {},
    {"cutmix_probability": 1.0},
    {"mixup_probability": 1.0},
    {"cutmix_probability": 0.5, "mixup_probability": 1.0},
    {"cutmix_variant": "published", "cutmix_probability": 0.5, "mixup_probability": 0.5},
]


@pytest.mark.parametrize("mixing", MIXING, ids=lambda m: "-".join(m) or "none")
def test_parts_make_up_the_batch_and_read_no_more_than_they_need(recording, monkeypatch, mixing):
    settings = dataclasses.replace(SETTINGS, batch_size=4, **mixing)
    encoder = ENCODER.clone(num_neurons=(5,))
    windows = [recording.windows("train", 10, 2)]

    def drawn(step, **part):
        return draw_batches(encoder, [recording], windows, settings, num_models=2, seed=0, step=step, **part)[0]

    read, gather = [], recording.gather
    monkeypatch.setattr(
        recording, "gather", lambda chosen, *a, **k: read.append(len(chosen)) or gather(chosen, *a, **k)
    )
    differ = False
    for step in range(6):
        whole = drawn(step)
        differ |= not np.array_equal(whole[0][:, :2], whole[0][:, 2:])
        read.clear()
        for models, rows in ((range(0, 2), range(0, 2)), (range(1, 2), range(2, 4)), (range(0, 1), range(3, 4))):
            for all_of_it, part in zip(whole, drawn(step, models=models, rows=rows), strict=True):
                expected = all_of_it[models.start : models.stop, rows.start : rows.stop]
                np.testing.assert_array_equal(part, expected)
                assert part.dtype == expected.dtype
        assert read == [n + bool(mixing) for n in (2, 2, 2, 1)]
    assert differ


WRONG = [
    ({}, "nobody there"),
    ({"JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS"),
    ({"JAX_COORDINATOR_ADDRESS": "there", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "HOST:PORT, found 'there'"),
    ({"JAX_COORDINATOR_ADDRESS": "there:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}, "'two' and '0'"),
    ({"JAX_COORDINATOR_ADDRESS": "there:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "'2' and '2'"),
]


@pytest.mark.parametrize("variables, words", WRONG)
def test_nobody_to_join_is_one_line(monkeypatch, variables, words):
    for name, value in {**VARIABLES, **variables}.items():
        monkeypatch.setenv(name, value)

    def nobody(**_):
        raise ValueError("nobody there\nby far")

    monkeypatch.setattr(jax.distributed, "initialize", nobody)
    with pytest.raises(NeuroreconError) as error:
        hosts.join("auto")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_hosts_that_are_not_meant(tmp_path):
    with pytest.raises(NeuroreconError, match="expected '' or 'auto', found 'all'"):
        hosts.join("all")
    # Another experiment, which trains its own encoders, does not join anybody.
    with pytest.raises(NeuroreconError, match=r"experiments\.train and experiments\.reconstruct alone"):
        train_encoders(tiny_config(hosts="auto"), str(tmp_path))


def test_alone_nothing_changes():
    hosts.join("")
    tree = {"a": jax.numpy.arange(3.0)}
    assert not hosts.several() and hosts.is_first() and hosts.same(tree) is tree
    assert hosts.from_first(lambda: "told") == "told"
    np.testing.assert_array_equal(hosts.gathered(tree)["a"], [0, 1, 2])
