"""Training over several devices: windows of a batch, models of an ensemble, or both, lie on different ones.

The program is the same; where arrays lie says who computes what (`jax.sharding`), and losses and gradients are summed
over devices as if there were one. Batch norm too takes its statistics over the whole batch.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from neurorecon.errors import NeuroreconError
from neurorecon.training.settings import TrainingSettings
from neurorecon.training.step import TrainState


def training_mesh(settings: TrainingSettings, *, num_models: int, devices: list[Any] | None = None) -> Mesh | None:
    """A mesh (model, window) over the devices (all by default); None where `settings.shard` is empty.

    "both" gives the models as many devices as divide both numbers, and the windows the rest.

    Raises:
      NeuroreconError: models, or windows of a piece of the batch, that devices can't share evenly.
    """
    if not settings.shard:
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
    return TrainState(jax.device_put(state.step, whole), *(jax.device_put(part, by_model) for part in state[1:]))


def place_batches(batches: Any, mesh: Mesh) -> Any:
    """(model, window, ...) arrays over both axes of the mesh."""
    return jax.device_put(batches, NamedSharding(mesh, PartitionSpec("model", "window")))
