"""Loading one array from a file of a lab's own: `.npy`, `.npz`, or MATLAB's `.mat`."""

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.recordings.npy import load_numbers

# Anything the readers of numpy and scipy raise at a file that is damaged or not what its name says.
_READ_ERRORS = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)


def load_array(path: str | os.PathLike) -> np.ndarray:
    """Loads an array of real numbers; large `.npy` files are mapped, not read.

    Args:
      path: `file.npy`; `file.npz:name` or `file.mat:name`, where the name may be left out if the file holds
        one array. In `.mat`, `a.b` is field b of struct a; cells of equal shape are stacked, cell axes first.

    Raises:
      NeuroreconError: the file or the name is missing (those there are listed), or it holds no real numbers.
    """
    text = os.fspath(path)
    match = re.fullmatch(r"(.+\.(npz|mat))(?::(.*))?", text, re.IGNORECASE)
    if match:
        file, suffix, name = Path(match[1]), match[2].lower(), match[3]
        if not file.is_file():
            raise NeuroreconError(f"{file}: no such file")
        return _from_npz(file, name) if suffix == "npz" else _from_mat(file, name)
    if not text.lower().endswith(".npy"):
        raise NeuroreconError(f"{text}: expected a file .npy, .npz:name or .mat:name")
    return load_numbers(text, mapped=True)


def _from_npz(file: Path, name: str | None) -> np.ndarray:
    try:
        with np.load(file, allow_pickle=False) as archive:
            array = archive[_choose(file, name, archive.files)]
    except NeuroreconError:
        raise
    except _READ_ERRORS as error:
        raise NeuroreconError(f"{file}: can't be read as .npz ({_first_line(error)})") from error
    return _real(array, f"{file}:{name or ''}".rstrip(":"))


def _from_mat(file: Path, name: str | None) -> np.ndarray:
    import scipy.io  # slow to import, and few recordings come as .mat

    try:
        contents = scipy.io.loadmat(file)
    except NotImplementedError as error:  # scipy's way to say that it is HDF5 inside
        raise NeuroreconError(
            f"{file}: a MATLAB v7.3 file, which isn't read here; save it in MATLAB with '-v7', or as .npy"
        ) from error
    except _READ_ERRORS as error:
        raise NeuroreconError(f"{file}: can't be read as .mat ({_first_line(error)})") from error
    first, _, fields = (name or "").partition(".")
    value: Any = contents[_choose(file, first, [k for k in contents if not k.startswith("__")])]
    for field in filter(None, fields.split(".")):
        names = value.dtype.names or ()
        if field not in names or value.size != 1:
            raise NeuroreconError(f"{file}:{name}: no field {field!r}; there are {', '.join(names) or 'none'}")
        value = value[field].item()
    return _real(_stacked(np.asarray(value), f"{file}:{name}"), f"{file}:{name}")


def _choose(file: Path, name: str | None, names: list[str]) -> str:
    if not name and len(names) == 1:
        return names[0]
    if not name or name not in names:
        asked = f"no array {name!r}" if name else "which array?"
        raise NeuroreconError(f"{file}: {asked}; name one as FILE:NAME, there are {', '.join(names) or 'none'}")
    return name


def _stacked(value: np.ndarray, where: str) -> np.ndarray:
    """A cell array of equal arrays as one array, cell axes first."""
    if value.dtype != object:
        return value
    parts = [_stacked(np.asarray(part), where) for part in value.ravel()]
    shapes = {part.shape for part in parts}
    if len(shapes) != 1:
        raise NeuroreconError(f"{where}: expected cells of one shape, found {sorted(shapes)[:3]}")
    return np.stack(parts).reshape(value.shape + parts[0].shape)


def _real(array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype.kind not in "fiub":
        raise NeuroreconError(f"{where}: expected an array of real numbers, found dtype {array.dtype}")
    return array


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
