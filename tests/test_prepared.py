"""Prepared recordings: the same frames, fast, and never a stale, incomplete or damaged cache."""

import dataclasses
import os
import resource
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from neurorecon.errors import NeuroreconError
from neurorecon.recordings import PreparedRecording, open_recording, prepare, write_sensorium
from neurorecon.recordings.prepared import fingerprint
from tests.recording_examples import FRAMES, NEURONS, make_trials, one_line


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    trials = list(make_trials(6))
    trials[4] = dataclasses.replace(
        trials[4], tier="live_test_main", responses=np.zeros_like(trials[4].responses), withheld=True
    )
    write_sensorium(tmp_path / "mouse", trials)
    return tmp_path / "mouse"


@pytest.fixture(params=["on disk", "in memory"])
def prepared(tree: Path, tmp_path: Path, request: pytest.FixtureRequest) -> PreparedRecording:
    return prepare(open_recording(tree), tmp_path / "cache" if request.param == "on disk" else None)


def caches(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_trials_are_those_of_the_recording(tree: Path, prepared: PreparedRecording) -> None:
    recording = open_recording(tree)
    for name in ("name", "num_neurons", "num_trials", "frame_shape", "frame_rate"):
        assert getattr(prepared, name) == getattr(recording, name), name
    assert prepared.trial_ids("train") == recording.trial_ids("train")
    assert prepared.stimulus.dtype == np.uint8
    for trial_id in recording.trial_ids():
        ours, theirs = prepared.trial(trial_id), recording.trial(trial_id)
        for field in dataclasses.fields(ours):
            np.testing.assert_array_equal(getattr(ours, field.name), getattr(theirs, field.name))
        assert ours.stimulus.dtype == np.float32
    with pytest.raises(NeuroreconError) as error:
        prepared.target("4")
    one_line(error, "withheld")
    prepared.verify()


def test_windows_are_all_legal_ones(prepared: PreparedRecording) -> None:
    windows = prepared.windows("train", 16, 2)  # they span 31 frames
    lengths = {0: FRAMES, 1: FRAMES - 5, 2: FRAMES, 3: FRAMES}
    assert {tuple(w) for w in windows} == {(n, s) for n, length in lengths.items() for s in range(length - 30)}
    assert len(windows) == len({tuple(w) for w in windows})
    assert set(prepared.windows(None, 16, 2)[:, 0]) == {0, 1, 2, 3, 5}  # 4 is withheld
    assert set(prepared.windows("train", 38)[:, 0]) == {0, 2, 3}  # 1 is too short
    assert set(prepared.windows("train", 16, trial_ids=["3", "1"])[:, 0]) == {1, 3}


def test_gather_equals_cutting_trials(tree: Path, prepared: PreparedRecording) -> None:
    recording = open_recording(tree)
    windows = np.random.default_rng(0).permutation(prepared.windows(None, 7, 3))[:20]
    batch = prepared.gather(windows, 7, 3)
    assert batch.stimulus.shape == (20, 7, *recording.frame_shape)
    assert batch.responses.shape == (20, 7, NEURONS)
    assert batch.behaviour.shape == (20, 7, 4)
    assert {a.dtype for a in batch} == {np.dtype(np.float32)}
    for row, (number, start) in enumerate(windows):
        trial = recording.trial(str(number))
        frames = slice(start, start + 19, 3)
        np.testing.assert_array_equal(batch.stimulus[row], trial.stimulus[frames])
        np.testing.assert_array_equal(batch.responses[row], trial.responses[frames])
        np.testing.assert_array_equal(batch.behaviour[row], trial.behaviour[frames])
    assert prepared.gather(windows, 7, 3, raw=True).stimulus.dtype == np.uint8


@pytest.mark.parametrize("window", [(0, FRAMES - 30), (1, FRAMES - 35), (0, -1), (6, 0), (-1, 0)])
def test_a_window_that_leaves_its_trial(prepared: PreparedRecording, window: tuple) -> None:
    with pytest.raises(NeuroreconError) as error:
        prepared.gather(np.array([(0, 0), window]), 16, 2)
    one_line(error, f"frame {window[1]}", f"trial {window[0]}")


def test_refusals(prepared: PreparedRecording) -> None:
    for call, words in [
        (lambda: prepared.windows("live_test_main", 16), ["has responses"]),
        (lambda: prepared.windows("train", 41), ["41 frames"]),
        (lambda: prepared.windows("orcale", 16), ["did you mean 'oracle'"]),
        (lambda: prepared.windows("final_test_bonus", 16), ["no trial of tier"]),
        (lambda: prepared.windows("train", 16, trial_ids=["5"]), ["trial 5", "train"]),
        (lambda: prepared.windows("train", 0), ["at least 1"]),
        (lambda: prepared.trial("6"), ["0 to 5"]),
        (lambda: prepared.gather(np.zeros((3, 2)), 16), ["integers"]),
    ]:
        with pytest.raises(NeuroreconError) as error:
            call()
        one_line(error, *words)


def test_fractional_greys_stay_floats(tmp_path: Path) -> None:
    trials = list(make_trials(6))
    stimulus = trials[3].stimulus.copy()
    stimulus[2, 3, 4] = 10.5  # not in the first trial: found out halfway
    trials[3] = dataclasses.replace(trials[3], stimulus=stimulus)
    write_sensorium(tmp_path / "mouse", trials)
    for cache in (tmp_path / "cache", None):
        prepared = prepare(open_recording(tmp_path / "mouse"), cache)
        assert prepared.stimulus.dtype == np.float32
        np.testing.assert_array_equal(prepared.trial("3").stimulus, stimulus)
        np.testing.assert_array_equal(prepared.trial("0").stimulus, trials[0].stimulus)
        prepared.verify()


def test_second_call_opens_what_is_there(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(open_recording(tree), tmp_path / "cache")
    recording = open_recording(tree)
    monkeypatch.setattr(recording, "trial", lambda trial_id: pytest.fail("read the source again"))
    second = prepare(recording, tmp_path / "cache")
    np.testing.assert_array_equal(first.responses, second.responses)
    assert len(caches(tmp_path / "cache")) == 1


def test_a_changed_source_makes_another_cache(tree: Path, tmp_path: Path) -> None:
    prepare(open_recording(tree), tmp_path / "cache")
    before = caches(tmp_path / "cache")
    path = tree / "data/responses/2.npy"
    responses = np.load(path)
    np.save(path, responses + 1)
    prepared = prepare(open_recording(tree), tmp_path / "cache")
    np.testing.assert_array_equal(prepared.trial("2").responses, responses.T + 1)
    after = caches(tmp_path / "cache")
    assert len(after) == 1 and after != before  # the stale one is gone


def test_fingerprint_sees_contents_behind_equal_sizes_and_times(tree: Path) -> None:
    before = fingerprint(open_recording(tree))
    path = tree / "meta/trials/tiers.npy"
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    tiers = np.load(path)
    tiers[0], tiers[5] = tiers[5], tiers[0]
    np.save(path, tiers)
    os.utime(path, ns=times)
    assert fingerprint(open_recording(tree)) != before
    assert fingerprint(open_recording(tree)) == fingerprint(open_recording(tree))


def break_meta(folder: Path) -> None:
    (folder / "meta.json").unlink()


def break_json(folder: Path) -> None:
    (folder / "meta.json").write_text('{"format": 1')


def break_length(folder: Path) -> None:
    os.truncate(folder / "responses.raw", (folder / "responses.raw").stat().st_size - 4)


def break_missing(folder: Path) -> None:
    (folder / "behaviour.raw").unlink()


def break_contents(folder: Path) -> None:
    with open(folder / "responses.raw", "r+b") as handle:
        handle.seek(-9, 2)
        handle.write(b"\xff")


@pytest.mark.parametrize("harm", [break_meta, break_json, break_length, break_missing, break_contents])
def test_a_harmed_cache_is_made_again(tree: Path, tmp_path: Path, harm) -> None:
    recording = open_recording(tree)
    expected = np.array(prepare(recording, tmp_path / "cache").responses)
    (name,) = caches(tmp_path / "cache")
    harm(tmp_path / "cache" / name)
    again = prepare(recording, tmp_path / "cache")
    np.testing.assert_array_equal(again.responses, expected)
    again.verify()
    assert caches(tmp_path / "cache") == [name]


def test_verify_names_the_damaged_trial(tree: Path, tmp_path: Path) -> None:
    prepared = prepare(open_recording(tree), tmp_path / "cache")
    (name,) = caches(tmp_path / "cache")
    with open(tmp_path / "cache" / name / "responses.raw", "r+b") as handle:
        handle.seek(4 * NEURONS * int(prepared.offsets[3]) + 5)
        handle.write(b"\xff")
    with pytest.raises(NeuroreconError) as error:
        prepared.verify()
    one_line(error, "trial 3", "damaged")


def test_a_full_disk_is_one_line_and_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    recording = open_recording(tree)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(NeuroreconError) as error:
            prepare(recording, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_line(error, "could not be written")
    assert caches(tmp_path / "cache") == []


def test_a_bad_trial_leaves_no_cache(tree: Path, tmp_path: Path) -> None:
    path = tree / "data/responses/3.npy"
    np.save(path, np.load(path)[:, :-1])
    with pytest.raises(NeuroreconError) as error:
        prepare(open_recording(tree), tmp_path / "cache")
    one_line(error, "responses/3.npy", "fewer")
    assert caches(tmp_path / "cache") == []


def test_the_quicker_process_wins(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While we prepare, another process finishes the same cache: its result is used."""
    recording = open_recording(tree)
    other = open_recording(tree)
    plain, raced = recording.trial, []

    def trial(trial_id: str):
        if trial_id == "5" and not raced:
            raced.append(prepare(other, tmp_path / "cache"))
        return plain(trial_id)

    monkeypatch.setattr(recording, "trial", trial)
    prepared = prepare(recording, tmp_path / "cache")
    assert raced
    np.testing.assert_array_equal(prepared.responses, raced[0].responses)
    assert len(caches(tmp_path / "cache")) == 1


def test_a_moved_tree_is_prepared_anew(tree: Path, tmp_path: Path) -> None:
    prepare(open_recording(tree), tmp_path / "cache")
    shutil.move(tree, tmp_path / "elsewhere" / "mouse")
    prepare(open_recording(tmp_path / "elsewhere" / "mouse"), tmp_path / "cache")
    assert len(caches(tmp_path / "cache")) == 2  # the other path's cache isn't ours to remove


def test_memory_is_that_of_a_trial_and_of_a_batch(tmp_path: Path) -> None:
    """Not that of the recording, when it is prepared, opened and drawn from."""
    rng = np.random.default_rng(0)
    (small,) = make_trials(1, tier="train")
    frames, neurons, num_trials = 200, 1000, 12
    trials = (
        dataclasses.replace(
            small,
            id=str(number),
            stimulus=rng.integers(0, 256, (frames, *small.stimulus.shape[1:])).astype(np.float32),
            responses=rng.gamma(1.0, 1.0, (frames, neurons)).astype(np.float32),
            behaviour=rng.normal(size=(frames, 4)).astype(np.float32),
        )
        for number in range(num_trials)
    )
    write_sensorium(tmp_path / "mouse", trials)
    recording = open_recording(tmp_path / "mouse")
    one_trial = 4 * frames * neurons
    tracemalloc.start()
    try:
        prepared = prepare(recording, tmp_path / "cache")
        assert tracemalloc.get_traced_memory()[1] < 5 * one_trial < num_trials * one_trial
        windows = prepared.windows("train", 10, 2)[::400][:5]
        assert len(windows) == 5
        tracemalloc.clear_traces()
        before = tracemalloc.get_traced_memory()[0]
        batch = prepared.gather(windows, 10, 2, raw=True)
        size = sum(array.nbytes for array in batch)
        assert size == 5 * 10 * (4 * neurons + 4 * 4 + small.stimulus[0].size)
        assert tracemalloc.get_traced_memory()[1] - before < 2 * size
        tracemalloc.clear_traces()
        prepared.verify()
        assert tracemalloc.get_traced_memory()[1] < 2 * one_trial
    finally:
        tracemalloc.stop()
