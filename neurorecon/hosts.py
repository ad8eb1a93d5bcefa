"""One job over several hosts: processes of one program that know of each other (`jax.distributed`).

The mesh spans the devices of all processes. Each puts its own part of every array on its own devices; what one process
alone may do (write files) is done by the first, and the others are told what came out. What goes wrong in one is told
to all, so that none waits for a process that has given up.
"""

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from neurorecon.errors import NeuroreconError

T = TypeVar("T")
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_MESSAGE_BYTES = 8192  # of one message, and the first part of a longer one: one shape, so that telling compiles once
_LENGTH_BYTES = 8
_ERROR_BYTES = 2048
_PATIENCE_MS = 24 * 3600 * 1000  # for what the first process does alone, such as preparing large recordings


def join(hosts: str) -> None:
    """Joins the other processes; to be called before JAX touches a device.

    Args:
      hosts: "": this process is alone. "auto": SLURM, TPU pods, Kubernetes and Open MPI tell where the others are;
        elsewhere the environment does, by `VARIABLES`: HOST:PORT of process 0, how many processes, which of them.

    Raises:
      NeuroreconError: another value, variables that make no sense, or nobody to join.
    """
    if not hosts:
        return
    if hosts != "auto":
        raise NeuroreconError(f"--config.hosts: expected '' or 'auto', found {hosts!r}")
    given = _from_environment(os.environ)
    try:
        jax.distributed.initialize(shutdown_timeout_seconds=60, **given)
    except (ValueError, RuntimeError, OSError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NeuroreconError(
            f"--config.hosts=auto: expected processes to join, by the cluster or by {', '.join(VARIABLES)} in the "
            f"environment, found none ({line}); see docs/clusters.md"
        ) from error


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of `jax.distributed.initialize`; none where the variables are not there and the cluster knows."""
    if not any(environment.get(name) for name in VARIABLES[1:]):
        return {}
    for name in VARIABLES:
        if not environment.get(name):
            raise NeuroreconError(f"{name}: expected it in the environment beside the other two, found none; set it")
    address = environment[VARIABLES[0]]
    if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdigit():
        raise NeuroreconError(f"{VARIABLES[0]}: expected HOST:PORT, found {address!r}")
    try:
        number, index = (int(environment[name]) for name in VARIABLES[1:])
    except ValueError:
        number, index = 0, 0
    if not 0 <= index < number:
        raise NeuroreconError(
            f"{VARIABLES[1]}, {VARIABLES[2]}: expected a number of processes and one of 0, 1, ... below it, "
            f"found {environment[VARIABLES[1]]!r} and {environment[VARIABLES[2]]!r}"
        )
    return {
        "coordinator_address": address,
        "num_processes": number,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }


def several() -> bool:
    """Whether this process has joined others."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes; so is one that is alone."""
    return jax.process_index() == 0


def expect_joined(hosts: str) -> None:
    """For what runs on several hosts, and for what must not where others were asked for.

    Raises:
      NeuroreconError: several hosts were asked for, and this process has not joined any.
    """
    if hosts and not jax.distributed.is_initialized():
        raise NeuroreconError(
            "--config.hosts: expected '' here, since experiments.train and experiments.reconstruct alone run on "
            f"several hosts, found {hosts!r}; make encoders and movies with them first"
        )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """For what all processes do alike: what is printed inside is printed by the first alone.

    Raises:
      NeuroreconError: in a process that several have joined, where JAX lost one of them.
    """
    unheard = contextlib.nullcontext() if is_first() else contextlib.redirect_stdout(io.StringIO())
    try:
        with unheard:
            yield
    except jax.errors.JaxRuntimeError as error:
        if not several():
            raise
        raise NeuroreconError(
            f"process {jax.process_index()} of {jax.process_count()}: a step failed here, or the process of another "
            f"host was lost ({_line(error)[:200]}); the same command goes on where it was"
        ) from error


def from_first(function: Callable[[], Any]) -> Any:
    """What `function()` returns in the first process, where alone it is called; the others wait, however long.

    Args:
      function: returns what JSON can hold.

    Raises:
      NeuroreconError: in every process, where the first raised it; in the others also for what else the first raised.
    """
    if not several():
        return function()
    message, failed = "", None
    if is_first():
        try:
            message = json.dumps({"value": function()})
        except Exception as error:
            message, failed = json.dumps({"error": _line(error)}), error
    told = json.loads(_bytes_from_first(message.encode()))
    if failed is not None:
        raise failed
    if "error" in told:
        raise NeuroreconError(told["error"])
    return told["value"]


def arrays_from_first(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The first process's named arrays, to the bit, in every process; what the others give does not matter."""
    if not several():
        return dict(arrays)
    packed = io.BytesIO()
    if is_first():
        np.savez(packed, **arrays)  # type: ignore[arg-type]
    with np.load(io.BytesIO(_bytes_from_first(packed.getvalue())), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def agreed(function: Callable[[], T]) -> T:
    """What `function()` returns in this process; all call it, and none goes on where it failed in one.

    Raises:
      NeuroreconError: in every process, where one raised it, or anything else.
    """
    if not several():
        return function()
    failed: Exception | None = None
    try:
        value = function()
    except Exception as error:
        failed = error
    message = b"" if failed is None else _line(failed).encode()[:_ERROR_BYTES]
    _meet()
    told = multihost_utils.process_allgather(np.frombuffer(message.ljust(_ERROR_BYTES, b"\0"), np.uint8))
    if failed is not None:
        raise failed
    for process, line in enumerate(np.asarray(told).astype(np.uint8)):
        if line.any():
            text = line.tobytes().rstrip(b"\0").decode(errors="ignore")
            raise NeuroreconError(f"process {process} of {jax.process_count()}: {text}")
    return value


def after_first(function: Callable[[], T]) -> T:
    """What `function()` returns in this process; the others call it when the first has, and find what it has written.

    Raises:
      NeuroreconError: as `agreed`.
    """
    found: list[T] = []

    def first() -> None:
        found.append(function())

    from_first(first)
    return agreed(lambda: found[0] if found else function())


def _meet() -> None:
    """Waits for all. Collectives of devices can run out of time, which is no matter right after this."""
    ocp.multihost.get_barrier_sync_fn()(key="from_first", timeout_ms=_PATIENCE_MS)


def _bytes_from_first(data: bytes) -> bytes:
    """The first process's bytes; what the others give does not matter."""
    _meet()
    first = len(data).to_bytes(_LENGTH_BYTES, "little") + data[: _MESSAGE_BYTES - _LENGTH_BYTES]
    head = _padded_from_first(first, _MESSAGE_BYTES)
    length = int.from_bytes(head[:_LENGTH_BYTES], "little")
    start, rest = head[_LENGTH_BYTES:][:length], length - (_MESSAGE_BYTES - _LENGTH_BYTES)
    if rest <= 0:
        return start
    # A power of two, so that few lengths are compiled.
    return start + _padded_from_first(data[len(start) :] if is_first() else b"", 1 << (rest - 1).bit_length())[:rest]


def _padded_from_first(data: bytes, size: int) -> bytes:
    padded = np.frombuffer(data.ljust(size, b"\0"), np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes()


def _line(error: Exception) -> str:
    """One line; of what is not meant for users, what it was too."""
    text = " ".join(str(error).split())
    return text if isinstance(error, NeuroreconError) else f"{type(error).__name__}: {text}"


def same(tree: Any) -> Any:
    """The first process's arrays of a tree, in every process, as NumPy arrays; all must have the same shapes."""
    return multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, tree)) if several() else tree


def placed(tree: Any, sharding: NamedSharding) -> Any:
    """Puts a tree of arrays, the same in every process, where `sharding` says; each process puts its own part."""

    def one(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)  # from one place on the mesh to another
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        values = np.asarray(x)
        values = values.astype(jax.dtypes.canonicalize_dtype(values.dtype), copy=False)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(one, tree) if several() else jax.device_put(tree, sharding)


def gathered(tree: Any) -> Any:
    """The whole of arrays that lie on several hosts, as NumPy arrays in each process; all must call it."""

    def one(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
            return np.asarray(multihost_utils.process_allgather(x, tiled=True))
        return np.asarray(x)

    return jax.tree.map(one, tree)
