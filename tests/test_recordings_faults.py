"""Each fault of a recording, on disk or while writing, is one clear line, and nothing half-written stays."""

import dataclasses
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from neurorecon.errors import NeuroreconError
from neurorecon.recordings import Trial, open_recording, write_sensorium
from tests.recording_examples import FRAMES, HEIGHT, NEURONS, WIDTH, make_trials, one_line


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_sensorium(tmp_path / "mouse", make_trials())
    return tmp_path / "mouse"


# Faults on disk. Each changes the tree, then opens it and reads trial 0.


def resave(kind: str, change: Callable[[np.ndarray], np.ndarray], number: int = 0) -> Callable[[Path], None]:
    def apply(tree: Path) -> None:
        path = tree / "data" / kind / f"{number}.npy"
        np.save(path, change(np.load(path)), allow_pickle=True)

    return apply


def put(value: float, *index) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[index] = value
        return array

    return change


def all_transposed(tree: Path) -> None:
    for kind in ("videos", "responses", "behavior", "pupil_center"):
        resave(kind, lambda a: np.moveaxis(a, -1, 0))(tree)


def renamed(old: str, new: str) -> Callable[[Path], None]:
    return lambda tree: (tree / old).rename(tree / new)


def copied(old: str, new: str) -> Callable[[Path], object]:
    return lambda tree: shutil.copy(tree / old, tree / new)


def truncated(tree: Path) -> None:
    path = tree / "data/responses/0.npy"
    path.write_bytes(path.read_bytes()[:-100])


def removed(name: str) -> Callable[[Path], None]:
    def apply(tree: Path) -> None:
        path = tree / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return apply


def written(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda tree: (tree / name).write_bytes(data)


def tiers(number: int) -> Callable[[Path], None]:
    return lambda tree: np.save(tree / "meta/trials/tiers.npy", np.array(["train"] * number))


ABSURD = b"\x93NUMPY\x01\x00\x76\x00" + str(
    {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 1 << 10)}
).encode().ljust(117) + b"\n"  # fmt: skip

FAULTS = {
    "no folder": (lambda tree: shutil.rmtree(tree), ["expected the folder of a recording", "nothing"]),
    "no data": (removed("data"), ["no data/"]),
    "no kind": (removed("data/pupil_center"), ["pupil_center", "no such folder"]),
    "no file": (removed("data/behavior/2.npy"), ["behavior/2.npy", "no such file"]),
    "no last file": (removed("data/responses/3.npy"), ["responses/3.npy", "no such file"]),
    "extra file": (
        copied("data/responses/0.npy", "data/responses/4.npy"),
        ["responses/4.npy", "no such trial"],
    ),
    "no tiers": (removed("meta/trials/tiers.npy"), ["tiers.npy", "no such file"]),
    "too few tiers": (tiers(3), ["tiers.npy", "(4)", "found 3"]),
    "too many tiers": (tiers(5), ["tiers.npy", "(4)", "found 5"]),
    "two-dimensional tiers": (
        lambda tree: np.save(tree / "meta/trials/tiers.npy", np.array([["train"] * 4])),
        ["tiers.npy", "(1, 4)"],
    ),
    "numeric tiers": (
        lambda tree: np.save(tree / "meta/trials/tiers.npy", np.arange(4)),
        ["tiers.npy", "expected strings"],
    ),
    "no trials": (
        lambda tree: [removed(f"data/videos/{n}.npy")(tree) for n in range(4)],
        ["videos", "at least one trial"],
    ),
    "duplicate": (copied("data/videos/1.npy", "data/videos/01.npy"), ["duplicate", "1.npy"]),
    "other name": (renamed("data/videos/1.npy", "data/videos/first.npy"), ["first.npy", "N.npy"]),
    "other format": (renamed("data/videos/1.npy", "data/videos/1.tif"), ["1.tif", "N.npy"]),
    "a gap": (
        lambda tree: [renamed(f"data/{k}/3.npy", f"data/{k}/7.npy")(tree) for k in os.listdir(tree / "data")],
        ["videos/3.npy", "missing"],
    ),
    "no array": (written("data/videos/0.npy", b"hello"), ["videos/0.npy", "expected a .npy array"]),
    "empty file": (written("data/videos/0.npy", b""), ["videos/0.npy", "expected a .npy array"]),
    "cut short": (truncated, ["responses/0.npy", "cut short"]),
    "absurd header": (written("data/videos/0.npy", ABSURD), ["videos/0.npy"]),
    "complex": (resave("responses", lambda a: a + 1j), ["responses/0.npy", "real numbers"]),
    "pickled": (resave("responses", lambda a: a.astype(object)), ["responses/0.npy", "real numbers"]),
    "everything time first": (all_transposed, ["turned round"]),
    "videos time first": (
        resave("videos", lambda a: np.moveaxis(a, -1, 0)),
        ["videos/0.npy", "turned round"],
    ),
    "responses time first": (resave("responses", np.transpose), ["responses/0.npy", "turned round"]),
    "behavior time first": (resave("behavior", np.transpose), ["behavior/0.npy", "turned round"]),
    "pupil time first": (resave("pupil_center", np.transpose), ["pupil_center/0.npy", "turned round"]),
    "later trial time first": (resave("responses", np.transpose, 2), ["responses/2.npy", "turned round"]),
    "flat videos": (resave("videos", lambda a: a[0]), ["videos/0.npy", "(8, 40)"]),
    "flat responses": (resave("responses", lambda a: a[0]), ["responses/0.npy", "(40,)"]),
    "three channels": (
        resave("behavior", lambda a: np.concatenate([a, a[:1]])),
        ["behavior/0.npy", "(3, 40)"],
    ),
    "one neuron less": (resave("responses", lambda a: a[1:]), ["responses/0.npy", "5 neurons"]),
    "later neuron less": (resave("responses", lambda a: a[1:], 2), ["responses/2.npy", "(4, 40)"]),
    "other frame size": (resave("videos", lambda a: a[:, 1:], 2), ["videos/2.npy", "(6, 8, T)"]),
    "fewer responses": (resave("responses", lambda a: a[:, :-1]), ["responses/0.npy", "fewer", "40", "39"]),
    "more responses": (
        resave("responses", lambda a: np.concatenate([a, a[:, :1]], 1)),
        ["responses/0.npy", "more", "40", "41"],
    ),
    "all NaN": (resave("responses", put(np.nan)), ["responses/0.npy", "all NaN"]),
    "one neuron NaN": (resave("responses", put(np.nan, 2)), ["responses/0.npy", "NaN", "neuron 2"]),
    "infinite": (resave("responses", put(np.inf)), ["responses/0.npy", "infinity"]),
    "one infinity": (resave("responses", put(-np.inf, 3, 7)), ["responses/0.npy", "time 7", "neuron 3"]),
    "too large for float32": (
        resave("responses", lambda a: put(1e300, 3, 7)(a.astype(np.float64))),
        ["responses/0.npy", "infinity"],
    ),
    "hole in neuron 0": (resave("responses", put(np.nan, 0, 7)), ["responses/0.npy", "NaN at frame 7"]),
    "hole in neuron 4": (
        resave("responses", put(np.nan, 4, 7)),
        ["responses/0.npy", "NaN", "time 7, neuron 4"],
    ),
    "hole in the movie": (
        resave("videos", put(np.nan, 1, 2, 3)),
        ["videos/0.npy", "time 3, height 1, width 2"],
    ),
    "hole in behaviour": (resave("behavior", put(np.nan, 1, 3)), ["behavior/0.npy", "time 3"]),
    "hole in pupil": (resave("pupil_center", put(np.nan, 1, 3)), ["pupil_center/0.npy", "time 3"]),
    "zero length": (
        lambda tree: [
            resave(k, lambda a: a[..., :0])(tree) for k in ("videos", "responses", "behavior", "pupil_center")
        ],
        ["0.npy", "zero-length"],
    ),
    "no grey values": (resave("videos", lambda a: a * 10), ["videos/0.npy", "0..255", "rescale"]),
    "standardised movie": (resave("videos", lambda a: (a - 127) / 60), ["videos/0.npy", "0..255"]),
    "bad frame rate": (
        written("meta/recording.json", b'{"frame_rate": 0}'),
        ["recording.json", "frame_rate"],
    ),
    "bad json": (written("meta/recording.json", b"{"), ["recording.json", "JSON"]),
    "json list": (written("meta/recording.json", b"[]"), ["recording.json", "list"]),
    "json of others": (
        written("meta/recording.json", b'{"frame_rate": 30, "num_neurons": 9}'),
        ["recording.json", "9 neurons"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.filterwarnings("error")
def test_fault_on_disk_is_one_line(tree: Path, fault: str) -> None:
    apply, words = FAULTS[fault]
    apply(tree)
    with pytest.raises(NeuroreconError) as error:
        recording = open_recording(tree)
        for trial_id in recording.trial_ids():
            recording.trial(trial_id)
    one_line(error, *words)


def test_a_folder_above_the_recordings(tree: Path) -> None:
    with pytest.raises(NeuroreconError) as error:
        open_recording(tree.parent)
    one_line(error, "it holds recordings", "mouse")


def test_a_file_is_no_recording(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(NeuroreconError) as error:
        open_recording(tmp_path / "a")
    one_line(error, "a file")


@pytest.mark.parametrize("trial_id", ["4", "-1", "x", "", "٣"])
def test_no_such_trial(tree: Path, trial_id: str) -> None:
    with pytest.raises(NeuroreconError) as error:
        open_recording(tree).trial(trial_id)
    one_line(error, "no trial", "0 to 3")


def test_hidden_files_are_passed_over(tree: Path) -> None:
    (tree / "data/videos/.DS_Store").write_text("x")
    (tree / "data/videos/._1.npy").write_text("x")
    assert open_recording(tree).num_trials == 4


# Faults while writing.


def nothing_left(folder: Path) -> bool:
    return not folder.exists() or not any(folder.iterdir())


def bad_trials(number: int = 1, **changes) -> Callable[[], Iterator[Trial]]:
    def generate() -> Iterator[Trial]:
        for trial in make_trials():
            yield dataclasses.replace(trial, **changes) if trial.id == str(number) else trial

    return generate


WRITING = {
    "not a number": (bad_trials(id="first"), ["'first'", "number"]),
    "duplicate": (bad_trials(id="0"), ["'0'", "duplicate"]),
    "a gap": (bad_trials(id="9"), ["0 to 3", "found 9"]),
    "unknown tier": (bad_trials(tier="trian"), ["trial 1", "did you mean 'train'"]),
    "turned round": (bad_trials(responses=np.ones((NEURONS, FRAMES))), ["responses of trial 1", "fewer"]),
    "flat": (bad_trials(stimulus=np.ones((FRAMES, 48))), ["stimulus of trial 1", "(40, 48)"]),
    "NaN": (bad_trials(responses=np.full((35, NEURONS), np.nan)), ["responses of trial 1", "NaN everywhere"]),
    "three behaviours": (bad_trials(behaviour=np.ones((35, 3))), ["behaviour of trial 1", "4 channels"]),
    "out of range": (
        bad_trials(stimulus=np.full((35, HEIGHT, WIDTH), 300.0)),
        ["stimulus of trial 1", "0..255"],
    ),
    "other neurons": (bad_trials(responses=np.ones((35, 3))), ["trial 1", "(6, 8, 3)"]),
    "no trial": (lambda: iter(()), ["at least one trial"]),
    "zero length": (
        bad_trials(stimulus=np.ones((0, HEIGHT, WIDTH)), responses=np.ones((0, NEURONS)), behaviour=np.ones((0, 4))),
        ["stimulus of trial 1", "at least one frame"],
    ),
    "withheld but there": (bad_trials(withheld=True), ["trial 1", "withheld"]),
}


@pytest.mark.parametrize("fault", WRITING)
def test_fault_in_a_trial_leaves_nothing(tmp_path: Path, fault: str) -> None:
    generate, words = WRITING[fault]
    with pytest.raises(NeuroreconError) as error:
        write_sensorium(tmp_path / "out" / "mouse", generate())
    one_line(error, *words)
    assert nothing_left(tmp_path / "out")


@pytest.mark.parametrize(
    "arguments",
    [
        {"unit_ids": np.arange(3)},
        {"unit_ids": np.ones(NEURONS)},
        {"cell_motor_coordinates": np.ones((3, NEURONS))},
        {"frame_rate": 0.0},
        {"frame_rate": float("nan")},
    ],
)
def test_wrong_meta_leaves_nothing(tmp_path: Path, arguments: dict) -> None:
    with pytest.raises(NeuroreconError) as error:
        write_sensorium(tmp_path / "out" / "mouse", make_trials(), **arguments)
    one_line(error, next(iter(arguments)))
    assert nothing_left(tmp_path / "out")


def test_an_existing_folder_is_not_overwritten(tree: Path) -> None:
    before = sorted(str(p) for p in tree.rglob("*"))
    with pytest.raises(NeuroreconError) as error:
        write_sensorium(tree, make_trials())
    one_line(error, "isn't empty")
    assert sorted(str(p) for p in tree.rglob("*")) == before


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "mouse").mkdir()
    write_sensorium(tmp_path / "mouse", make_trials())
    assert open_recording(tmp_path / "mouse").num_trials == 4


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # no file may grow beyond 2 kB
    try:
        with pytest.raises(NeuroreconError) as error:
            write_sensorium(tmp_path / "out" / "mouse", make_trials())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_line(error, "mouse", "could not be written")
    assert nothing_left(tmp_path / "out")


def test_a_read_only_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(NeuroreconError) as error:
        write_sensorium(tmp_path / "mouse", make_trials())
    one_line(error, "mouse", "Read-only file system")
    assert nothing_left(tmp_path)
