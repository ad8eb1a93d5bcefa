"""What turns gradients into updates: AdamW, or Muon for convolutions beside it, and what is left alone."""

import re
from typing import Any

import jax
import optax
import optax.contrib

from neurorecon.training.schedule import warmup_cosine
from neurorecon.training.settings import TrainingSettings

_OF_ANIMAL = re.compile(r"(readout|behaviour|log_scale)\d+")


def belongs_to_animal(name: str) -> bool:
    """Whether a top-level entry of the parameters belongs to one animal; the rest is the core."""
    return _OF_ANIMAL.fullmatch(name) is not None


def make_optimiser(settings: TrainingSettings) -> optax.GradientTransformation:
    """The update rule; with `settings.frozen_core` the core's updates are 0 and have no state."""

    def schedule(peak: float) -> optax.Schedule:
        return warmup_cosine(peak, warmup_steps=settings.warmup_steps, num_steps=settings.num_steps)

    def decayed(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: _name(path) in ("kernel", "weights", "space", "time"), params
        )

    def slowed(updates, params=None):
        # Positions start from the data, close to where they belong: at the full rate Adam's noise carries them off.
        del params
        return jax.tree_util.tree_map_with_path(
            lambda path, u: u * settings.position_rate if _name(path) == "position" else u, updates
        )

    with_muon = settings.optimiser == "muon"
    descent = optax.adamw(
        schedule(settings.learning_rate), weight_decay=settings.weight_decay, mask=decayed, nesterov=with_muon
    )
    if with_muon:
        muon = optax.contrib.scale_by_muon(weight_dimension_numbers=_as_matrices)
        kernels = optax.chain(muon, optax.scale_by_learning_rate(schedule(settings.kernel_rate)))
        descent = optax.partition({True: kernels, False: descent}, _convolutions)
    rule = optax.chain(
        optax.clip_by_global_norm(1e4),  # against a single burst, far above the usual norm
        descent,
        optax.stateless(slowed),
    )
    return optax.partition({True: rule, False: optax.set_to_zero()}, _of_animals) if settings.frozen_core else rule


def _of_animals(params: Any) -> Any:
    return {name: jax.tree.map(lambda _, n=name: belongs_to_animal(n), part) for name, part in params.items()}


def _convolutions(params: Any) -> Any:
    """True for kernels (taps ..., channel, feature) that mix channels."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: _name(path) == "kernel" and x.ndim > 2 and min(x.shape[-2:]) > 1, params
    )


def _as_matrices(params: Any) -> Any:
    """A kernel is to Muon the matrix from all taps and channels to features."""
    return jax.tree.map(lambda x: optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1), params)


def _name(path: tuple) -> str:
    return str(getattr(path[-1], "key", path[-1]))
