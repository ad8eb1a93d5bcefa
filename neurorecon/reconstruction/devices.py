"""A descent over several devices: clips, models and the windows of a model's step lie on different ones.

Every device runs the whole loop (`jax.shard_map`) for its own clips and models and its part of their windows. Gradients
of one movie are summed over devices once a step; what follows from the sum (the update) each works out for itself.
Where several hosts have joined (`hosts.join`), the devices are those of all of them, as many of each.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from neurorecon import hosts
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction.windows import WindowPlan

SHARDS = ("", "clips", "models", "windows", "auto")
_AXES = ("clip", "model", "window")


class Work(NamedTuple):
    """What one compiled descent has to do in a step.

    Attributes:
      clips: how many.
      models: encoders of each architecture.
      windows: that each of them looks at.
    """

    clips: int
    models: tuple[int, ...]
    windows: tuple[int, ...]


def descent_meshes(
    shard: str, works: Sequence[Work], devices: Sequence[Any] | None = None, processes: int | None = None
) -> list[Mesh | None]:
    """For each descent a mesh (clip, model, window) over devices; None where one does all.

    The devices are shared so that the busiest has the least to do; some stay idle where numbers don't divide.

    Args:
      shard: see `reconstruct_clips`.
      works: of each descent.
      devices: as many of each process, one process after another; by default those of all that have joined.
      processes: that have them, each of which gets as much to do as the others.

    Raises:
      NeuroreconError: an unknown `shard`, or one by which nothing is shared though there are several devices, or not
        by all processes.
    """
    if shard not in SHARDS:
        raise NeuroreconError(f"shard: expected one of {', '.join(map(repr, SHARDS))}, found {shard!r}")
    devices = _all_devices() if devices is None else devices
    processes = jax.process_count() if processes is None else processes
    if processes > 1 and not shard:
        raise NeuroreconError(
            f"shard: expected clips, models, windows or auto, which the {processes} hosts share, found ''"
        )
    splits = [_split(shard, work, len(devices), processes) if shard else (1, 1, 1) for work in works]
    if shard not in ("", "auto") and len(devices) > 1 and all(math.prod(split) == 1 for split in splits):
        raise NeuroreconError(
            f"shard: {len(devices)} devices can't share {shard}, of which there is one, or a prime number above them; "
            "use 'auto'"
        )
    return [
        Mesh(_first_of_each(devices, processes, split), _AXES, axis_types=(AxisType.Auto,) * 3)
        if math.prod(split) > 1
        else None
        for split in splits
    ]


def _all_devices() -> list[Any]:
    """As many of each process, one process after another."""
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    each = Counter(d.process_index for d in devices)
    if len(set(each.values())) > 1:
        raise NeuroreconError(f"shard: expected as many devices of each host, found {sorted(each.values())}")
    return devices


def _first_of_each(devices: Sequence[Any], processes: int, split: tuple[int, int, int]) -> np.ndarray:
    """The devices of a mesh of this shape: the first of each process, as many of each."""
    each, own = math.prod(split) // processes, len(devices) // processes
    chosen = [devices[process * own + place] for process in range(processes) for place in range(each)]
    return np.array(chosen).reshape(split)


def _split(shard: str, work: Work, number: int, processes: int) -> tuple[int, int, int]:
    """Devices along each axis. Clips and models are shared evenly; windows are filled up with empty ones."""

    def choices(name: str, total: int, *, evenly: bool) -> list[int]:
        if shard not in (name, "auto"):
            return [1]
        return [n for n in range(1, min(number, total) + 1) if not evenly or total % n == 0]

    def busiest(split: tuple[int, int, int]) -> tuple[int, int]:
        clips, models, windows = split
        of_models = sum(m // models * -(-w // windows) for m, w in zip(work.models, work.windows))
        return work.clips // clips * of_models, math.prod(split)

    splits = itertools.product(
        choices("clips", work.clips, evenly=True),
        choices("models", math.gcd(*work.models), evenly=True),
        choices("windows", max(work.windows), evenly=False),
    )
    # A process without a part could not take part at all.
    possible = [s for s in splits if math.prod(s) <= number and math.prod(s) % processes == 0]
    if not possible:
        raise NeuroreconError(
            f"shard: expected a multiple of the {processes} hosts among {work.clips} clips, "
            f"{math.gcd(*work.models)} models and {max(work.windows)} windows, as far as {shard!r} shares them, found "
            "none; use 'auto', or fewer hosts"
        )
    return min(possible, key=busiest)


def _specs(args: tuple, *, movies: bool) -> tuple[tuple, tuple]:
    """Where arguments and results of `loop.advance` lie; with a movie for each model, the movies are shared."""
    state, recorded = args[2], args[4]
    everywhere, by_clip = PartitionSpec(), PartitionSpec("clip")
    by_movie = PartitionSpec("model" if movies else None, "clip")
    by_model = PartitionSpec("model") if movies else PartitionSpec(None, "model")
    states = type(state)(everywhere, by_movie, by_movie, by_movie)
    clips = type(recorded)(by_clip, by_clip, by_clip, everywhere, by_clip, by_clip)
    return (everywhere, everywhere, states, by_model, clips, everywhere, everywhere), (states, by_movie)


def shared(mesh: Mesh | None, descend: Callable, *, movies: bool) -> Callable:
    """`descend`, with the arguments of `loop.advance`, on every device for its share; itself without a mesh."""
    if mesh is None:
        return descend

    def on_all(*args: Any) -> Any:
        given, made = _specs(args, movies=movies)
        return jax.shard_map(descend, mesh=mesh, in_specs=given, out_specs=made, check_vma=False)(*args)

    return on_all


def placed(mesh: Mesh | None, args: tuple, *, movies: bool) -> tuple:
    """The arguments of `loop.advance` where the devices want them, on several hosts each process's part by itself.

    The state is a copy, which may be given away: `device_put` may leave NumPy's or the caller's memory where it is.
    """
    if mesh is not None:
        is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
        where = jax.tree.map(lambda spec: NamedSharding(mesh, spec), _specs(args, movies=movies)[0], is_leaf=is_spec)
        if hosts.several():
            args = jax.tree.map(lambda sharding, part: hosts.placed(part, sharding), where, args)
        else:
            args = jax.device_put(args, where)
    return (*args[:2], _copied(args[2]), *args[3:])


@jax.jit
def _copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def own_windows(mesh: Mesh | None, plan: WindowPlan) -> WindowPlan:
    """This device's windows of the plan, as many as any other's: the last are empty where numbers don't divide."""
    if mesh is None or mesh.shape["window"] == 1:
        return plan
    number, devices = plan.frames.shape[0], mesh.shape["window"]
    each = -(-number // devices)

    def own(x: jax.Array) -> jax.Array:  # filled up with frame 0, neither valid nor inside the movie
        filled = jnp.pad(x, [(0, each * devices - number), *[(0, 0)] * (x.ndim - 1)])
        return lax.dynamic_slice_in_dim(filled, lax.axis_index("window") * each, each)

    return jax.tree.map(own, plan)


def gathered(mesh: Mesh | None, trace: dict[str, jax.Array], plan: WindowPlan, *, models: bool) -> dict[str, jax.Array]:
    """Traces (model, window) of all windows of the plan and, where `models` of one movie are shared, of all models."""
    if mesh is None:
        return trace
    if mesh.shape["window"] > 1:
        number = plan.frames.shape[0]
        trace = {k: lax.all_gather(v, "window", axis=1, tiled=True)[:, :number] for k, v in trace.items()}
    if models and mesh.shape["model"] > 1:
        trace = {k: lax.all_gather(v, "model", axis=0, tiled=True) for k, v in trace.items()}
    return trace


def summed(mesh: Mesh | None, gradient: jax.Array, *, models: bool) -> jax.Array:
    """A movie's gradient over the windows of all devices, and the mean over those with other `models` of it."""
    if mesh is None:
        return gradient
    total = lax.psum(gradient, "window")
    return lax.pmean(total, "model") if models else total
