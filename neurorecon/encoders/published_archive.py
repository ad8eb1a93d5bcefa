"""The zip container of a PyTorch checkpoint: its members as views of the mapped file, nothing unpacked.

PyTorch writes its members uncompressed, so that what a file can make us hold is bounded by the file's own
size.
Layout: the ZIP specification (PKWARE APPNOTE), sections 4.3 and 4.5.3 (zip64).
"""

import mmap
import os
import struct
import zlib
from pathlib import Path

from neurorecon.errors import NeuroreconError

MAX_MEMBERS = 100_000
_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_END64, _LOCATOR64 = b"PK\x06\x06", b"PK\x06\x07"
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF


class Archive:
    """The members of a checkpoint file by name, without the name of the archive's root folder.

    Raises:
      NeuroreconError: the file is missing, truncated, not a zip of stored members, or inconsistent.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            with open(self.path, "rb") as handle:
                self.size = os.fstat(handle.fileno()).st_size
                if self.size < 22:
                    raise self.damaged(f"expected a zip of at least 22 bytes, found {self.size}")
                self._data = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise NeuroreconError(f"{self.path}: can't be read ({error.strerror or error})") from error
        if self._data[:4] != _LOCAL:
            hint = "; it looks like PyTorch's format before 1.6: load and save it with a newer PyTorch"
            old = bytes(self._data[:2]) in (b"\x80\x02", b"\x80\x03", b"\x80\x04")
            raise self.damaged("expected a zip, as PyTorch 1.6 and later write" + (hint if old else ""))
        try:
            self._members = self._directory()
        except (struct.error, UnicodeDecodeError) as error:
            raise self.damaged(f"the zip directory is broken ({error})") from error
        roots = {name.partition("/")[0] for name in self._members}
        if len(roots) != 1:
            raise self.damaged(f"expected one root folder in the zip, found {len(roots)}")
        root = roots.pop() + "/"
        self._members = {name.removeprefix(root): member for name, member in self._members.items()}

    def damaged(self, what: str) -> NeuroreconError:
        """The error that names this file."""
        return NeuroreconError(f"{self.path}: expected an undamaged published checkpoint (.pth), but {what}")

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def read(self, name: str) -> memoryview:
        """The bytes of a member, checked against its checksum."""
        if name not in self._members:
            raise self.damaged(f"expected the member {name[:60]!r}, found none")
        header, size, checksum = self._members[name]
        fields = self._bytes(header, 30)
        if fields[:4] != _LOCAL:
            raise self.damaged(f"the member {name[:60]!r} has no header where the directory says")
        name_length, extra_length = struct.unpack("<HH", fields[26:30])
        content = self._bytes(header + 30 + name_length + extra_length, size)
        if zlib.crc32(content) != checksum:
            raise self.damaged(f"the member {name[:60]!r} differs from its checksum")
        return content

    def _bytes(self, offset: int, size: int) -> memoryview:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise self.damaged(f"it is truncated: bytes up to {offset + size} expected, the file has {self.size}")
        return self._data[offset : offset + size]

    def _directory(self) -> dict[str, tuple[int, int, int]]:
        """name -> (offset of the local header, size, CRC-32)."""
        number, size, offset = self._directory_place()
        if number > MAX_MEMBERS:
            raise self.damaged(f"expected at most {MAX_MEMBERS} members, found {number}")
        directory = self._bytes(offset, size)
        members: dict[str, tuple[int, int, int]] = {}
        total = 0
        position = 0
        for _ in range(number):
            entry = struct.unpack("<4s6H3L5H2L", directory[position : position + 46])
            signature, flags, method = entry[0], entry[3], entry[4]
            checksum, packed, unpacked = entry[7:10]
            name_length, extra_length, comment_length, header = entry[10], entry[11], entry[12], entry[16]
            if signature != _CENTRAL:
                raise self.damaged("the zip directory is broken")
            start = position + 46
            name = str(directory[start : start + name_length], "utf-8")
            extra = directory[start + name_length : start + name_length + extra_length]
            unpacked, packed, header = _zip64_sizes(extra, unpacked, packed, header)
            if method != 0 or flags & 1 or packed != unpacked:
                raise self.damaged(
                    f"the member {name[:60]!r} is compressed or encrypted, PyTorch stores its members plainly"
                )
            if name in members:
                raise self.damaged(f"the member {name[:60]!r} appears twice")
            members[name] = (header, unpacked, checksum)
            total += unpacked
            position = start + name_length + extra_length + comment_length
        if total > self.size:
            raise self.damaged(f"its members claim {total} bytes, the file has {self.size}")
        return members

    def _directory_place(self) -> tuple[int, int, int]:
        """Number of members, size and offset of the central directory."""
        tail = bytes(self._data[-(22 + _FULL16) :])
        found = tail.rfind(_END)
        if found < 0:
            raise self.damaged("it is truncated: the zip's end record is missing")
        number, size, offset, comment = struct.unpack("<HLLH", tail[found + 10 : found + 22])
        if found + 22 + comment != len(tail):
            raise self.damaged("it is truncated or something follows the zip's end record")
        end = self.size - len(tail) + found
        if number == _FULL16 or _FULL32 in (size, offset):
            locator = self._bytes(end - 20, 20)
            if locator[:4] == _LOCATOR64:
                (place,) = struct.unpack("<Q", locator[8:16])
                record = self._bytes(place, 56)
                if record[:4] != _END64:
                    raise self.damaged("the zip64 end record is broken")
                number, size, offset = struct.unpack("<QQQ", record[32:56])
        return number, size, offset


def _zip64_sizes(extra: memoryview, unpacked: int, packed: int, header: int) -> tuple[int, int, int]:
    """Fills in the sizes that the zip64 extra field (id 1) holds in place of 0xFFFFFFFF."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack("<HH", extra[position : position + 4])
        if kind == 1:
            values = [unpacked, packed, header]
            start = position + 4
            for i, value in enumerate(values):
                if value == _FULL32:
                    (values[i],) = struct.unpack("<Q", extra[start : start + 8])
                    start += 8
            return values[0], values[1], values[2]
        position += 4 + length
    return unpacked, packed, header
