"""Training over several devices: windows of a batch, models of an ensemble, or both, lie on different ones.

The program is the same; where arrays lie says who computes what (`jax.sharding`), and losses and gradients are summed
over devices as if there were one. Batch norm too takes its statistics over the whole batch. With several hosts the
mesh spans the devices of all, and each draws and places the windows of its own devices alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from neurorecon import hosts
from neurorecon.errors import NeuroreconError
from neurorecon.training.settings import TrainingSettings
from neurorecon.training.step import TrainState


def training_mesh(settings: TrainingSettings, *, num_models: int, devices: list[Any] | None = None) -> Mesh | None:
    """A mesh (model, window) over the devices (those of all hosts by default); None where `settings.shard` is empty.

    "both" gives the models as many devices as divide both numbers, and the windows the rest.

    Raises:
      NeuroreconError: models, or windows of a piece of the batch, that devices can't share evenly; or several hosts
        and nothing that they share.
    """
    if not settings.shard:
        if devices is None and hosts.several():
            raise NeuroreconError(
                f"training.shard: expected windows, models or both, which the {jax.process_count()} hosts share, "
                "found ''"
            )
        return None
    devices = jax.devices() if devices is None else devices
    number = len(devices)
    models = {"windows": 1, "models": number, "both": math.gcd(number, num_models)}[settings.shard]
    windows, piece = number // models, settings.batch_size // settings.accumulate
    if num_models % models:
        raise NeuroreconError(
            f"training.shard: expected num_models, {num_models}, to be a multiple of the {models} devices; "
            "train another number of models, or shard 'windows'"
        )
    if piece % windows:
        raise NeuroreconError(
            f"training.shard: expected batch_size / accumulate, {piece}, to be a multiple of the {windows} devices "
            "that share a batch; change batch_size"
        )
    return Mesh(np.array(devices).reshape(models, windows), ("model", "window"), axis_types=(AxisType.Auto,) * 2)


def place_state(state: TrainState, mesh: Mesh) -> TrainState:
    """Models over the devices of the mesh's first axis; each has copies along the second."""
    by_model, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("model",), ()))
    return TrainState(hosts.placed(state.step, whole), *(hosts.placed(part, by_model) for part in state[1:]))


def place_batches(
    draw: Callable[[range, range], Sequence[tuple[np.ndarray, ...]]], mesh: Mesh, *, num_models: int, batch_size: int
) -> Any:
    """(model, window, ...) arrays over both axes of the mesh; a host among several draws what its devices get alone.

    Args:
      draw: (models, windows) -> for each animal arrays of that part of the whole batch, (model, window, ...).
      mesh: see `training_mesh`.
      num_models, batch_size: of the whole.
    """
    sharding = NamedSharding(mesh, PartitionSpec("model", "window"))
    whole = (num_models, batch_size)
    if not hosts.several():
        return jax.device_put(draw(*map(range, whole)), sharding)
    parts = []
    for device, index in sharding.addressable_devices_indices_map(whole).items():
        assert index is not None  # every device of the mesh holds a part
        models, windows = (range(size)[along] for size, along in zip(whole, index))
        parts.append(jax.device_put(draw(models, windows), device))

    def joined(*arrays: jax.Array) -> jax.Array:
        return jax.make_array_from_single_device_arrays((*whole, *arrays[0].shape[2:]), sharding, list(arrays))

    return jax.tree.map(joined, *parts)
