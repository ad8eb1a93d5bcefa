"""Reads the pickle of a PyTorch checkpoint by interpreting it: nothing of the file is imported or called.

Only the opcodes that PyTorch emits for dictionaries of numbers, strings and tensors are known, and only the
globals that tensors need; anything else is refused by name. Opcodes: CPython's `pickletools`, protocol 2.
"""

import os
import struct
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from neurorecon.encoders.published_archive import Archive

# A tensor may repeat its storage (stride 0); all tensors together may not outgrow the file by more than this.
MAX_GROWTH, GROWTH_SLACK = 8, 16 * 2**20
MAX_DIMENSIONS = 16
# A byte of pickle can make an object of 70 bytes; the published encoder, 400 tensors, has 50 kB of pickle.
MAX_PICKLE = 2**20
_STORAGES = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
_CALLABLES = (
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
)
_NAMES = {
    0x28: "MARK", 0x29: "EMPTY_TUPLE", 0x2E: "STOP", 0x47: "BINFLOAT", 0x4A: "BININT", 0x4B: "BININT1",
    0x4D: "BININT2", 0x4E: "NONE", 0x51: "BINPERSID", 0x52: "REDUCE", 0x58: "BINUNICODE", 0x5D: "EMPTY_LIST",
    0x61: "APPEND", 0x62: "BUILD", 0x63: "GLOBAL", 0x65: "APPENDS", 0x68: "BINGET", 0x6A: "LONG_BINGET",
    0x71: "BINPUT", 0x72: "LONG_BINPUT", 0x73: "SETITEM", 0x74: "TUPLE", 0x75: "SETITEMS", 0x7D: "EMPTY_DICT",
    0x80: "PROTO", 0x85: "TUPLE1", 0x86: "TUPLE2", 0x87: "TUPLE3", 0x88: "NEWTRUE", 0x89: "NEWFALSE", 0x8A:
"LONG1", }  # fmt: skip


class _Global:
    """A global of the allow-list, by name; never the thing itself."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class _Refused(Exception):
    """Why the pickle is refused; becomes the user's error, which names the file."""


def read_checkpoint(path: str | os.PathLike) -> Any:
    """The object in a `.pth` file: dicts, lists, tuples, numbers, strings; tensors as read-only NumPy views.

    bfloat16 tensors have ml_dtypes' bfloat16; big-endian files give arrays of that byte order.

    Raises:
      NeuroreconError: the file can't be read, is damaged, or holds anything but the above; one line.
    """
    archive = Archive(path)
    order = bytes(archive.read("byteorder")[:16]) if "byteorder" in archive else b"little"
    if order not in (b"little", b"big"):
        raise archive.damaged("expected the byte order little or big")
    storages: dict[tuple[str, np.dtype], np.ndarray] = {}

    def storage(dtype: np.dtype, key: str, count: int) -> np.ndarray:
        if (key, dtype) not in storages:
            content = archive.read(f"data/{key}")
            if len(content) != count * dtype.itemsize:
                raise _Refused(f"storage {_shown(key)} has {len(content)} bytes, {_shown(count)} {dtype} declared")
            if order == b"big" and dtype.itemsize > 1:
                # bfloat16 has no byte-swapped dtype, so the bytes themselves are turned.
                swapped = np.frombuffer(content, f"u{dtype.itemsize}").byteswap()
                storages[key, dtype] = swapped.view(dtype)
            else:
                storages[key, dtype] = np.frombuffer(content, dtype)
        found = storages[key, dtype]
        if len(found) != count:
            raise _Refused(f"storage {_shown(key)} is declared with two sizes")
        return found

    data = archive.read("data.pkl")
    if len(data) > MAX_PICKLE:
        raise archive.damaged(f"its pickle has {len(data)} bytes, more than the {MAX_PICKLE} allowed")
    interpreter = _Interpreter(data, storage, archive.size * MAX_GROWTH + GROWTH_SLACK)
    try:
        return interpreter.run()
    except _Refused as error:
        raise archive.damaged(str(error)) from None
    except (struct.error, IndexError, UnicodeDecodeError):
        raise archive.damaged("its pickle is truncated or broken") from None


class _Interpreter:
    """A pickle machine: a stack and a memo, no recursion, no call into anything that the file names."""

    def __init__(self, data: memoryview, storage: Callable[[np.dtype, str, int], np.ndarray], max_bytes: int):
        self.data = data
        self.storage = storage
        self.bytes_left = max_bytes
        self.position = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        if bytes(self.data[:1]) != b"\x80":
            raise _Refused("its pickle doesn't start with a protocol")
        while True:
            opcode = self.take(1)[0]
            name = _NAMES.get(opcode)
            if name is None:
                raise _Refused(f"its pickle holds the opcode 0x{opcode:02x}, which no tensor needs")
            if name == "STOP":
                if len(self.stack) != 1 or self.marks:
                    raise _Refused("its pickle ends with a disordered stack")
                return self.stack[0]
            self.step(name)

    def step(self, name: str) -> None:
        push, pop = self.stack.append, self.pop
        match name:
            case "PROTO":
                if (version := self.take(1)[0]) not in (2, 3):
                    raise _Refused(f"expected pickle protocol 2 or 3, found {version}")
            case "MARK":
                self.marks.append(len(self.stack))
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "BINFLOAT":
                push(self.unpack({"BININT": "<i", "BININT1": "<B", "BININT2": "<H", "BINFLOAT": ">d"}[name]))
            case "LONG1":
                length = self.take(1)[0]
                if length > 8:
                    raise _Refused(f"its pickle holds a whole number of {length} bytes")
                push(int.from_bytes(self.take(length), "little", signed=True))
            case "BINUNICODE":
                push(str(self.take(self.unpack("<I")), "utf-8"))
            case "EMPTY_TUPLE":
                push(())
            case "EMPTY_LIST":
                push([])
            case "EMPTY_DICT":
                push({})
            case "TUPLE":
                push(tuple(self.pop_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [pop() for _ in range(int(name[-1]))]
                push(tuple(items[::-1]))
            case "APPEND":
                item = pop()
                self.top(list).append(item)
            case "APPENDS":
                items = self.pop_mark()
                self.top(list).extend(items)
            case "SETITEM":
                value, key = pop(), pop()
                self.set_items([key, value])
            case "SETITEMS":
                self.set_items(self.pop_mark())
            case "BINPUT" | "LONG_BINPUT":
                self.memo[self.unpack("<B" if name == "BINPUT" else "<I")] = self.top(object)
            case "BINGET" | "LONG_BINGET":
                index = self.unpack("<B" if name == "BINGET" else "<I")
                if index not in self.memo:
                    raise _Refused("its pickle recalls what it never kept")
                push(self.memo[index])
            case "GLOBAL":
                push(_Global(self.allowed(f"{self.line()}.{self.line()}")))
            case "BINPERSID":
                push(self.persistent(pop()))
            case "REDUCE":
                arguments, function = pop(), pop()
                push(self.call(function, arguments))
            case "BUILD":
                # The attributes of an OrderedDict (PyTorch's `_metadata`): the weights don't need them.
                pop()
                self.top(dict)

    def take(self, size: int) -> memoryview:
        if self.position + size > len(self.data):
            raise _Refused("its pickle is truncated")
        self.position += size
        return self.data[self.position - size : self.position]

    def unpack(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def line(self) -> str:
        line = bytes(self.data[self.position : self.position + 256])
        end = line.find(b"\n")
        if end < 0:
            raise _Refused("its pickle holds an overlong name")
        self.position += end + 1
        return line[:end].decode("utf-8")

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise _Refused("its pickle takes more from the stack than is there")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise _Refused("its pickle lacks a mark")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def top(self, kind: type) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0) or not isinstance(self.stack[-1], kind):
            raise _Refused(f"its pickle expects a {kind.__name__} on the stack")
        return self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise _Refused("its pickle sets a key without a value")
        for key, value in zip(items[::2], items[1::2]):
            # Strings and whole numbers only: hashing nested tuples could take forever.
            if type(key) not in (str, int):
                raise _Refused(f"its pickle has a dictionary key of type {type(key).__name__}")
            target[key] = value

    def allowed(self, name: str) -> str:
        if name not in _STORAGES and name not in _CALLABLES:
            raise _Refused(f"it asks for {_shown(name)}, which no tensor needs; refused, nothing of it was run")
        return name

    def persistent(self, identity: Any) -> np.ndarray:
        match identity:
            case (str(kind), _Global(name=name), str(key), str(), int(count)) if (
                kind == "storage" and name in _STORAGES
            ):
                return self.storage(_STORAGES[name], key, count)
        raise _Refused("its pickle holds a persistent id that is no storage")

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise _Refused("its pickle calls something that is no function")
        match function.name, arguments:
            case "collections.OrderedDict", ():
                return {}
            case "torch.Size", (tuple(sizes),):
                return sizes
            case "torch._utils._rebuild_parameter", (np.ndarray() as array, bool(), dict()):
                return array
            case "torch._utils._rebuild_tensor_v2", (
                np.ndarray() as storage,
                int(offset),
                tuple(),
                tuple(),
                *_,
            ):
                return self.tensor(storage, offset, arguments[2], arguments[3])
        raise _Refused(f"its pickle calls {function.name} with unexpected arguments")

    def tensor(self, storage: np.ndarray, offset: int, shape: tuple, strides: tuple) -> np.ndarray:
        numbers = (offset, *shape, *strides)
        if storage.ndim != 1 or len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
            raise _Refused("a tensor's shape and strides don't fit together")
        if any(type(n) is not int or n < 0 or n > 2**48 for n in numbers):
            raise _Refused("a tensor's offset, shape or strides are not whole numbers within bounds")
        size = 1
        for n in shape:
            size *= n
        self.bytes_left -= size * storage.itemsize
        if self.bytes_left < 0:
            raise _Refused("its tensors claim far more than the file holds")
        if size == 0:
            return np.empty(shape, storage.dtype)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
        if last >= len(storage):
            raise _Refused(f"a tensor reaches element {last} of a storage of {len(storage)}")
        steps = tuple(stride * storage.itemsize for stride in strides)
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


def _shown(value: Any) -> str:
    """A short form for messages; never walks a nested value."""
    if isinstance(value, str):
        return repr(value[:60])
    return str(value) if isinstance(value, int) and abs(value) < 2**64 else type(value).__name__
