"""A descent over eight virtual devices: the movies of one. In a process of its own, since devices come first."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction.devices import Work, descent_meshes

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import importlib, sys
import jax, numpy as np
from neurorecon.encoders import depthwise
from neurorecon.reconstruction import Progress, default_recipe, published_recipe, reconstruct_clips
from neurorecon.reconstruction.stopping import HeldOutNeurons
from tests.toy_encoders import toy, toy_clips

STOP = HeldOutNeurons(share=0.2, patience=2, decay=0)
depthwise._CACHED = 500  # frames in several pieces, on each of several devices
CASES = {
    # published windows of dwiseneuro: 3, which 8 devices can't share evenly
    "windows": ("windows", published_recipe(), 1, 1),
    "models": ("models", default_recipe(), 2, 1),
    "movies": ("models", published_recipe(), 2, 1),
    "clips": ("clips", default_recipe(), 1, 4),
    "auto": ("auto", default_recipe(), 2, 2),
    # clips stop at different updates, on devices of their own and on shared ones
    "stopping": ("auto", default_recipe(stop=STOP, learning_rate=1.0), 2, 2),
    "stopping_clips": ("clips", default_recipe(stop=STOP, learning_rate=1.0), 1, 4),
}
descents = importlib.import_module("neurorecon.reconstruction.reconstruct")
advance, used = descents.advance, []

def watched(*args):
    used.append(len(args[2].latent.sharding.device_set))
    return advance(*args)

descents.advance = watched
clips = toy_clips(4)
out = {"devices": jax.device_count()}
for case, (shard, recipe, models, number) in CASES.items():
    encoders = [toy("dwiseneuro", seed=seed) for seed in range(models)]
    options = {"recipe": recipe, "key": jax.random.key(7), "num_steps": 20 if recipe.stop else 5, "steps_per_call": 3}
    given = [values[:number] for values in clips]
    for way in ("", shard):
        stored = []
        found = reconstruct_clips(encoders, *given, shard=way, on_call=stored.append, **options)
        name = f"{case}/shared" if way else f"{case}/alone"
        out |= {f"{name}/movies": found.movies, f"{name}/window_loss": found.trace["window_loss"]}
        out |= {f"{name}/loss": found.trace["loss"]}
        out[f"{name}/devices"] = used[-1]
        out[f"{name}/num_steps"] = found.num_steps
    arrays = {name: np.array(values) for name, values in stored[0].to_arrays().items()}
    again = reconstruct_clips(encoders, *given, shard=shard, progress=Progress.from_arrays(arrays), **options)
    out[f"{case}/resumed"] = np.array_equal(again.movies, found.movies)
np.savez(sys.argv[1], **out)
"""
USED = {"windows": 3, "models": 2, "movies": 2, "clips": 4, "auto": 8, "stopping": 8, "stopping_clips": 4}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("devices") / "found.npz"
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)],
        cwd=ROOT, env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, timeout=540,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(path) as stored:
        return dict(stored)


@pytest.mark.parametrize("case", USED)
def test_the_movies_of_one_device(found, case):
    assert found["devices"] == 8
    assert found[f"{case}/shared/devices"] == USED[case] and found[f"{case}/alone/devices"] == 1
    alone, shared = (found[f"{case}/{way}/movies"] for way in ("alone", "shared"))
    assert np.ptp(alone) > 1
    np.testing.assert_allclose(shared, alone, atol=2e-3)
    for name in ("loss", "window_loss"):
        alone, shared = (found[f"{case}/{way}/{name}"] for way in ("alone", "shared"))
        np.testing.assert_allclose(shared, alone, rtol=1e-4, err_msg=name)
    steps = [found[f"{case}/{way}/num_steps"] for way in ("alone", "shared")]
    assert steps[0] == steps[1] and (steps[0] < 20 and steps[0] % 1 if case.startswith("stopping") else steps[0] == 5)
    assert found[f"{case}/resumed"]


def split(shard, clips, models, windows, number):
    (mesh,) = descent_meshes(shard, [Work(clips, models, windows)], list(range(number)))
    return (1, 1, 1) if mesh is None else tuple(mesh.shape.values())


def test_the_busiest_device_has_the_least_to_do():
    assert split("", 4, (4,), (10,), 8) == split("auto", 1, (1,), (1,), 8) == (1, 1, 1)
    assert split("auto", 1, (7,), (11,), 8) == (1, 7, 1)
    assert split("auto", 1, (1,), (35,), 8) == (1, 1, 7)  # 5 windows each; 8 devices would have 5 too
    assert split("auto", 8, (7,), (11,), 8) == (8, 1, 1)
    assert split("auto", 3, (2, 2), (35, 11), 8) == (1, 2, 4)  # (3, 2, 1) would have 46 windows on each, not 36
    assert split("models", 4, (4, 2), (10, 10), 8) == (1, 2, 1)


def test_nothing_to_share_is_one_line():
    for shard, match in (("clips", "can't share clips"), ("elsewhere", "expected one of")):
        with pytest.raises(NeuroreconError, match=match):
            split(shard, 1, (2,), (10,), 4)
    assert split("clips", 1, (2,), (10,), 1) == (1, 1, 1)  # one device: nothing is missed


@pytest.mark.parametrize(("asked", "printed"), [("2", "2 devices"), ("-1", "expected 0 or more, found -1")])
def test_one_key_divides_the_processor(tmp_path, asked, printed):
    program = (
        "import jax; from experiments import cli; "
        "job = lambda config, workdir: print(jax.device_count(), 'devices'); "
        "cli.run(job, 'test', config='experiments/configs/base.py')"
    )
    flags = [f"--workdir={tmp_path}", f"--config.cpu_devices={asked}"]
    done = subprocess.run(
        [sys.executable, "-c", program, *flags],
        cwd=ROOT, env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert printed in done.stdout + done.stderr, done.stderr[-2000:]
