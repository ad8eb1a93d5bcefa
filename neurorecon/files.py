"""Writing files so that a reader never sees half of one."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from neurorecon.errors import NeuroreconError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike, *, directory: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is renamed to `path`, on failure it is removed.

    The temporary name keeps the suffix of `path`, so that writers that look at suffixes work. With `directory`, the
    temporary path is an existing empty directory, and `path` must not exist yet or be an empty directory.

    Raises:
      NeuroreconError: the disk is full or read-only, or the folder can't be written.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        name = tempfile.mkdtemp(prefix=f".{path.stem}-", dir=path.parent)
        folder = Path(name)
        temporary = folder / path.name
        if directory:
            temporary.mkdir()
        yield temporary
        if directory:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        else:
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise NeuroreconError(
            f"{path}: could not be written ({error.strerror or error}); "
            "check the free space and the permissions of its folder"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary.parent, ignore_errors=True)


def save_npy(path: str | os.PathLike, array: np.ndarray) -> None:
    """Writes one array as `.npy`, atomically."""
    with atomic_path(path) as temporary:
        np.save(temporary, array, allow_pickle=False)


def save_npz(path: str | os.PathLike, **arrays: Any) -> None:
    """Writes named arrays as compressed `.npz`, atomically."""
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def save_json(path: str | os.PathLike, value: Any) -> None:
    """Writes JSON, atomically; NaN and infinity become null, which every JSON reader takes."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(_jsonable(value), indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Reads JSON.

    Raises:
      NeuroreconError: the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise NeuroreconError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise NeuroreconError(f"{path}: expected a JSON file, but it can't be read ({error})") from error


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    if isinstance(value, np.ndarray):
        return _jsonable(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value
