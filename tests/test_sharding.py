"""Training over eight virtual devices: the losses of one device. In a process of its own, since devices come first."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neurorecon.errors import NeuroreconError
from neurorecon.training.settings import TrainingSettings
from neurorecon.training.sharding import training_mesh

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import dataclasses, json, pathlib, sys
import jax
from neurorecon.training.trainer import train
from tests.test_training import ENCODER, SETTINGS, animal

folder = pathlib.Path(sys.argv[1])
animals = [animal(folder, "five", 5, 0)]
encoder = ENCODER.clone(num_neurons=(5,))
found = {"devices": jax.device_count()}
for shard in ("", "windows", "both"):
    records, spread = [], []
    settings = dataclasses.replace(
        SETTINGS, shard=shard, batch_size=8, num_steps=4, validation_every=4
    )

    def on_step(state, record):
        records.append(record)
        kernel = state.variables["params"]["spatial0"]["kernel"]
        spread.append([len(kernel.sharding.device_set), kernel.addressable_shards[0].data.shape[0]])

    train(encoder, animals, settings, num_models=2, seed=0, on_step=on_step, parallel=True)
    found[shard] = {
        "losses": [r["loss"] for r in records], "spread": spread, "scores": records[-1]["validation_correlation"]
    }
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path_factory.mktemp("animals"))],
        cwd=ROOT, env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, timeout=540,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.partition("FOUND")[2])


@pytest.mark.parametrize(("shard", "held"), [("windows", 2), ("both", 1)])
def test_losses_of_one_device(found, shard, held):
    assert found["devices"] == 8
    alone, shared = found[""], found[shard]
    # Batch norm over the whole batch, and batches of the seed: only the order of sums differs.
    np.testing.assert_allclose(shared["losses"], alone["losses"], rtol=2e-4)
    np.testing.assert_allclose(shared["scores"], alone["scores"], atol=2e-2)
    assert np.ptp(alone["losses"]) > 0.01
    # Eight devices hold the weights, each its models only.
    assert shared["spread"] == [[8, held]] * 4 and alone["spread"] == [[1, 2]] * 4


def test_what_devices_cannot_share_is_one_line():
    def mesh(shard, devices, **changes):
        settings = TrainingSettings(shard=shard, **changes)
        return training_mesh(settings, num_models=6, devices=list(range(devices)))

    assert mesh("", 8) is None
    with pytest.raises(NeuroreconError, match="num_models, 6"):
        mesh("models", 4)
    with pytest.raises(NeuroreconError, match="batch_size / accumulate, 5"):
        mesh("windows", 4, batch_size=10, accumulate=2)
