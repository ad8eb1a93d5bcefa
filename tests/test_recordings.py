"""Reading and writing the Sensorium layout: what comes back."""

import dataclasses
import gc
import os
import pickle
import resource
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from neurorecon.errors import NeuroreconError
from neurorecon.recordings import Trial, as_target, open_recording, write_sensorium
from tests.recording_examples import FRAMES, HEIGHT, NEURONS, WIDTH, make_trials, one_line


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_sensorium(tmp_path / "mouse", make_trials())
    return tmp_path / "mouse"


def test_round_trip(tree: Path) -> None:
    recording = open_recording(tree)
    assert recording.name == "mouse"
    assert recording.num_neurons == NEURONS
    assert recording.num_trials == 4
    assert recording.frame_rate == 30.0
    assert recording.frame_shape == (HEIGHT, WIDTH)
    assert recording.trial_ids() == ["0", "1", "2", "3"]
    assert recording.trial_ids("train") == ["0", "1", "2"]
    assert recording.tier("3") == "oracle"
    assert recording.tier_counts == {"train": 3, "oracle": 1}
    for trial in make_trials():
        found = recording.trial(trial.id)
        assert (found.id, found.animal, found.tier, found.withheld) == (trial.id, "mouse", trial.tier, False)
        for name in ("stimulus", "responses", "behaviour"):
            array = getattr(found, name)
            assert array.dtype == np.float32 and array.flags.c_contiguous
            np.testing.assert_array_equal(array, getattr(trial, name))
        assert recording.num_frames(trial.id) == trial.num_frames
        np.testing.assert_array_equal(recording.stimulus(trial.id), trial.stimulus)
        np.testing.assert_array_equal(recording.behaviour(trial.id), trial.behaviour)


def test_disk_layout_is_the_published_one(tree: Path) -> None:
    trial = next(make_trials())
    videos = np.load(tree / "data/videos/0.npy")
    responses = np.load(tree / "data/responses/0.npy")
    assert videos.shape == (HEIGHT, WIDTH, FRAMES) and responses.shape == (NEURONS, FRAMES)
    np.testing.assert_array_equal(videos[2, 3, 4], trial.stimulus[4, 2, 3])
    np.testing.assert_array_equal(responses[1, 7], trial.responses[7, 1])
    np.testing.assert_array_equal(np.load(tree / "data/behavior/0.npy"), trial.behaviour[:, :2].T)
    np.testing.assert_array_equal(np.load(tree / "data/pupil_center/0.npy"), trial.behaviour[:, 2:].T)
    tiers = np.load(tree / "meta/trials/tiers.npy", allow_pickle=False)
    assert tiers.dtype.kind == "U" and list(tiers) == ["train", "train", "train", "oracle"]
    assert np.load(tree / "meta/neurons/unit_ids.npy").tolist() == list(range(NEURONS))
    assert np.load(tree / "meta/neurons/cell_motor_coordinates.npy").shape == (NEURONS, 3)


def test_statistics_equal_a_direct_computation(tree: Path) -> None:
    recording = open_recording(tree)
    padded = np.full((4, FRAMES, NEURONS), np.nan)
    pixels = []
    for number, trial in enumerate(make_trials()):
        padded[number, : trial.num_frames] = trial.responses
        pixels.append(trial.stimulus.ravel())
    found = recording.statistics("responses")
    for name, function in {
        "mean": np.nanmean,
        "std": np.nanstd,
        "median": np.nanmedian,
        "min": np.nanmin,
        "max": np.nanmax,
    }.items():
        np.testing.assert_allclose(found[name], function(padded, axis=0).T, rtol=1e-5, atol=1e-6)
        video = recording.statistics("videos")[name]
        np.testing.assert_allclose(video, function(np.concatenate(pixels)), rtol=1e-6)
    assert recording.statistics("pupil_center")["mean"].shape == (2, FRAMES)


def test_meta_round_trip(tmp_path: Path) -> None:
    places = np.arange(3.0 * NEURONS).reshape(NEURONS, 3)
    write_sensorium(
        tmp_path / "a",
        make_trials(),
        unit_ids=np.arange(10, 10 + NEURONS),
        cell_motor_coordinates=places,
        frame_rate=24,
        extra={"seed": 7},
    )
    recording = open_recording(tmp_path / "a")
    assert recording.frame_rate == 24.0
    assert recording.extra == {"seed": 7}
    np.testing.assert_array_equal(recording.unit_ids, np.arange(10, 10 + NEURONS))
    np.testing.assert_array_equal(recording.cell_motor_coordinates, places)


def test_coordinates_not_measured_are_none(tree: Path) -> None:
    assert open_recording(tree).cell_motor_coordinates is None


def test_behaviour_mean_is_over_training_frames(tree: Path) -> None:
    frames = np.concatenate([t.behaviour for t in make_trials() if t.tier == "train"])
    np.testing.assert_allclose(open_recording(tree).behaviour_mean(), frames.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_repeats_are_identical_movies(tmp_path: Path) -> None:
    trials = list(make_trials(5))
    trials[2] = dataclasses.replace(trials[2], stimulus=trials[0].stimulus)
    nearly = trials[0].stimulus.copy()
    nearly[3, 2, 1] += 1
    trials[3] = dataclasses.replace(trials[3], stimulus=nearly)
    write_sensorium(tmp_path / "a", trials)
    recording = open_recording(tmp_path / "a")
    assert recording.repeats() == [["0", "2"]]
    assert recording.repeats("oracle") == []


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ">f4"])
def test_padding_and_foreign_dtypes(tree: Path, dtype) -> None:
    for kind in ("videos", "responses", "behavior", "pupil_center"):
        array = np.load(tree / "data" / kind / "0.npy")
        pad = np.full((*array.shape[:-1], 9), np.nan)
        np.save(tree / "data" / kind / "0.npy", np.concatenate([array, pad], axis=-1).astype(dtype))
    trial = open_recording(tree).trial("0")
    expected = next(make_trials())
    assert trial.num_frames == FRAMES and trial.responses.dtype == np.float32
    np.testing.assert_allclose(trial.responses, expected.responses, rtol=1e-3)
    np.testing.assert_array_equal(trial.stimulus, expected.stimulus)  # whole grey values fit in float16


def test_integer_videos(tree: Path) -> None:
    videos = np.load(tree / "data/videos/0.npy")
    np.save(tree / "data/videos/0.npy", videos.astype(np.uint8))
    np.testing.assert_array_equal(open_recording(tree).trial("0").stimulus, next(make_trials()).stimulus)


def test_withheld_responses_are_flagged_and_refused(tree: Path) -> None:
    np.save(tree / "data/responses/3.npy", np.zeros((NEURONS, FRAMES)))
    behaviour = np.load(tree / "data/behavior/3.npy")
    behaviour[:, 30:] = np.nan
    np.save(tree / "data/behavior/3.npy", behaviour)
    recording = open_recording(tree)
    trial = recording.trial("3")
    assert trial.withheld and trial.num_frames == 30  # the length is behaviour's where responses say nothing
    with pytest.raises(NeuroreconError) as error:
        recording.target("3")
    one_line(error, "trial 3", "oracle", "withheld")
    assert as_target(recording.trial("0")).id == "0"


def test_withheld_responses_stay_out_of_the_statistics(tmp_path: Path) -> None:
    trials = list(make_trials())
    trials[3] = dataclasses.replace(trials[3], responses=np.zeros_like(trials[3].responses), withheld=True)
    write_sensorium(tmp_path / "a", trials)
    recording = open_recording(tmp_path / "a")
    assert recording.trial("3").withheld
    assert (recording.statistics("responses")["min"] > 0).all()


def test_loading_a_trial_reads_no_other(tree: Path) -> None:
    recording = open_recording(tree)
    for kind in ("videos", "responses", "behavior", "pupil_center"):
        for number in (1, 2, 3):
            (tree / "data" / kind / f"{number}.npy").unlink()
    assert recording.trial("0").num_frames == FRAMES


# Tiers.


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
@pytest.mark.parametrize("values", [["train", "oracle", "none", "train"], [b"train", b"oracle", b"none", b"train"]])
def test_object_tiers_are_read(tree: Path, protocol: int, values: list) -> None:
    array = np.array(values, dtype=object)
    with open(tree / "meta/trials/tiers.npy", "wb") as handle:
        np.lib.format.write_array_header_1_0(handle, np.lib.format.header_data_from_array_1_0(array))
        pickle.dump(array, handle, protocol=protocol)
    recording = open_recording(tree)
    assert [recording.tier(str(n)) for n in range(4)] == ["train", "oracle", "none", "train"]


def test_tiers_of_numpy_scalars_and_bytes_are_read(tree: Path) -> None:
    scalars = np.array([np.str_("train"), np.bytes_(b"oracle"), "none", "train"], dtype=object)
    for array in (scalars, np.array([b"train", b"oracle", b"none", b"train"])):
        np.save(tree / "meta/trials/tiers.npy", array, allow_pickle=True)
        recording = open_recording(tree)
        assert [recording.tier(str(n)) for n in range(4)] == ["train", "oracle", "none", "train"]


class Bomb:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_malicious_tiers_run_nothing(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "hit"
    np.save(tree / "meta/trials/tiers.npy", np.array(["train", Bomb(str(target))], object), allow_pickle=True)
    with pytest.raises(NeuroreconError) as error:
        open_recording(tree)
    one_line(error, "tiers.npy", "posix.mkdir", "refused")
    assert not target.exists()


@pytest.mark.parametrize("values", [[1, 2, 3, 4], [None] * 4, [["train"], ["x"], ["y"], ["z"]]])
def test_object_tiers_of_something_else(tree: Path, values: list) -> None:
    array = np.empty(4, object)
    array[:] = values
    np.save(tree / "meta/trials/tiers.npy", array, allow_pickle=True)
    with pytest.raises(NeuroreconError) as error:
        open_recording(tree)
    one_line(error, "tiers.npy", "expected strings")


def test_truncated_pickle(tree: Path) -> None:
    path = tree / "meta/trials/tiers.npy"
    np.save(path, np.array(["train"] * 4, object), allow_pickle=True)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(NeuroreconError) as error:
        open_recording(tree)
    one_line(error, "tiers.npy")


def test_unknown_tier_names_the_nearest(tree: Path) -> None:
    with pytest.raises(NeuroreconError) as error:
        open_recording(tree).trial_ids("orcale")
    one_line(error, "'orcale'", "did you mean 'oracle'")
    np.save(tree / "meta/trials/tiers.npy", np.array(["train", "trian", "oracle", "oracle"]))
    with pytest.raises(NeuroreconError) as error:
        open_recording(tree)
    one_line(error, "tiers.npy", "entry 1", "did you mean 'train'")


def test_tier_without_trial(tree: Path) -> None:
    with pytest.raises(NeuroreconError) as error:
        open_recording(tree).trial_ids("final_test_main")
    one_line(error, "no trial of tier 'final_test_main'", "train (3), oracle (1)")


def test_trials_are_streamed(tmp_path: Path) -> None:
    """At most two trials live at once: the one being made and the one being written."""
    alive: list[weakref.ref] = []

    def generate() -> Iterator[Trial]:
        for trial in make_trials(8):
            alive.append(weakref.ref(trial.responses))
            gc.collect()
            assert sum(ref() is not None for ref in alive) <= 2
            yield trial

    write_sensorium(tmp_path / "mouse", generate())
    assert open_recording(tmp_path / "mouse").num_trials == 8


def test_more_trials_than_open_files(tmp_path: Path) -> None:
    """Neither writing nor reading keeps a file of each trial open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
    try:
        write_sensorium(tmp_path / "mouse", make_trials(60))
        recording = open_recording(tmp_path / "mouse")
        kept = [recording.trial(t) for t in recording.trial_ids()]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(kept) == 60


def test_a_trial_is_a_copy(tmp_path: Path) -> None:
    """With one neuron, disk and memory order coincide, and yet the trial must not be a view of the file."""
    trials = [dataclasses.replace(t, responses=t.responses[:, :1]) for t in make_trials(2)]
    write_sensorium(tmp_path / "mouse", trials)
    trial = open_recording(tmp_path / "mouse").trial("0")
    assert trial.responses.flags.writeable and type(trial.responses) is np.ndarray
