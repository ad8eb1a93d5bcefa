"""Work folders: claims, logs and checkpoints that survive a kill."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neurorecon import runs
from neurorecon.errors import NeuroreconError
from tests.recording_examples import one_line

CONFIG = {"seed": 0, "training": {"num_steps": 5, "batch_size": 2}, "tier": "oracle"}
KEYS = ("seed", "training")


def test_claim_makes_the_folder_and_goes_on_in_it(tmp_path):
    folder = runs.claim(tmp_path / "a" / "run", CONFIG, "train", KEYS)
    assert folder == tmp_path / "a" / "run"
    assert json.loads((folder / "config.json").read_text()) == CONFIG
    runs.claim(folder, {**CONFIG, "tier": "train"}, "train", KEYS)  # not one of the keys
    assert json.loads((folder / "config.json").read_text())["tier"] == "train"
    runs.claim(folder, {**CONFIG, "seed": 3}, "other", KEYS)  # another job
    jobs = json.loads((folder / "jobs.json").read_text())
    assert jobs["train"] == {"seed": 0, "training": CONFIG["training"]} and jobs["other"]["seed"] == 3


def test_a_key_that_is_newer_than_the_job_counts_as_its_default(tmp_path):
    keys, defaults = ("training", "mask"), {"training": {"steps": 5, "rate": 1.0}, "mask": "none"}
    runs.claim(tmp_path, {"training": {"steps": 7}}, "train", ("training",))
    now = {"training": {"steps": 7, "rate": 1.0}, "mask": "none"}
    runs.claim(tmp_path, now, "train", keys, defaults)
    for changed in ({"training": {"steps": 7, "rate": 2.0}, "mask": "none"}, {**now, "mask": "alpha"}):
        runs.claim(tmp_path / str(changed), {"training": {"steps": 7}}, "train", ("training",))
        with pytest.raises(NeuroreconError, match="was begun with"):
            runs.claim(tmp_path / str(changed), changed, "train", keys, defaults)


def test_claim_refuses_another_config_and_says_which_part(tmp_path):
    runs.claim(tmp_path, CONFIG, "train", KEYS)
    before = (tmp_path / "config.json").read_text()
    changed = {**CONFIG, "training": {"num_steps": 6, "batch_size": 2}}
    with pytest.raises(NeuroreconError) as error:
        runs.claim(tmp_path, changed, "train", KEYS)
    one_line(error, '"num_steps": 5', '"num_steps": 6', "another --workdir")
    assert "batch_size" not in str(error.value)
    assert (tmp_path / "config.json").read_text() == before


def test_tuples_and_lists_are_the_same_config(tmp_path):
    runs.claim(tmp_path, {"features": (1, 2)}, "train", ("features",))
    runs.claim(tmp_path, {"features": [1, 2]}, "train", ("features",))


def test_claim_refuses_a_file_and_a_damaged_record(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(NeuroreconError) as error:
        runs.claim(tmp_path / "file", CONFIG, "train", KEYS)
    one_line(error, "expected a folder")
    for damage in ("{", "[1]", '{"train": 3}'):
        (tmp_path / "jobs.json").write_text(damage)
        with pytest.raises(NeuroreconError) as error:
            runs.claim(tmp_path, CONFIG, "train", KEYS)
        one_line(error, "jobs.json")


def test_log_appends_and_drops_what_a_kill_left(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = runs.MetricsLog(path)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": 0.5})
    with open(path, "a") as handle:
        handle.write('{"step": 4, "lo')
    assert [r["step"] for r in runs.read_metrics(path)] == [1, 2, 3]
    runs.MetricsLog(path, last_step=2).write({"step": 3, "loss": 0.25})
    records = runs.read_metrics(path)
    assert [r["step"] for r in records] == [1, 2, 3] and records[-1]["loss"] == 0.25
    assert path.read_text().count("\n") == 3 and "time" in records[0]
    assert runs.read_metrics(tmp_path / "absent.jsonl") == []


def test_log_on_a_bad_disk(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(NeuroreconError) as error:
        runs.MetricsLog(tmp_path / "file" / "metrics.jsonl")
    one_line(error, "could not be written")
    log = runs.MetricsLog(tmp_path / "metrics.jsonl")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(NeuroreconError, match="No space left"):
        log.write({"step": 1})


@pytest.fixture
def state():
    key = jax.random.key_data(jax.random.key(0))
    return {"step": jnp.int32(3), "weights": jnp.arange(6.0).reshape(2, 3), "key": key}


def test_checkpoints_come_back_bit_for_bit(tmp_path, state):
    store = runs.Checkpoints(tmp_path / "checkpoints")
    assert store.restore(state) is None
    for step in (1, 2, 3):
        store.save(step, {**state, "step": jnp.int32(step)})
    found = runs.Checkpoints(tmp_path / "checkpoints").restore(state)
    assert int(found["step"]) == 3
    for name in state:
        np.testing.assert_array_equal(found[name], state[name] if name != "step" else 3)
        assert found[name].dtype == state[name].dtype
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert kept == ["2", "3"]


def test_damaged_checkpoint_is_one_line_and_the_one_before_it_still_there(tmp_path, state):
    store = runs.Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        store.save(step, {**state, "step": jnp.int32(step)})
    newest = tmp_path / "checkpoints" / "2"
    files = [p for p in newest.rglob("*") if p.is_file() and p.stat().st_size > 0]
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(NeuroreconError) as error:
        runs.Checkpoints(tmp_path / "checkpoints").restore(state)
    one_line(error, str(newest), "remove that folder")
    shutil.rmtree(newest)
    assert int(runs.Checkpoints(tmp_path / "checkpoints").restore(state)["step"]) == 1


def test_checkpoint_of_another_shape_is_refused(tmp_path, state):
    runs.Checkpoints(tmp_path / "checkpoints").save(1, state)
    with pytest.raises(NeuroreconError) as error:
        runs.Checkpoints(tmp_path / "checkpoints").restore({**state, "weights": jnp.zeros((3, 3))})
    one_line(error, "checkpoints")


def test_full_disk_while_saving_a_checkpoint(tmp_path, state, monkeypatch):
    store = runs.Checkpoints(tmp_path / "checkpoints")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store._manager, "save", full)
    with pytest.raises(NeuroreconError) as error:
        store.save(1, state)
    one_line(error, "checkpoint 1", "No space left")


def test_damaged_arrays_are_one_line(tmp_path):
    path = tmp_path / "a.npz"
    runs.save_arrays(path, {"x": np.arange(1000.0)})
    np.testing.assert_array_equal(runs.load_arrays(path)["x"], np.arange(1000.0))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for damage in (whole[:-40], b"", b"not an archive", bytes(flipped)):
        path.write_bytes(damage)
        with pytest.raises(NeuroreconError) as error:
            runs.load_arrays(path)
        one_line(error, "a.npz", "damaged")


def test_versions_name_what_makes_the_numbers():
    versions = runs.versions()
    assert versions["jax"] == jax.__version__ and versions["numpy"] == np.__version__
    assert "x" in versions["device"] and all(isinstance(v, str) for v in versions.values())
