"""What turns gradients into updates: AdamW, or Muon for convolutions beside it, and what is left alone."""

import re
from typing import Any

import jax
import optax
import optax.contrib

from neurorecon.training.schedule import warmup_cosine
from neurorecon.training.settings import TrainingSettings

_OF_ANIMAL = re.compile(r"(readout|behaviour|log_scale)\d+")
_MIXING = ("kernel", "conv", "expand", "project")  # kernels that mix channels, but for those of dense layers
_KERNELS = (*_MIXING, "spatial", "temporal", "squeeze", "excite", "weights", "space", "time")


def belongs_to_animal(name: str) -> bool:
    """Whether a top-level entry of the parameters belongs to one animal; the rest is the core."""
    return _OF_ANIMAL.fullmatch(name) is not None


def make_optimiser(settings: TrainingSettings) -> optax.GradientTransformation:
    """The update rule; with `settings.frozen_core` the core's updates are 0 and have no state."""

    def schedule(peak: float) -> optax.Schedule:
        return warmup_cosine(peak, warmup_steps=settings.warmup_steps, num_steps=settings.num_steps)

    def decayed(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: _name(path) in _KERNELS, params)

    def paced(updates, params=None):
        # Positions start from the data, close to where they belong: at the full rate Adam's noise carries them off.
        del params

        def rate(path: tuple) -> float:
            if _name(path) == "position":
                return settings.position_rate
            return settings.readout_rate if str(path[0].key).startswith("readout") else 1.0

        return jax.tree_util.tree_map_with_path(lambda path, u: u * rate(path), updates)

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
        optax.stateless(paced),
    )
    return optax.partition({True: rule, False: optax.set_to_zero()}, _of_animals) if settings.frozen_core else rule


def _of_animals(params: Any) -> Any:
    return {name: jax.tree.map(lambda _, n=name: belongs_to_animal(n), part) for name, part in params.items()}


def _convolutions(params: Any) -> Any:
    """True for the core's kernels (taps ..., channel, feature) that mix channels; DwiseNeuro's have no taps."""

    def mixes(path: tuple, x: Any) -> bool:
        if _name(path) not in _MIXING or belongs_to_animal(str(path[0].key)) or min(x.shape[-2:], default=1) < 2:
            return False
        return x.ndim > (2 if _name(path) == "kernel" else 1)

    return jax.tree_util.tree_map_with_path(mixes, params)


def _as_matrices(params: Any) -> Any:
    """A kernel is to Muon the matrix from all taps and channels to features; a grouped one, a matrix for each group."""

    def dimensions(path: tuple, x: Any) -> Any:
        first = 1 if _name(path) == "conv" and x.ndim == 3 else 0
        return optax.contrib.MuonDimensionNumbers(tuple(range(first, x.ndim - 1)), x.ndim - 1)

    return jax.tree_util.tree_map_with_path(dimensions, params)


def _name(path: tuple) -> str:
    return str(getattr(path[-1], "key", path[-1]))
