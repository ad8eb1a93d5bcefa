"""Feeds mutated published checkpoints to `load_published` and counts what comes out.

    python -m benchmarks.fuzz_checkpoints [--num_files 10000] [--seed 0] [--checkpoint FILE.pth]

Every file must load or raise the one-line NeuroreconError; anything else, a system call that the file asked
for, or a growth of memory beyond a bound is a failure and exits with status 1. Half of the mutations damage
the file blindly (checksums catch most), half damage the pickle and the directory and mend the checksums, so
that the interpreter itself is reached. Takes about two minutes for 10,000 files on two cores.
"""

import collections
import io
import itertools
import pickletools
import random
import resource
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags

from neurorecon.encoders.dwiseneuro import DwiseNeuro
from neurorecon.encoders.published import export_published, load_published
from neurorecon.errors import NeuroreconError

MAX_GROWTH_MB = 300
# What a pickle that runs code would end in; Python reports these to audit hooks.
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
    "os.remove",
    "exec",
)
HOSTILE = (
    b"cos\nsystem\nX\x02\x00\x00\x00id\x85R",
    b"cbuiltins\neval\nX\x01\x00\x00\x001\x85R",
    b"csubprocess\nPopen\nX\x02\x00\x00\x00id\x85R",
    b"cposix\nsystem\n",
    b"cnumpy\nload\n",
    b"(S'id'\nios\nsystem\n",
)


def small_checkpoint(path: Path, seed: int) -> None:
    """Writes a checkpoint of a tiny random DwiseNeuro."""
    encoder = DwiseNeuro(
        num_neurons=(3,),
        canvas=(8, 8),
        window_frames=4,
        core_features=(4, 6),
        spatial_strides=(2, 1),
        expansion_ratio=2,
        se_reduce_ratio=2,
        cortex_features=(8,),
    )
    inputs = jnp.zeros((1, encoder.window_frames, *encoder.canvas, encoder.in_channels))
    export_published(encoder, jax.jit(encoder.init)(jax.random.key(seed), inputs), path)


def mutate(original: bytes, rng: random.Random) -> bytes:
    """One random mutation of a checkpoint's bytes."""
    blind: list[Callable[[bytes, random.Random], bytes]] = [_flip, _truncate, _splice, _numbers]
    if rng.random() < 0.5:
        return rng.choice(blind)(original, rng)
    return _mend(original, rng, rng.choice([_flip, _truncate, _splice, _numbers, _opcodes, _hostile, _hostile, _deep]))


def _flip(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _splice(data: bytes, rng: random.Random) -> bytes:
    """Removes, repeats or moves a piece."""
    start = rng.randrange(len(data))
    piece = data[start : start + rng.choice([1, 7, 100, 5000])]
    where = rng.randrange(len(data))
    return data[:where] + piece * rng.choice([0, 1, 2, 50]) + data[where + rng.choice([0, len(piece)]) :]


def _numbers(data: bytes, rng: random.Random) -> bytes:
    """Overwrites a few bytes with a number at a boundary."""
    number = rng.choice([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1])
    piece = struct.pack("<Q", number)[: rng.choice([2, 4, 8])]
    where = rng.randrange(len(data))
    return data[:where] + piece + data[where + len(piece) :]


def _opcodes(data: bytes, rng: random.Random) -> bytes:
    """Replaces, removes or repeats whole opcodes."""
    places = [position for _, _, position in pickletools.genops(data)] + [len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(places)]
    for _ in range(rng.choice([1, 1, 3])):
        i, j = rng.randrange(len(pieces)), rng.randrange(len(pieces))
        pieces[i] = rng.choice([b"", pieces[j], pieces[i] * 2, bytes([rng.randrange(256)])])
    return b"".join(pieces)


def _hostile(data: bytes, rng: random.Random) -> bytes:
    places = [position for _, _, position in pickletools.genops(data)]
    where = rng.choice(places[1:])
    return data[:where] + rng.choice(HOSTILE) + data[where:]


def _deep(data: bytes, rng: random.Random) -> bytes:
    """Nesting and memo abuse in front of the rest: tuples of tuples, doubling tuples, endless lists."""
    bombs = (
        b")" + b"\x85" * 100_000 + b"0",
        b")q\x00" + b"h\x00h\x00\x86q\x00" * 5_000,
        b"]q\x00h\x00a" * 2_000,
        b"}" * 1_000_000,
        b"r\xff\xff\xff\xff",
    )
    return data[:2] + rng.choice(bombs) + data[2:]


def _mend(original: bytes, rng: random.Random, change: Callable[[bytes, random.Random], bytes]) -> bytes:
    """Changes one member and writes the zip anew, with sizes and checksums that fit."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(original)) as source,
        zipfile.ZipFile(out, "w", rng.choice([0, 0, 0, 8])) as target,
    ):
        names = source.namelist()
        pickled = next(name for name in names if name.endswith("data.pkl"))
        structured = change in (_opcodes, _hostile, _deep) or rng.random() < 0.8
        victim = pickled if structured else rng.choice(names)
        for name in names:
            content = source.read(name)
            if name == victim and content:
                content = change(content, rng)
            target.writestr(name, content)
    return out.getvalue()


def fuzz(original: bytes, num_files: int, seed: int) -> tuple[collections.Counter, list[str]]:
    """Counts by outcome, and the failures in words; the audit hook stays in place, as Python's hooks do."""
    asked: list[str] = []
    watching = [False]
    sys.addaudithook(lambda event, _: asked.append(event) if watching[0] and event.startswith(FORBIDDEN) else None)
    outcomes: collections.Counter = collections.Counter()
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutated.pth"
        path.write_bytes(original)
        load_published(path)  # what the first load imports is not the files' doing
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for i in range(num_files):
            path.unlink()  # a new file each time: an earlier one may still be mapped
            path.write_bytes(mutate(original, random.Random(f"{seed}-{i}")))
            started = time.monotonic()
            try:
                watching[0] = True
                load_published(path)
                outcomes["loaded"] += 1
            except NeuroreconError as error:
                outcomes["refused"] += 1
                if "\n" in str(error) or len(str(error)) > 1000:
                    failures.append(f"file {i}: the error is not one line")
            except BaseException as error:
                failures.append(f"file {i}: {type(error).__name__}: {str(error)[:200]}")
            finally:
                watching[0] = False
            if time.monotonic() - started > 5:
                failures.append(f"file {i}: took {time.monotonic() - started:.1f} s")
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    outcomes["peak memory growth, MB"] = round(grown)
    if grown > MAX_GROWTH_MB:
        failures.append(f"memory grew by {grown:.0f} MB")
    failures += [f"a file led to {event}" for event in sorted(set(asked))]
    return outcomes, failures


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(flags.FLAGS.checkpoint or Path(folder) / "small.pth")
        if not flags.FLAGS.checkpoint:
            small_checkpoint(path, flags.FLAGS.seed)
        original = path.read_bytes()
    started = time.monotonic()
    outcomes, failures = fuzz(original, flags.FLAGS.num_files, flags.FLAGS.seed)
    for name, count in outcomes.items():
        print(f"{name}: {count}")
    print(f"failures: {len(failures)}; {time.monotonic() - started:.0f} s")
    for failure in failures[:20]:
        print(failure)
    sys.exit(bool(failures))


if __name__ == "__main__":
    flags.DEFINE_integer("num_files", 10_000, "mutated files", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "seed of the mutations")
    flags.DEFINE_string("checkpoint", None, "file to mutate; a small random encoder's by default")
    app.run(main)
