"""A reader never sees half a file, whatever goes wrong while it is written."""

import errno
import os
import resource
import signal

import numpy as np
import pytest

from neurorecon import files
from neurorecon.errors import NeuroreconError
from tests.recording_examples import one_line


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_whole_file_appears_at_the_end(tmp_path):
    with files.atomic_path(tmp_path / "deep" / "a.txt") as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".txt" and not (tmp_path / "deep" / "a.txt").exists()
    assert (tmp_path / "deep" / "a.txt").read_text() == "new"
    assert names(tmp_path / "deep") == ["a.txt"]


def test_failure_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyError("not a matter of the disk")
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_folder_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "tree"
    with pytest.raises(RuntimeError), files.atomic_path(path, directory=True) as temporary:
        (temporary / "one").write_text("1")
        raise RuntimeError
    assert names(tmp_path) == []
    path.mkdir()  # an empty one may be there
    with files.atomic_path(path, directory=True) as temporary:
        (temporary / "one").write_text("1")
    assert names(path) == ["one"]
    with pytest.raises(NeuroreconError), files.atomic_path(path, directory=True):
        pass  # a full one may not
    assert names(path) == ["one"] and names(tmp_path) == ["tree"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("call", ["mkdtemp", "replace", "fsync"])
def test_full_or_read_only_disk_is_one_line(tmp_path, monkeypatch, code, call):
    path = tmp_path / "a.npy"
    files.save_npy(path, np.zeros(3))

    def bad(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(files.tempfile if call == "mkdtemp" else files.os, call, bad)
        with pytest.raises(NeuroreconError) as error:
            files.save_npy(path, np.ones(3))
    one_line(error, str(path), os.strerror(code))
    assert not np.load(path).any() and names(tmp_path) == ["a.npy"]


@pytest.mark.parametrize("write", [files.save_npy, lambda path, x: files.save_npz(path, x=x)])
def test_file_that_outgrows_the_disk(tmp_path, write):
    """A true failure of write(2), by the limit on the size of a file."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, old[1]))
        with pytest.raises(NeuroreconError) as error:
            write(tmp_path / "a.npz", np.random.default_rng(0).normal(size=100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    one_line(error, "a.npz", "could not be written")
    assert names(tmp_path) == []


def test_folder_below_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(NeuroreconError) as error:
        files.save_json(tmp_path / "file" / "a.json", {})
    one_line(error, "a.json")


def test_json_of_numpy_and_of_what_is_not_finite(tmp_path):
    value = {"a": np.float32(1.5), "b": np.arange(2), "c": [float("nan"), float("inf"), (1, None)], 3: tmp_path}
    files.save_json(tmp_path / "a.json", value)
    found = files.read_json(tmp_path / "a.json")
    assert found == {"a": 1.5, "b": [0, 1], "c": [None, None, [1, None]], "3": str(tmp_path)}


def test_what_json_cannot_hold_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        files.save_json(tmp_path / "a.json", {"a": object()})
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe{}", None])
def test_unreadable_json_is_one_line(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NeuroreconError) as error:
        files.read_json(path)
    one_line(error, "a.json")


def test_arrays_that_need_pickle_are_not_written(tmp_path):
    with pytest.raises(ValueError):
        files.save_npy(tmp_path / "a.npy", np.array([object()]))
    assert names(tmp_path) == []
