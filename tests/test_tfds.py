"""A recording through tensorflow-datasets and ArrayRecord, without TensorFlow."""

import dataclasses
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neurorecon.errors import NeuroreconError
from neurorecon.recordings import open_recording, write_sensorium
from tests.recording_examples import make_trials, one_line

NAME = "dynamic00000-1-2-Video-0123456789abcdef"  # as long and as odd as the published names


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    trials = list(make_trials(5))
    trials[3] = dataclasses.replace(
        trials[3], tier="live_test_main", responses=np.zeros_like(trials[3].responses), withheld=True
    )
    write_sensorium(tmp_path / NAME, trials)
    return tmp_path / NAME


def test_trials_come_back_exactly(tree: Path, tmp_path: Path) -> None:
    from neurorecon.recordings.tfds_builder import build_dataset, open_dataset

    recording = open_recording(tree)
    folder = build_dataset(recording, tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*download*"))
    for tier in ("train", "oracle", "live_test_main"):
        trials = open_dataset(folder, tier)
        assert [trial.id for trial in trials] == recording.trial_ids(tier)
        for trial in reversed(trials):
            expected = recording.trial(trial.id)
            for field in dataclasses.fields(trial):
                np.testing.assert_array_equal(getattr(trial, field.name), getattr(expected, field.name))
            assert trial.stimulus.dtype == trial.responses.dtype == trial.behaviour.dtype == np.float32
    assert "tensorflow" not in sys.modules
    assert build_dataset(recording, tmp_path / "data") == folder  # a second call keeps it
    np.save(tree / "meta/trials/tiers.npy", np.array(["train"] * 5))
    with pytest.raises(NeuroreconError) as error:
        build_dataset(open_recording(tree), tmp_path / "data")
    one_line(error, "another state", "remove it")
    with pytest.raises(NeuroreconError) as error:
        open_dataset(folder, "none")
    one_line(error, "no trial of tier 'none'", "train (3), oracle (1), live_test_main (1)")
    with pytest.raises(NeuroreconError) as error:
        open_dataset(folder, "orcale")
    one_line(error, "did you mean 'oracle'")


def test_fractional_greys(tmp_path: Path) -> None:
    from neurorecon.recordings.tfds_builder import build_dataset, open_dataset

    trials = list(make_trials(3))
    trials[1] = dataclasses.replace(trials[1], stimulus=trials[1].stimulus / 2)
    write_sensorium(tmp_path / "a", trials)
    folder = build_dataset(open_recording(tmp_path / "a"), tmp_path / "data")
    np.testing.assert_array_equal(open_dataset(folder, "train")[1].stimulus, trials[1].stimulus)


def test_grain_takes_it_as_a_source(tree: Path, tmp_path: Path) -> None:
    grain = pytest.importorskip("grain")
    from neurorecon.recordings.tfds_builder import build_dataset, open_dataset

    trials = open_dataset(build_dataset(open_recording(tree), tmp_path / "data"), "train")
    dataset = grain.MapDataset.source(trials).shuffle(seed=0).map(lambda trial: trial.id)
    assert sorted(dataset[i] for i in range(len(dataset))) == ["0", "1", "2"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    from neurorecon.recordings.tfds_builder import build_dataset

    recording = open_recording(tree)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(NeuroreconError) as error:
            build_dataset(recording, tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_line(error, "could not be written")
    assert not [p for p in (tmp_path / "data").rglob("*") if p.is_file()]


def test_no_dataset(tmp_path: Path) -> None:
    from neurorecon.recordings.tfds_builder import open_dataset

    with pytest.raises(NeuroreconError) as error:
        open_dataset(tmp_path, "train")
    one_line(error, "dataset_info.json")


def test_nothing_else_imports_it() -> None:
    code = "import sys, neurorecon.recordings; sys.exit('tensorflow_datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
