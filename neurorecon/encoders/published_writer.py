"""Writes checkpoints in PyTorch's zip layout, without PyTorch, for published code to load."""

import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from neurorecon.files import atomic_path

_STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
}


def write_checkpoint(path: str | os.PathLike, value: Any) -> None:
    """Writes nested dicts, tuples, lists, strings, numbers and NumPy arrays (as tensors), atomically.

    The file loads with `torch.load(path, weights_only=True)`. Arrays are written contiguous, little-endian.

    Raises:
      TypeError: a value of another type, or a dtype that PyTorch lacks.
      NeuroreconError: the file can't be written.
    """
    arrays: list[np.ndarray] = []
    pickled = b"\x80\x02" + _pickled(value, arrays) + b"."
    root = Path(path).stem
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:

        def member(name: str, content: bytes | memoryview) -> None:
            # A fixed date: equal weights give equal files.
            archive.writestr(zipfile.ZipInfo(f"{root}/{name}"), content)

        member("data.pkl", pickled)
        member("byteorder", b"little")
        for key, array in enumerate(arrays):
            member(f"data/{key}", array.tobytes())
        member("version", b"3\n")


def _pickled(value: Any, arrays: list[np.ndarray]) -> bytes:
    """Opcodes (protocol 2) that push `value`; an array's index in `arrays` is its storage's key."""
    if value is None or isinstance(value, bool):
        return b"N" if value is None else b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        encoded = value.encode()
        return b"X" + struct.pack("<I", len(encoded)) + encoded
    if isinstance(value, tuple):
        return b"(" + b"".join(_pickled(v, arrays) for v in value) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(_pickled(v, arrays) for v in value) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_pickled(v, arrays) for item in value.items() for v in item) + b"u"
    if isinstance(value, np.ndarray) and value.dtype.name in _STORAGES:
        return _pickled_tensor(value, arrays)
    raise TypeError(f"a checkpoint can't hold {type(value).__name__} {getattr(value, 'dtype', '')}")


def _pickled_tensor(array: np.ndarray, arrays: list[np.ndarray]) -> bytes:
    array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    arrays.append(array)
    storage = (
        b"("
        + _pickled("storage", arrays)
        + b"ctorch\n"
        + _STORAGES[array.dtype.name].encode()
        + b"\n"
        + _pickled(str(len(arrays) - 1), arrays)
        + _pickled("cpu", arrays)
        + _pickled(array.size, arrays)
        + b"tQ"
    )
    strides = tuple(s // array.itemsize for s in array.strides)
    layout = _pickled(0, arrays) + _pickled(array.shape, arrays) + _pickled(strides, arrays)
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + layout + hooks + b"tR"
