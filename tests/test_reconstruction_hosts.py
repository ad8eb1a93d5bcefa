"""One reconstruction over two processes: the movies of one process with as many devices.

In processes of their own, since devices and their hosts come first.
"""

import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from neurorecon import hosts
from neurorecon.encoders import LinearNonlinear
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import default_recipe, loop, reconstruct_clips
from neurorecon.reconstruction.devices import Work, descent_meshes
from neurorecon.runs import load_arrays, read_json, read_metrics
from tests.tiny_run import NUM_NEURONS, ORACLE, SHAPE, random_encoders, simulated
from tests.toy_encoders import toy, toy_clips

ROOT = Path(__file__).resolve().parents[1]
# Round after round in the same processes, so that JAX starts once.
PROGRAM = """
import sys
import jax
from experiments import descent_groups, reconstruct
from neurorecon import hosts
from neurorecon.encoders import LinearNonlinear
from neurorecon.errors import NeuroreconError
from tests.tiny_run import tiny_config

tree, encoders, folder, key = sys.argv[1:]
hosts.join(key)
reconstruct.report = lambda workdir: None  # films take the most time of all

def run(name, **changes):
    config = tiny_config(**{
        "recordings": tree, "encoders": encoders, "hosts": key, "default_recipe__likelihood": "poisson",
        "prior__spectrum": "flat", "mask__kind": "none", "checkpoint_seconds": 0.0, **changes,
    })
    reconstruct.reconstruct_recordings(config, f"{folder}/{name}")

SAMPLED = {"shard": "clips", "calibration_clips": 0, "posterior__samples": 2, "controls": ""}
run("windows", shard="windows", recipe="published", controls="grey,shuffled_neurons,linear_decoder")
if not key:
    run("clips", **SAMPLED)
    sys.exit()

class Killed(Exception):
    pass

descend = descent_groups.reconstruct_clips
def descend_and_die(*args, on_call, **options):
    def called(progress):
        on_call(progress)
        if progress.step == 4:
            raise Killed
    return descend(*args, on_call=called, **options)

def descend_again(*args, progress, **options):
    print("goes on at", None if progress is None else progress.step, file=sys.stderr)
    return descend(*args, progress=progress, **options)

descent_groups.reconstruct_clips = descend_and_die
try:
    run("clips", **SAMPLED)
except Killed:
    print("killed", file=sys.stderr)
descent_groups.reconstruct_clips = descend_again
run("clips", **SAMPLED)
descent_groups.reconstruct_clips = descend

first, save = hosts.is_first(), reconstruct.save_movie
def full(*args, **options):
    raise NeuroreconError("the disk is full")
def bug(*args, **options):
    raise ValueError("what no one thought of")

for name, changes in {
    "alone": {"shard": ""},
    "primes": {"max_clips": 1, "clips_at_once": 1},
    "seed": {"seed": 1},
    "unseen": {} if first else {"recordings": "nowhere"},
    "decoder": {"prior__mean": "convolutional_decoder"},
    "full": {},
    "bug": {},
}.items():
    reconstruct.save_movie = full if name == "full" and first else save
    descent_groups.behaviour_of = bug if name == "bug" and not first else descent_groups.behaviour_of
    try:
        run({"seed": "clips"}.get(name, name), **{"shard": "clips", "calibration_clips": 0, "controls": ""} | changes)
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
"""
FLAG = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count="  # compiling is most of the time
ENCODER = LinearNonlinear(
    num_neurons=(NUM_NEURONS,), canvas=SHAPE, window_frames=14, frame_step=2, rank=1, num_taps=3,
    behaviour_std=(20.0,) * 4,
)  # fmt: skip
NOBODY = dict.fromkeys(hosts.VARIABLES, "")


def started(*command: str, **variables: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu", **NOBODY, **variables},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def two(*command: str) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = {"XLA_FLAGS": FLAG + "1", "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [started(*command, **together, JAX_PROCESS_ID=str(index)) for index in range(2)]


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """(status, what it said, errors) of each."""
    try:
        printed = [process.communicate(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any("collectives" in errors and "not available" in errors for _, errors in printed):
        pytest.skip("this jaxlib has no collectives between processes on CPU")
    return [(process.returncode, *said) for process, said in zip(processes, printed)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder of one process with two devices, folder of two with one each, what the two printed, their errors)."""
    base = tmp_path_factory.mktemp("hosts")
    given = (str(simulated(base)), str(random_encoders(base / "trained", ENCODER)))
    one = started("-c", PROGRAM, *given, str(base / "one"), "", XLA_FLAGS=FLAG + "2")
    (alone, *both) = ended([one, *two("-c", PROGRAM, *given, str(base / "two"), "auto")])
    for status, _, errors in (alone, *both):
        assert status == 0, errors[-3000:]
    return base / "one", base / "two", [said for _, said, _ in both], [errors for _, _, errors in both]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["windows", "clips"])
def test_two_processes_make_the_movies_of_one(made, name):
    one, two = (folder / name for folder in made[:2])
    assert files(two) == files(one)  # by the first alone: nothing beside them, nothing left under way
    movies = [path for path in files(one) if path.endswith(".npz")]
    assert sum(path.startswith("reconstructions") for path in movies) == len(ORACLE)
    for path in movies:
        alone, shared = load_arrays(one / path), load_arrays(two / path)
        assert shared.keys() == alone.keys()
        for key in {"movie", "movie_std", "trace_loss"} & alone.keys():
            np.testing.assert_array_equal(shared[key], alone[key], err_msg=f"{path} {key}")  # two devices: one order
    for alone, shared in zip(*(read_metrics(folder / "reconstruction.jsonl") for folder in (one, two)), strict=True):
        assert (shared["kind"], shared["trial"]) == (alone["kind"], alone["trial"])  # each once
    scores = [read_json(folder / "metrics.json")["clips"] for folder in (one, two)]
    assert [clip["trial"] for clip in scores[1]] == [clip["trial"] for clip in scores[0]] == list(ORACLE)


def test_what_was_killed_goes_on_in_both(made):
    # The movies are compared above. Clips lie on one process each: the first has the state of both.
    for errors, place in zip(made[3], ("4", "None")):
        assert "killed" in errors and f"goes on at {place}" in errors


def test_the_first_alone_speaks(made):
    (first, second) = made[2]
    assert "measures prior and masks" in first and "measures" not in second  # Gloo says something of its own


WRONG = {
    "alone": ["--config.shard: expected clips, models, windows or auto, which the 2 hosts share"] * 2,
    "primes": ["--config.clips_at_once"] * 2,
    "seed": ["reconstruct was begun with seed = 0, now 1"] * 2,
    "unseen": ["process 1 of 2: nowhere", "NeuroreconError: nowhere"],
    "decoder": ["which one host trains, found none"] * 2,
    "full": ["the disk is full"] * 2,
    "bug": ["process 1 of 2: ValueError: what no one thought of", "ValueError: what no one thought of"],
}


@pytest.mark.parametrize("name", WRONG)
def test_what_goes_wrong_in_one_ends_both(made, name):
    for errors, words in zip(made[3], WRONG[name]):
        (line,) = [line for line in errors.splitlines() if line.startswith(f"{name}: ")]
        assert words in line


def test_a_command_that_fails_is_one_line_of_each(tmp_path):
    command = ("-m", "experiments.reconstruct", "--workdir", str(tmp_path / "work"), "--config.hosts=auto")
    for status, _, errors in ended(two(*command, "--config.shard=auto", f"--config.recordings={tmp_path}/nowhere")):
        (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert status == 1 and "nowhere" in line and "Traceback" not in errors
    assert not (tmp_path / "work").exists()


def split(shard, clips, models, windows, number, processes):
    (mesh,) = descent_meshes(shard, [Work(clips, models, windows)], list(range(number)), processes)
    return tuple(mesh.shape.values()), mesh.devices.ravel().tolist()


def test_every_process_has_a_part():
    assert split("auto", 1, (7,), (11,), 8, 1) == ((1, 7, 1), [0, 1, 2, 3, 4, 5, 6])
    # 7 devices would leave one of the two hosts with fewer than the other; these are the first three of each.
    assert split("windows", 1, (7,), (6,), 8, 2) == ((1, 1, 6), [0, 1, 2, 4, 5, 6])
    assert split("auto", 1, (7,), (11,), 8, 2) == ((1, 1, 6), [0, 1, 2, 4, 5, 6])
    assert split("clips", 6, (7,), (11,), 4, 2) == ((2, 1, 1), [0, 2])
    for shard, words in (("models", "multiple of the 2 hosts"), ("", "which the 2 hosts share")):
        with pytest.raises(NeuroreconError, match=words):
            split(shard, 1, (7,), (11,), 8, 2)


def test_states_are_given_away_and_progress_stays(monkeypatch):
    given, stored, advance = [], [], loop.advance

    def watched(settings, number, state, *rest):
        given.append(state)
        return advance(settings, number, state, *rest)

    monkeypatch.setattr(importlib.import_module("neurorecon.reconstruction.reconstruct"), "advance", watched)
    options = {"recipe": default_recipe(), "key": jax.random.key(0), "num_steps": 3, "steps_per_call": 1}
    clips = toy_clips(1)
    found = reconstruct_clips([toy("linear_nonlinear")], *clips, on_call=stored.append, **options)
    assert len(given) == 3 and all(x.is_deleted() for state in given for x in jax.tree.leaves(state))
    steps = [np.array(progress.states[0].latent) for progress in stored]
    again = reconstruct_clips([toy("linear_nonlinear")], *clips, progress=stored[0], **options)
    np.testing.assert_array_equal(again.movies, found.movies)
    for progress, latent in zip(stored, steps):
        assert isinstance(progress.states[0].latent, np.ndarray)
        np.testing.assert_array_equal(progress.states[0].latent, latent)
    assert not np.array_equal(steps[0], steps[1])
