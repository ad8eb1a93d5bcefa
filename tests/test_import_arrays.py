"""Arrays -> a tree: the frames are the right ones, the right way round, in the right tier."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from neurorecon.errors import NeuroreconError
from neurorecon.recordings import import_arrays, load_array, open_recording, parse_splits
from neurorecon.recordings.cuts import Cut, plan_cuts
from tests.recording_examples import one_line
from tests.shared_data import SHARED, needs_shared

RNG = np.random.default_rng(0)
MOVIE = RNG.integers(0, 256, (100, 6, 8)).astype(np.uint8)
SPIKES = RNG.poisson(1.0, (100, 5)).astype(np.uint8)
BEHAVIOUR = RNG.normal(size=(100, 4))
REQUIRED = {"frame_rate": 20.0, "trial_frames": 30}


def joined(recording, tier: str | None, name: str) -> np.ndarray:
    return np.concatenate([getattr(recording.trial(t), name) for t in recording.trial_ids(tier)])


def test_one_recording_in_trials(tmp_path: Path) -> None:
    recording = import_arrays(
        tmp_path / "a",
        stimulus=MOVIE,
        responses=SPIKES,
        behaviour=BEHAVIOUR,
        unit_ids=np.arange(5) + 3,
        **REQUIRED,
    )
    assert recording.frame_rate == 20.0
    assert recording.unit_ids is not None and recording.unit_ids[0] == 3
    assert [recording.trial(t).num_frames for t in recording.trial_ids("train")] == [30, 30, 30, 10]
    np.testing.assert_array_equal(joined(recording, None, "stimulus"), MOVIE)
    np.testing.assert_array_equal(joined(recording, None, "responses"), SPIKES)
    np.testing.assert_array_equal(joined(recording, None, "behaviour"), BEHAVIOUR.astype(np.float32))


@pytest.mark.parametrize("axes", ["time,height,width", "width,height,time", "height,time,width"])
def test_axis_orders(tmp_path: Path, axes: str) -> None:
    order = [("time", "height", "width").index(axis) for axis in axes.split(",")]
    recording = import_arrays(
        tmp_path / "a",
        stimulus=MOVIE.transpose(order),
        stimulus_axes=axes,
        responses=SPIKES.T,
        response_axes="neuron,time",
        behaviour=BEHAVIOUR.T,
        behaviour_axes="channel,time",
        **REQUIRED,
    )
    np.testing.assert_array_equal(joined(recording, None, "stimulus"), MOVIE)
    np.testing.assert_array_equal(joined(recording, None, "responses"), SPIKES)
    np.testing.assert_array_equal(joined(recording, None, "behaviour"), BEHAVIOUR.astype(np.float32))


def test_without_behaviour_zeros(tmp_path: Path) -> None:
    recording = import_arrays(tmp_path / "a", stimulus=MOVIE, responses=SPIKES, **REQUIRED)
    assert not joined(recording, None, "behaviour").any()


def test_pooling_is_the_mean(tmp_path: Path) -> None:
    recording = import_arrays(tmp_path / "a", stimulus=MOVIE, responses=SPIKES, pool=2, **REQUIRED)
    found = joined(recording, None, "stimulus")
    assert found.shape == (100, 3, 4)
    np.testing.assert_allclose(found[7, 1, 2], MOVIE[7, 2:4, 4:6].mean(), rtol=1e-6)


def test_value_range_is_scaled(tmp_path: Path) -> None:
    movie = RNG.uniform(-1, 1, MOVIE.shape)
    recording = import_arrays(tmp_path / "a", stimulus=movie, responses=SPIKES, value_range=(-1, 1), **REQUIRED)
    np.testing.assert_allclose(joined(recording, None, "stimulus"), (movie + 1) * 127.5, atol=1e-4)


def test_packed_bits(tmp_path: Path) -> None:
    bits = RNG.integers(0, 2, (100, 7, 5)).astype(np.uint8)  # 35 bits: the last of 5 bytes is padded
    packed = np.packbits(bits.reshape(100, -1), axis=1)
    recording = import_arrays(
        tmp_path / "a",
        stimulus=packed,
        stimulus_axes="time,width,height",
        packed_bits_shape=(7, 5),
        responses=SPIKES,
        **REQUIRED,
    )
    assert recording.frame_shape == (5, 7)
    np.testing.assert_array_equal(joined(recording, None, "stimulus"), 255.0 * bits.transpose(0, 2, 1))


def test_splits_take_validation_out_of_training(tmp_path: Path) -> None:
    splits = {"train": [(0, 80)], "oracle": [(30, 50)], "final_test_main": [(85, 100)]}
    recording = import_arrays(tmp_path / "a", stimulus=MOVIE, responses=SPIKES, splits=splits, gap=3, **REQUIRED)
    np.testing.assert_array_equal(joined(recording, "train", "responses"), np.r_[SPIKES[:27], SPIKES[53:80]])
    np.testing.assert_array_equal(joined(recording, "oracle", "responses"), SPIKES[30:50])
    np.testing.assert_array_equal(joined(recording, "final_test_main", "responses"), SPIKES[85:])
    assert recording.extra["cuts"] == [
        ["train", 0, 27, 0],
        ["oracle", 30, 50, 0],
        ["train", 53, 80, 0],
        ["final_test_main", 85, 100, 0],
    ]


def test_lead_in_shows_frames_before_but_never_to_training(tmp_path: Path) -> None:
    splits = {"train": [(0, 60)], "oracle": [(50, 100)]}
    recording = import_arrays(tmp_path / "a", stimulus=MOVIE, responses=SPIKES, splits=splits, lead_in=8, **REQUIRED)
    np.testing.assert_array_equal(joined(recording, "train", "responses"), SPIKES[:42])
    first, second = (recording.trial(t) for t in recording.trial_ids("oracle"))
    np.testing.assert_array_equal(first.responses, SPIKES[42:80])
    np.testing.assert_array_equal(second.responses, SPIKES[72:100])
    own = np.concatenate([first.responses[8:], second.responses[8:]])
    np.testing.assert_array_equal(own, SPIKES[50:100])  # scores that skip the lead-in see each frame once


def test_plan_keeps_given_ranges_apart() -> None:
    cuts = plan_cuts({"train": [(0, 10), (10, 25)]}, 30, 8)
    assert cuts == [Cut("train", *r) for r in [(0, 8), (8, 10), (10, 18), (18, 25)]]
    assert plan_cuts({"train": [(0, 10), (10, 25)]}, 30, 8, min_trial_frames=7)[1] == Cut("train", 10, 18)


def test_parse_splits() -> None:
    assert parse_splits("train=0:9+12:20, oracle=9:12") == {"train": [(0, 9), (12, 20)], "oracle": [(9, 12)]}


def test_files_of_every_kind(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", MOVIE)
    np.savez(tmp_path / "a.npz", movie=MOVIE, spikes=SPIKES)
    cells = np.empty((1, 2), object)
    cells[0, 0], cells[0, 1] = SPIKES[:50], SPIKES[50:]
    scipy.io.savemat(tmp_path / "a.mat", {"spikes": SPIKES, "s": {"movie": MOVIE, "cells": cells}})
    np.savez(tmp_path / "one.npz", spikes=SPIKES)
    for name, expected in {
        "a.npy": MOVIE,
        "a.npz:movie": MOVIE,
        "one.npz": SPIKES,
        "a.mat:spikes": SPIKES,
        "a.mat:s.movie": MOVIE,
        "a.mat:s.cells": np.stack([SPIKES[:50], SPIKES[50:]])[None],
    }.items():
        np.testing.assert_array_equal(load_array(f"{tmp_path}/{name}"), expected, err_msg=name)
    recording = import_arrays(
        tmp_path / "out", stimulus=tmp_path / "a.npy", responses=f"{tmp_path}/a.mat:spikes", **REQUIRED
    )
    np.testing.assert_array_equal(joined(recording, None, "responses"), SPIKES)


def test_file_faults(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", movie=MOVIE, spikes=SPIKES)
    np.savez(tmp_path / "o.npz", o=np.array([{}], object))
    scipy.io.savemat(tmp_path / "a.mat", {"text": "hello", "s": {"x": SPIKES}})
    (tmp_path / "v73.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400))
    (tmp_path / "bad.mat").write_bytes(b"x" * 300)
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 no")
    for name, words in {
        "none.npy": ["none.npy", "no such file"],
        "none.npz:x": ["none.npz", "no such file"],
        "a.npz": ["a.npz", "which array", "movie, spikes"],
        "a.npz:spike": ["a.npz", "'spike'", "movie, spikes"],
        "o.npz:o": ["o.npz", "can't be read"],
        "a.mat:text": ["a.mat:text", "real numbers"],
        "a.mat:s.y": ["a.mat:s.y", "no field 'y'", "x"],
        "v73.mat:x": ["v73.mat", "-v7"],
        "bad.mat:x": ["bad.mat", "can't be read"],
        "bad.npz:x": ["bad.npz", "can't be read"],
        "a.csv": ["a.csv", ".npy"],
    }.items():
        with pytest.raises(NeuroreconError) as error:
            load_array(f"{tmp_path}/{name}")
        one_line(error, *words)


FAULTS: dict[str, tuple[dict, list[str]]] = {
    "fewer responses": ({"responses": SPIKES[:-1]}, ["responses", "fewer", "100", "99"]),
    "more responses": ({"responses": np.r_[SPIKES, SPIKES]}, ["responses", "more", "200"]),
    "turned responses": ({"responses": SPIKES.T}, ["responses", "turned round"]),
    "flat responses": ({"responses": SPIKES[:, 0]}, ["responses", "(100,)"]),
    "turned movie": ({"stimulus": MOVIE.transpose(1, 2, 0)}, ["responses", "more frames"]),
    "flat movie": ({"stimulus": MOVIE[0]}, ["stimulus", "(6, 8)"]),
    "axes": ({"stimulus_axes": "time,x,y"}, ["stimulus_axes", "time,height,width"]),
    "response axes": ({"response_axes": "time"}, ["response_axes", "time,neuron"]),
    "three channels": ({"behaviour": BEHAVIOUR[:, :3]}, ["behaviour", "found 3"]),
    "short behaviour": ({"behaviour": BEHAVIOUR[:9]}, ["behaviour", "fewer"]),
    "NaN": (
        {"responses": np.where(np.arange(500).reshape(100, 5) == 203, np.nan, 1)},
        ["from frame 30", "time 10"],
    ),
    "infinite": ({"responses": np.full((100, 5), np.inf)}, ["responses", "infinity everywhere"]),
    "text": ({"responses": np.full((100, 5), "x")}, ["responses", "real numbers"]),
    "0..1 movie": ({"stimulus": MOVIE / 255}, ["stimulus", "value_range"]),
    "bright movie": ({"stimulus": MOVIE * 2.0}, ["stimulus", "0..255", "value_range"]),
    "upside-down range": ({"value_range": (1, 0)}, ["value_range"]),
    "pool": ({"pool": 4}, ["pool", "6 x 8"]),
    "no bits": ({"packed_bits_shape": (6, 8)}, ["packed bits", "(100, 6, 8)"]),
    "overlap": ({"splits": {"oracle": [(0, 9)], "none": [(8, 20)]}}, ["frame 8", "oracle", "none"]),
    "twice": ({"splits": {"train": [(0, 9), (8, 20)]}}, ["train=8:20", "twice"]),
    "outside": ({"splits": {"train": [(0, 101)]}}, ["train=0:101", "100 frames"]),
    "backwards": ({"splits": {"train": [(9, 3)]}}, ["train=9:3"]),
    "unknown tier": ({"splits": {"trian": [(0, 9)]}}, ["did you mean 'train'"]),
    "nothing left": (
        {"splits": {"train": [(0, 9)], "oracle": []}, "min_trial_frames": 10},
        ["at least one trial"],
    ),
    "lead-in outside": ({"splits": {"oracle": [(5, 50)]}, "lead_in": 6}, ["lead_in", "frame 5"]),
    "lead-in shared": (
        {"splits": {"none": [(0, 20)], "oracle": [(20, 50)]}, "lead_in": 6},
        ["lead_in", "frame 0"],
    ),
    "trial length": ({"trial_frames": 0}, ["trial_frames"]),
    "frame rate": ({"frame_rate": -1.0}, ["frame_rate"]),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.filterwarnings("error")
def test_fault_is_one_line_and_leaves_nothing(tmp_path: Path, fault: str) -> None:
    changes, words = FAULTS[fault]
    with pytest.raises(NeuroreconError) as error:
        import_arrays(tmp_path / "out" / "a", **{"stimulus": MOVIE, "responses": SPIKES, **REQUIRED, **changes})
    one_line(error, *words)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(NeuroreconError) as error:
            import_arrays(tmp_path / "out" / "a", stimulus=MOVIE, responses=SPIKES, **REQUIRED)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_line(error, "could not be written")
    assert not any((tmp_path / "out").iterdir())


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments.import_arrays", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
        timeout=60,
    )


def test_command(tmp_path: Path) -> None:
    np.save(tmp_path / "movie.npy", MOVIE / 255)
    np.save(tmp_path / "spikes.npy", SPIKES.T)
    arguments = [
        f"--output={tmp_path}/a",
        f"--stimulus={tmp_path}/movie.npy",
        f"--responses={tmp_path}/spikes.npy",
        "--response_axes=neuron,time",
        "--frame_rate=30",
        "--trial_frames=40",
        "--splits=train=0:80,oracle=80:100",
    ]
    done = command(*arguments)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "value_range" in done.stderr
    assert not (tmp_path / "a").exists()
    done = command(*arguments, "--value_range=0,1")
    assert done.returncode == 0, done.stderr
    assert "3 trials (train 2, oracle 1), 5 neurons" in done.stdout
    np.testing.assert_allclose(joined(open_recording(tmp_path / "a"), None, "stimulus"), MOVIE, atol=1e-4)


@needs_shared("recordings/salamander_retina")
def test_salamander_retina(tmp_path: Path) -> None:
    folder = SHARED / "recordings" / "salamander_retina"
    stimulus = folder / "stim_crop80x80_bits_36000x800.npy"
    spikes = folder / "spikecounts_177x36000_u8.npy"
    recording = import_arrays(
        tmp_path / "retina",
        stimulus=stimulus,
        stimulus_axes="time,width,height",
        packed_bits_shape=(80, 80),
        pool=4,
        responses=spikes,
        response_axes="neuron,time",
        frame_rate=30.0,
        trial_frames=300,
        splits={"train": [(0, 30000)], "oracle": [(27100, 29980)], "final_test_main": [(30100, 35980)]},
        gap=100,
    )
    assert recording.num_neurons == 177 and recording.frame_shape == (20, 20)
    assert recording.tier_counts == {"train": 90, "oracle": 10, "final_test_main": 20}
    assert sum(recording.num_frames(t) for t in recording.trial_ids("train")) == 27000
    assert sum(recording.num_frames(t) for t in recording.trial_ids("oracle")) == 2880
    assert sum(recording.num_frames(t) for t in recording.trial_ids("final_test_main")) == 5880
    bits, counts = np.load(stimulus, mmap_mode="r"), np.load(spikes, mmap_mode="r")
    for trial_id in ("0", "89", "95", "119"):
        trial = recording.trial(trial_id)
        _, start, stop, _ = recording.extra["cuts"][int(trial_id)]
        board = np.unpackbits(bits[start:stop], axis=1).reshape(-1, 80, 80)  # frame, x, y
        pooled = np.stack(
            [[board[:, 4 * x : 4 * x + 4, 4 * y : 4 * y + 4].mean(axis=(1, 2)) for x in range(20)] for y in range(20)]
        )
        np.testing.assert_allclose(trial.stimulus, 255 * pooled.transpose(2, 0, 1), rtol=1e-5)
        np.testing.assert_array_equal(trial.responses, counts[:, start:stop].T)


@needs_shared("recordings/mouse_v1_gratings")
def test_mouse_v1_gratings_is_readable() -> None:
    file = sorted((SHARED / "recordings" / "mouse_v1_gratings").glob("*.mat"))[0]
    calcium = load_array(f"{file}:D.neuron1")
    assert calcium.shape == (1, 128, 49, 1)  # 128 presentations, 49 samples each
    assert np.isfinite(calcium).all() and calcium.std() > 0
    assert load_array(f"{file}:D.pupil_zscore").shape[:2] == (1, 128)
    assert load_array(f"{file}:TE.dt").item() == pytest.approx(0.0625)
