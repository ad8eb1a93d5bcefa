"""How much of a descent goes through the encoders at once, so that it fits into a device's memory.

What one window costs is asked of the compiler, for the gradient of one window alone; weights, movies and responses lie
beside it. Windows of a model go together first, then models (or movies of their own), then clips.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction.loop import Recorded, Settings, State, window_gradients

SHARE = 0.8  # of a device's memory that is planned for; the rest is for what the compiler adds
GIB = 1 << 30
_BYTES: dict[tuple, int] = {}


class AtOnce(NamedTuple):
    """How many are worked on at once, at most."""

    windows: int
    models: int
    clips: int


def memory_limit(device: Any, memory_gib: float = 0.0) -> int | None:
    """Bytes that may be used on a device: what it says it has, or fewer where `memory_gib` > 0 says so; None: unknown.

    Processors say nothing.
    """
    told = (device.memory_stats() or {}).get("bytes_limit")
    limits = [int(limit) for limit in (told, memory_gib * GIB) if limit]
    return min(limits) if limits else None


def fitted(wanted: AtOnce, number: int) -> AtOnce:
    """As many as wanted, but no more than `number` windows over all models and clips, in rounds of equal size."""
    windows = evened(wanted.windows, number)
    models = evened(wanted.models, number // windows)
    return AtOnce(windows, models, evened(wanted.clips, number // (windows * models)))


def evened(total: int, most: int) -> int:
    """The size of each round where `total` things go in rounds of at most `most`: 35 by up to 20 go 18 and 17."""
    return -(-total // -(-total // max(1, min(most, total))))


def window_bytes(settings: Settings, variables: Sequence[Any], recorded: Recorded) -> int:
    """Bytes that the gradient of one window of one model needs beside its arguments: the costliest architecture's.

    Args:
      settings: of the descent.
      variables: for each architecture, stacked (movie, model, ...).
      recorded: the clips.
    """
    alone = dataclasses.replace(settings, window_chunk=1, parallel=False, mesh=None)
    by_clip = {name: name != "neuron_weights" for name in recorded._fields}
    clip = Recorded(**{name: _shapes(getattr(recorded, name), int(axis)) for name, axis in by_clip.items()})
    latent = jax.ShapeDtypeStruct(settings.shape, recorded.baseline.dtype)
    found = []
    for group, stacked in enumerate(variables):
        args = (alone, _shapes(stacked, 2), latent, clip)
        leaves, structure = jax.tree.flatten(args)
        key = (group, structure, tuple((x.shape, x.dtype) for x in leaves))
        if key not in _BYTES:  # clips of equal shape ask once
            _BYTES[key] = _compiled_bytes(group, *args)
        found.append(_BYTES[key])
    return max(found)


def chosen(
    settings: Settings,
    state: State,
    variables: Sequence[Any],
    recorded: Recorded,
    counts: AtOnce,
    *,
    device: Any,
    memory_gib: float = 0.0,
) -> Settings:
    """The settings with as much at once as fits into the device.

    Args:
      settings: with what is wanted: `window_chunk` at most; all models and clips at once if `parallel`.
      state, variables, recorded: see `loop.advance`.
      counts: windows, models (or movies) and clips of each device's share.
      device: one of those that run it.
      memory_gib: bounds what the device says; 0: doesn't. Where neither says anything, all that is wanted.

    Raises:
      NeuroreconError: less than one window fits.
    """
    limit = memory_limit(device, memory_gib)
    if limit is None:
        return settings
    wanted = counts._replace(windows=min(settings.window_chunk, counts.windows))
    if not settings.parallel:
        wanted = wanted._replace(models=1, clips=1)
    each = window_bytes(settings, variables, recorded)
    # Weights, responses and what the recipe holds; the state as argument, in the loop and as result.
    held = _bytes((settings, variables, recorded)) + 3 * _bytes(state)
    held = max(held, (device.memory_stats() or {}).get("bytes_in_use", 0))
    number = int((SHARE * limit - held) // each)
    if number < 1:
        need = (held + each) / SHARE / GIB
        raise NeuroreconError(
            f"memory_gib: expected at least {need:.2g} GiB for one window of the encoder beside weights and movies, "
            f"found {limit / GIB:.2g} GiB; allow more, or use fewer encoders or clips at once"
        )
    fits = fitted(wanted, number)
    return dataclasses.replace(
        settings, window_chunk=fits.windows, models_at_once=fits.models, clips_at_once=fits.clips
    )


def _compiled_bytes(group: int, settings: Settings, member: Any, latent: Any, clip: Recorded) -> int:
    def one_window(settings, member, movie, clip):
        encoder = settings.encoders[group]
        plan = settings.recipe.plan(encoder, settings.shape[0], jax.random.key(0))
        return window_gradients(settings, encoder, member, movie, clip, jax.tree.map(lambda x: x[:1], plan))

    analysis: Any = jax.jit(one_window).lower(settings, member, latent, clip).compile().memory_analysis()
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def _shapes(tree: Any, axes: int) -> Any:
    """Without that many leading axes."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[axes:], x.dtype), tree)


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree) if hasattr(x, "dtype"))
