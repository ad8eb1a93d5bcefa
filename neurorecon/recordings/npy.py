"""Reading `.npy` files that come from elsewhere: no code runs, and every fault is one line."""

import math
import os
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from neurorecon.errors import NeuroreconError

# What a broken header, a foreign pickle or an unreadable file can raise while it is being read.
_READ_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


def read_header(path: str | os.PathLike) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of a `.npy` file, without reading the numbers.

    Raises:
      NeuroreconError: the file is missing, no `.npy`, or shorter than its header says.
    """
    with _opened(path) as handle:
        shape, _, dtype = _header(path, handle)
    return shape, dtype


def load_numbers(path: str | os.PathLike, *, mapped: bool = False) -> np.ndarray:
    """Loads a `.npy` file of real numbers; `mapped` maps it into memory, read-only, in place of reading it.

    Raises:
      NeuroreconError: the file is missing, no `.npy`, shorter than its header says, or not of real numbers.
    """
    with _opened(path) as handle:
        shape, fortran, dtype = _header(path, handle)
        if dtype.kind not in "fiub":
            raise NeuroreconError(f"{path}: expected an array of real numbers, found dtype {dtype}; save it as float32")
        order: Any = "F" if fortran else "C"
        count = math.prod(shape)
        try:
            if mapped and count:
                offset = handle.tell()
                return np.asarray(np.memmap(path, dtype, "r", offset, shape, order))
            return np.fromfile(handle, dtype=dtype, count=count).reshape(shape, order=order)
        except _READ_ERRORS as error:
            raise NeuroreconError(f"{path}: can't be read ({_one_line(error)}); copy it again") from error


def load_strings(path: str | os.PathLike) -> list[str]:
    """Loads a one-dimensional `.npy` file of strings: unicode, bytes, or an object array (a pickle) of them.

    The pickle of an object array is read by an unpickler that knows numpy's array, dtype and scalar only,
    each replaced by an inert stand-in, so that nothing in the file can run or reach numpy's internals.

    Raises:
      NeuroreconError: the file is missing, damaged, not one-dimensional, or holds anything but strings.
    """
    with _opened(path) as handle:
        shape, _, dtype = _header(path, handle)
        if len(shape) != 1:
            raise NeuroreconError(f"{path}: expected one string per trial, found an array of shape {shape}")
        try:
            if dtype.hasobject:
                values = _unpickle_objects(path, handle)
            elif dtype.kind in "US":
                values = np.fromfile(handle, dtype=dtype, count=shape[0]).tolist()
            else:
                raise NeuroreconError(f"{path}: expected strings, found dtype {dtype}")
            texts = [v.decode("utf-8") if isinstance(v, bytes) else v for v in values]
        except NeuroreconError:
            raise
        except _READ_ERRORS as error:
            raise NeuroreconError(f"{path}: can't be read ({_one_line(error)}); copy it again") from error
    for text in texts:
        if not isinstance(text, str):
            raise NeuroreconError(f"{path}: expected strings, found an object of type {type(text).__name__}")
    if len(texts) != shape[0]:
        raise NeuroreconError(f"{path}: its header promises {shape[0]} strings, found {len(texts)}")
    return texts


def _opened(path: str | os.PathLike) -> BinaryIO:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise NeuroreconError(f"{path}: no such file") from None
    except OSError as error:
        raise NeuroreconError(f"{path}: can't be opened ({error.strerror or error})") from error


def _header(path: str | os.PathLike, handle: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads the header and checks it against the size of the file, so that no absurd array is allocated."""
    try:
        version = np.lib.format.read_magic(handle)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(handle)
        elif version in (
            (2, 0),
            (3, 0),
        ):  # they differ in the encoding of field names only, which we don't read
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(handle)
        else:
            raise ValueError(f"unknown version {version}")
        size = os.fstat(handle.fileno()).st_size - handle.tell()
    except _READ_ERRORS as error:
        message = f"{path}: expected a .npy array, but it can't be read ({_one_line(error)}); copy it again"
        raise NeuroreconError(message) from error
    expected = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and size < expected:
        raise NeuroreconError(f"{path}: cut short: {expected} bytes of numbers expected, {size} found; copy it again")
    return shape, fortran, dtype


def _unpickle_objects(path: str | os.PathLike, handle: BinaryIO) -> list[Any]:
    """The elements of a pickled one-dimensional object array of strings."""
    # The stand-ins are made anew for each file: a pickle that scribbles on them can't reach the next one.

    class Dtype:
        def __init__(self, code: str = "", *_: Any) -> None:
            self.code, self.order = str(code), "<"

        def __setstate__(self, state: tuple) -> None:
            self.order = state[1]

    class Array:
        def __init__(self) -> None:
            self.elements: Any = None

        def __setstate__(self, state: tuple) -> None:
            self.elements = state[4]

    def reconstruct(*_: Any) -> Array:
        return Array()

    def scalar(dtype: Dtype, data: bytes = b"") -> str | bytes:
        if dtype.code[:1] == "U":
            text = data.decode("utf-32-be" if dtype.order == ">" else "utf-32-le")
            return text.rstrip("\0")
        if dtype.code[:1] == "S":
            return bytes(data).rstrip(b"\0")
        raise ValueError(f"a scalar of dtype {dtype.code!r} is no string")

    def encode(text: str, encoding: str = "latin1") -> bytes:  # how protocols before 3 store bytes
        if encoding != "latin1":
            raise ValueError(f"bytes in encoding {encoding!r}")
        return text.encode("latin1")

    known = {("numpy", "ndarray"): Array, ("numpy", "dtype"): Dtype, ("_codecs", "encode"): encode}
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        known[module, "_reconstruct"] = reconstruct
        known[module, "scalar"] = scalar

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            try:
                return known[module, name]
            except KeyError:
                raise NeuroreconError(
                    f"{path}: expected an array of strings, but its pickle asks for {module}.{name}; "
                    "refused, don't trust this file"
                ) from None

    array = Unpickler(handle).load()
    if not isinstance(array, Array) or not isinstance(array.elements, list):
        raise ValueError("its pickle is no array of objects")
    return array.elements


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def numbered_files(folder: Path) -> dict[int, Path]:
    """The files `N.npy` of a folder by N; hidden files are passed over.

    Raises:
      NeuroreconError: the folder is missing, holds a file of another name, or two files of one number.
    """
    try:
        names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    except FileNotFoundError:
        raise NeuroreconError(f"{folder}: no such folder") from None
    except OSError as error:
        raise NeuroreconError(f"{folder}: can't be listed ({error.strerror or error})") from error
    files: dict[int, Path] = {}
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        if dot != "." or suffix != "npy" or not (stem.isascii() and stem.isdigit()):
            raise NeuroreconError(f"{folder / name}: expected only files named N.npy here; move it elsewhere")
        number = int(stem)
        if number in files:
            raise NeuroreconError(
                f"{folder / name}: duplicate: {files[number].name} has the same number; remove one of the two"
            )
        files[number] = folder / name
    return files
