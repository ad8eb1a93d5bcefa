"""A trained core for new animals: its weights are taken and kept, and only readouts are fitted."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.recordings.prepared import PreparedRecording
from neurorecon.training.initialise import stimulus_statistics
from neurorecon.training.optimiser import belongs_to_animal
from neurorecon.training.settings import TrainingSettings
from neurorecon.training.step import TrainState, state_of


def encoder_for(trained: Any, recordings: Sequence[PreparedRecording]) -> Any:
    """The trained encoder with a readout for each of the recordings in place of its own.

    The movie's statistics stay, since the core expects them; behaviour is scaled as in the new recordings.
    """
    fields: dict[str, Any] = {"num_neurons": tuple(r.num_neurons for r in recordings)}
    # A core that sees behaviour expects it as in its own recordings.
    if hasattr(trained, "behaviour_mean") and getattr(trained, "behaviour_at", "readout") == "readout":
        measured = stimulus_statistics(recordings)
        fields |= {name: measured[name] for name in ("behaviour_mean", "behaviour_std")}
    return trained.clone(**fields)


def with_cores(state: TrainState, cores: Sequence[Any], settings: TrainingSettings) -> TrainState:
    """A state before its first step, whose cores and batch statistics are those of trained encoders.

    Args:
      state: as from `initial_state`, of `encoder_for`'s encoder.
      cores: variables of the trained encoders; model k takes those of number k modulo how many there are.
      settings: with `frozen_core`, so that training leaves the cores alone.

    Raises:
      NeuroreconError: no core, cores of another shape, or `settings` that would train them.
    """
    if not settings.frozen_core:
        raise NeuroreconError("training.frozen_core: expected True where cores are taken from trained encoders")
    if not cores:
        raise NeuroreconError("cores: expected at least one trained encoder, found none")
    num_models = state.best_score.shape[0]
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack([jnp.asarray(leaves[k % len(leaves)]) for k in range(num_models)]),
        *(_core(c) for c in cores),
    )
    expected = _core(state.variables)
    if not jax.tree.leaves(expected.get("params", {})):
        raise NeuroreconError("training.core_from: these encoders have no core to share, only readouts; train anew")
    if jax.tree.map(np.shape, expected) != jax.tree.map(np.shape, stacked):
        raise NeuroreconError("training.core_from: expected cores of the new encoder's shape, found others")
    params = {**state.variables["params"], **stacked["params"]}
    return state_of({**state.variables, **stacked, "params": params}, settings)


def _core(variables: Any) -> dict[str, Any]:
    found = {"params": {n: p for n, p in variables["params"].items() if not belongs_to_animal(n)}}
    return found | {"batch_stats": variables["batch_stats"]} if "batch_stats" in variables else found
