"""Bad input to the jobs: one clear line, nothing half-written, and the way back open once it is mended."""

import errno
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from experiments.evaluate import evaluate
from experiments.reconstruct import reconstruct_recordings
from experiments.report import report
from experiments.simulate import simulate
from experiments.train import train_encoders
from neurorecon import files
from neurorecon.errors import NeuroreconError
from neurorecon.recordings import Trial, write_sensorium
from tests.recording_examples import one_line
from tests.tiny_run import ORACLE, movie, random_encoders, simulated, tiny_config, weights

QUICK = {"controls": "grey", "mask__kind": "none", "prior__spectrum": "flat", "default_recipe__likelihood": "poisson"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return simulated(tmp_path_factory.mktemp("animal"))


@pytest.fixture
def tree(source, tmp_path):
    shutil.copytree(source, tmp_path / "mouse1")
    return tmp_path / "mouse1"


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    return random_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def finished(source, encoders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    reconstruct_recordings(tiny_config(recordings=str(source), encoders=str(encoders), **QUICK), str(folder))
    return folder


def results(folder: Path) -> list[str]:
    """Whatever is there beside the record of what was asked for."""
    if not folder.exists():
        return []
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name not in RECORD)


RECORD = ("config.json", "jobs.json", "metrics.jsonl", "reconstruction.jsonl")


def refused(job, config, workdir, *words):
    with pytest.raises(NeuroreconError) as error:
        job(config, str(workdir))
    one_line(error, *words)
    return str(error.value)


def change(tree, kind, number, function):
    path = tree / "data" / kind / f"{number}.npy"
    np.save(path, function(np.load(path)))


def nan(array):
    return np.full_like(array, np.nan)


def infinite(array):
    array = array.copy()
    array[2, 7] = np.inf
    return array


def all_kinds(tree, number, function):
    for kind in ("videos", "responses", "behavior", "pupil_center"):
        change(tree, kind, number, function)


RECORDINGS = {
    "no folder": (shutil.rmtree, ["mouse1", "expected the folder of a recording"]),
    "no file": (lambda t: (t / "data/responses/6.npy").unlink(), ["responses/6.npy", "no such file"]),
    "axes turned round": (lambda t: change(t, "responses", 6, np.transpose), ["responses/6.npy", "turned round"]),
    "wrong shape": (lambda t: change(t, "videos", 6, lambda a: a[:, :9]), ["videos/6.npy", "(12, 9, 60)"]),
    "fewer responses": (lambda t: change(t, "responses", 6, lambda a: a[:, :50]), ["responses/6.npy", "fewer frames"]),
    "all NaN": (lambda t: change(t, "responses", 6, nan), ["responses/6.npy", "NaN"]),
    "infinite": (lambda t: change(t, "responses", 6, infinite), ["responses/6.npy", "infinity", "neuron 2"]),
    "no frame": (lambda t: all_kinds(t, 6, lambda a: a[..., :0]), ["6.npy", "zero-length"]),
    "tiers too short": (
        lambda t: np.save(t / "meta/trials/tiers.npy", np.array(["train"] * 7)),
        ["tiers.npy", "(8)", "found 7"],
    ),
    "unknown tier": (
        lambda t: np.save(t / "meta/trials/tiers.npy", np.array(["train"] * 7 + ["oracel"])),
        ["tiers.npy", "'oracle'"],
    ),
    "other neurons": (lambda t: change(t, "responses", 6, lambda a: a[:5]), ["responses/6.npy", "(5, 60)"]),
}


@pytest.mark.parametrize("name", RECORDINGS)
def test_faulty_recording(name, tree, encoders, tmp_path):
    """Trial 6 is the clip to reconstruct; training reads the whole recording too."""
    fault, words = RECORDINGS[name]
    fault(tree)
    work = tmp_path / "run"
    refused(reconstruct_recordings, tiny_config(recordings=str(tree), encoders=str(encoders), **QUICK), work, *words)
    assert [p for p in results(work) if not p.startswith("masks/")] == []
    refused(train_encoders, tiny_config(recordings=str(tree)), tmp_path / "train", *words)
    assert results(tmp_path / "train") == []


def test_withheld_responses(tree, encoders, tmp_path):
    change(tree, "responses", 6, np.zeros_like)
    config = tiny_config(recordings=str(tree), encoders=str(encoders), **QUICK)
    refused(reconstruct_recordings, config, tmp_path / "run", "trial 6", "withheld")


def test_no_training_trials(tree, encoders, tmp_path):
    np.save(tree / "meta/trials/tiers.npy", np.array(["oracle"] * 8))
    refused(train_encoders, tiny_config(recordings=str(tree)), tmp_path / "train", "no trial of tier 'train'")
    config = tiny_config(recordings=str(tree), encoders=str(encoders), **QUICK)
    refused(reconstruct_recordings, config, tmp_path / "run", "no trial of tier 'train'")
    assert results(tmp_path / "train") == []


MISSPELT = {
    "tier": ("oracel", ["'oracel'", "'oracle'"]),
    "trials": ("6,77", ["'77'"]),
    "recipe": ("defualt", ["defualt", "published"]),
    "controls": ("gray", ["gray", "grey"]),
    "mask__kind": ("alhpa", ["alhpa", "alpha"]),
    "prior__spectrum": ("pink", ["pink", "natural"]),
    "default_recipe__likelihood": ("gauss", ["gauss", "poisson"]),
}


@pytest.mark.parametrize("key", MISSPELT)
def test_misspelt_choice_leaves_the_folder_free(key, source, encoders, tmp_path):
    wrong, words = MISSPELT[key]
    common = {"recordings": str(source), "encoders": str(encoders), **QUICK}
    refused(reconstruct_recordings, tiny_config(**{**common, key: wrong}), tmp_path, *words)
    assert list(tmp_path.iterdir()) == []  # so that the corrected command isn't taken for another job


TRAINING = {
    "encoder": ("factorised", ["factorised", "factorized"]),
    "validation_tier": ("trian", ["'trian'", "'train'"]),
    "num_models": (0, ["num_models", "at least 1"]),
    "training__batch_size": (0, ["batch_size", "at least 1"]),
    "training__validation_every": (0, ["validation_every", "at least 1"]),
    "training__validation_trials": (6, ["training trials", "validation_trials"]),
    "recordings": ("", ["--config.recordings", "found none"]),
}


@pytest.mark.parametrize("key", TRAINING)
def test_wrong_value_for_a_training_leaves_the_folder_free(key, source, tmp_path):
    value, words = TRAINING[key]
    refused(train_encoders, tiny_config(**{"recordings": str(source), key: value}), tmp_path, *words)
    assert list(tmp_path.iterdir()) == []


def test_two_recordings_of_one_name_or_of_other_frames(source, tmp_path):
    shutil.copytree(source, tmp_path / "other" / "mouse1")
    both = f"{source},{tmp_path / 'other' / 'mouse1'}"
    refused(train_encoders, tiny_config(recordings=both), tmp_path / "run", "two recordings are called 'mouse1'")
    rng = np.random.default_rng(0)
    trials = [
        Trial(str(n), "wide", "train", rng.uniform(0, 255, (40, 4, 6)), rng.gamma(1, 1, (40, 3)), np.zeros((40, 4)))
        for n in range(4)
    ]
    write_sensorium(tmp_path / "wide", trials)
    both = f"{source},{tmp_path / 'wide'}"
    refused(train_encoders, tiny_config(recordings=both), tmp_path / "two", "one frame size", "(4, 6)")


def test_encoder_that_does_not_fit(source, encoders, tmp_path):
    from neurorecon.encoders import Factorized, load_encoder

    encoder, _ = load_encoder(encoders / "encoders/0")
    assert isinstance(encoder, Factorized)
    for name, other, words in (
        ("neurons", encoder.clone(num_neurons=(7,)), ["12 neurons", "[7]"]),
        ("frames", encoder.clone(canvas=(14, 16)), ["(12, 16)", "(14, 16)"]),
    ):
        folder = random_encoders(tmp_path / name, other, animal="another")
        config = tiny_config(recordings=str(source), encoders=str(folder), **QUICK)
        refused(reconstruct_recordings, config, tmp_path / f"run_{name}", "mouse1", *words, "trained on this recording")
        assert [p for p in results(tmp_path / f"run_{name}") if not p.startswith("masks/")] == []
    # The animal's own name does not help an encoder of other neurons.
    folder = random_encoders(tmp_path / "named", encoder.clone(num_neurons=(7,)))
    config = tiny_config(recordings=str(source), encoders=str(folder), **QUICK)
    refused(reconstruct_recordings, config, tmp_path / "run_named", "12 neurons", "7")


def test_encoders_missing_or_damaged(source, encoders, tmp_path):
    def config(path):
        return tiny_config(recordings=str(source), encoders=str(path), **QUICK)

    refused(reconstruct_recordings, config(tmp_path / "absent"), tmp_path / "a", "absent", "found neither")
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    refused(reconstruct_recordings, config(tmp_path / "weights.pth"), tmp_path / "b", "weights.pth")
    copy = tmp_path / "copy"
    shutil.copytree(encoders, copy)
    for path in sorted((copy / "encoders/1/variables").rglob("*")):
        if path.is_file() and path.stat().st_size > 100:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(reconstruct_recordings, config(copy), tmp_path / "c", "encoders/1")
    (copy / "encoders/1/architecture.json").write_text("{")
    refused(reconstruct_recordings, config(copy), tmp_path / "d", "architecture.json")
    assert not any(results(tmp_path / name) for name in "abcd")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\0" * len(b)])
def test_damaged_files_of_a_reconstruction(finished, tmp_path, damage):
    for name in (
        f"reconstructions/mouse1/{ORACLE[0]}.npz",
        "masks/mouse1.npz",
        "metrics.json",
        "config.json",
        "jobs.json",
    ):
        copy = tmp_path / name.replace("/", "_")
        shutil.copytree(finished, copy)
        (copy / name).write_bytes(damage((finished / name).read_bytes()))
        attempts = {
            "metrics.json": report,
            "config.json": evaluate,
            f"reconstructions/mouse1/{ORACLE[0]}.npz": evaluate,
        }
        with pytest.raises(NeuroreconError) as error:
            if name in attempts:
                attempts[name](str(copy))
            else:
                import json

                import ml_collections

                stored = ml_collections.ConfigDict(json.loads((finished / "config.json").read_text()))
                (copy / "reconstructions/mouse1" / f"{ORACLE[0]}.npz").unlink()
                from experiments.cli import checked

                reconstruct_recordings(checked(stored), str(copy))
        one_line(error, Path(name).name)


def test_damaged_progress(source, encoders, tmp_path):
    config = tiny_config(recordings=str(source), encoders=str(encoders), **QUICK)
    store = tmp_path / f"progress/reconstruction-mouse1-{ORACLE[0]}.npz"
    store.parent.mkdir()
    store.write_bytes(b"PK\3\4 half an archive")
    refused(reconstruct_recordings, config, tmp_path, store.name, "remove it")
    files.save_npz(store, other=np.zeros(3))
    refused(reconstruct_recordings, config, tmp_path, "progress")
    files.save_npz(store, **{"state:0:0": np.zeros((), np.int32), "state:0:1": np.zeros(3)})
    refused(reconstruct_recordings, config, tmp_path, "progress")
    assert not (tmp_path / "reconstructions").exists()


def test_damaged_checkpoint_of_a_training(source, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    from neurorecon.runs import Checkpoints

    original = Checkpoints.save

    def save(self, step, state):
        original(self, step, state)
        if step == 2:
            raise Killed

    config = tiny_config(recordings=str(source), checkpoint_seconds=0.0)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "save", save)
        train_encoders(config, str(tmp_path / "run"))
    newest = tmp_path / "run/checkpoints/2"
    for path in newest.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(train_encoders, config, tmp_path / "run", "checkpoints/2", "damaged", "remove that folder")
    shutil.rmtree(newest)
    train_encoders(config, str(tmp_path / "run"))  # from the one before it
    train_encoders(config, str(tmp_path / "whole"))
    for a, b in zip(weights(tmp_path / "run"), weights(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_work_folder_of_another_config(finished, source, encoders, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    before = results(copy)
    config = tiny_config(recordings=str(source), encoders=str(encoders), **QUICK)
    config.num_steps = 9
    refused(reconstruct_recordings, config, copy, "num_steps = 6, now 9", "another --workdir")
    assert results(copy) == before
    (tmp_path / "file").write_text("x")
    for job in (reconstruct_recordings, train_encoders, simulate):
        refused(job, config, tmp_path / "file", "expected a folder, found a file")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_disk_that_cannot_be_written(source, encoders, tmp_path, monkeypatch, code):
    def bad(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    config = tiny_config(recordings=str(source), encoders=str(encoders), **QUICK)
    monkeypatch.setattr(files.tempfile, "mkdtemp", bad)
    for job in (simulate, train_encoders, reconstruct_recordings):
        refused(job, config, tmp_path / "run", os.strerror(code))
    assert results(tmp_path / "run") == []


def test_disk_that_fills_up_while_a_movie_is_written(finished, source, encoders, tmp_path):
    """By the limit on a file's size: the movie is the first file that is larger."""
    config = tiny_config(recordings=str(source), encoders=str(encoders), **QUICK)
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old[1]))
        refused(reconstruct_recordings, config, tmp_path, "validation", ".npz", "could not be written")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    for folder in ("validation", "reconstructions"):
        assert not list((tmp_path / folder).rglob("*.npz"))
        assert not list((tmp_path / folder).rglob(".*"))
    reconstruct_recordings(config, str(tmp_path))  # with space again, it goes on
    for trial_id in ORACLE:
        np.testing.assert_array_equal(movie(tmp_path, trial_id), movie(finished, trial_id))


def test_nothing_to_evaluate_or_report(tmp_path):
    for job in (evaluate, report):
        with pytest.raises(NeuroreconError) as error:
            job(str(tmp_path))
        one_line(error, "config.json")


def test_skipping_every_frame(finished, source, tmp_path):
    import json

    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "skip_frames": 60}))
    with pytest.raises(NeuroreconError) as error:
        evaluate(str(copy))
    one_line(error, "skip_frames", "60 frames")


@pytest.mark.parametrize("key", ["num_neurons", "train", "num_frames", "height", "frame_rate"])
def test_simulation_of_nothing(key, tmp_path):
    refused(simulate, tiny_config(**{f"simulation__{key}": 0}), tmp_path, f"simulation.{key}", "more than 0")
    assert list(tmp_path.iterdir()) == []
