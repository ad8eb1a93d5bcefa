"""One training over several hosts: processes of one program that know of each other (`jax.distributed`).

The mesh spans the devices of all processes. Each puts its own part of every array on its own devices; what one process
alone may do (write files) is done by the first, and the others are told what came out.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from neurorecon.errors import NeuroreconError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_MESSAGE_BYTES = 8192  # one shape, so that telling compiles once
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


def from_first(function: Callable[[], Any]) -> Any:
    """What `function()` returns in the first process, where alone it is called; the others wait, however long.

    Args:
      function: returns what JSON can hold, in at most 8,000 characters.

    Raises:
      NeuroreconError: in every process, where the first raised it.
    """
    if not several():
        return function()
    told: dict[str, Any] = {}
    if is_first():
        try:
            told = {"value": function()}
        except NeuroreconError as error:
            told = {"error": str(error)[:4000]}
    message = json.dumps(told).encode()
    if len(message) > _MESSAGE_BYTES:
        raise ValueError(f"from_first: expected at most {_MESSAGE_BYTES} bytes, found {len(message)}")
    # A barrier first: collectives of devices can run out of time, which is no matter for short ones alone.
    ocp.multihost.get_barrier_sync_fn()(key="from_first", timeout_ms=_PATIENCE_MS)
    padded = np.frombuffer(message.ljust(_MESSAGE_BYTES), np.uint8)
    told = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes())
    if "error" in told:
        raise NeuroreconError(told["error"])
    return told["value"]


def same(tree: Any) -> Any:
    """The first process's arrays of a tree, in every process, as NumPy arrays; all must have the same shapes."""
    return multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, tree)) if several() else tree


def placed(tree: Any, sharding: NamedSharding) -> Any:
    """Puts a tree of arrays, the same in every process, where `sharding` says; each process puts its own part."""

    def one(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)  # from one place on the mesh to another
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(x)))
        values = np.asarray(x)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(one, tree) if several() else jax.device_put(tree, sharding)


def gathered(tree: Any) -> Any:
    """The whole of arrays that lie on several hosts, as NumPy arrays in each process; all must call it."""

    def one(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
            return np.asarray(multihost_utils.process_allgather(x, tiled=True))
        return np.asarray(x)

    return jax.tree.map(one, tree)
