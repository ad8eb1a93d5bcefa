"""What several hosts descend with: the same in all, and the first's.

A compiled step that spans hosts must be entered by all of them, with one program and one set of shapes; where each has
worked its arguments out for itself, numbers may differ in their last bits, and memory in what fits.
"""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from neurorecon import hosts
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction.loop import Recorded, Settings
from neurorecon.reconstruction.progress import Progress

_GIVEN = "given:"


def as_first(
    settings: Sequence[Settings],
    variables: Any,
    recorded: Recorded,
    mask: Any,
    key: jax.Array,
    progress: Progress | None,
) -> tuple[list[Settings], Recorded, Any, Progress | None]:
    """Settings, clips, mask and progress of the first host, in every one; as they are where there is one.

    Encoders' weights are only compared in shape: all hosts read the same files.

    Args:
      settings, recorded, mask, progress: of this host's descents; of `progress` the first's alone counts.
      variables: of the encoders of all descents.
      key: of the descents.

    Raises:
      NeuroreconError: in every host, where one has another program.
    """
    if not hosts.several():
        return list(settings), recorded, mask, progress
    chunks = hosts.from_first(lambda: [[s.window_chunk, s.models_at_once, s.clips_at_once] for s in settings])
    same = [
        dataclasses.replace(s, window_chunk=window, models_at_once=models, clips_at_once=clips)
        for s, (window, models, clips) in zip(settings, chunks)
    ]
    leaves, structure = jax.tree.flatten((same, recorded, mask))
    own = [_constants(same, key), [_shape(x) for x in [*leaves, *jax.tree.leaves(variables)]]]
    hosts.agreed(_check(own, hosts.from_first(lambda: own)))
    arrays = {f"{_GIVEN}{place}": np.asarray(x) for place, x in enumerate(leaves)}
    arrays |= {} if progress is None else progress.to_arrays()
    arrays = hosts.arrays_from_first(arrays)
    given = [arrays.pop(f"{_GIVEN}{place}") for place in range(len(leaves))]
    same, recorded, mask = jax.tree.unflatten(structure, given)
    return same, recorded, mask, Progress.from_arrays(arrays) if arrays else None


def _constants(settings: Sequence[Settings], key: jax.Array) -> list[float]:
    """Numbers that are compiled in, and the key."""
    found = [float(x) for x in np.ravel(jax.random.key_data(key))]
    for setting in settings:
        recipe = setting.recipe
        parts = (recipe.losses, recipe.priors, recipe.parametrisation, recipe.update, recipe.plan)
        found += [float(x) for x in jax.tree.leaves(parts) if isinstance(x, numbers.Real)]
        found += [setting.num_steps, setting.steps_per_call, setting.readout, *setting.shape]
    return found


def _shape(x: Any) -> str:
    return f"{np.shape(x)} {x.dtype}"


def _check(own: Any, first: Any) -> Any:
    def check() -> None:
        if own != first:
            raise NeuroreconError(
                "reconstruction: expected the descent of the first host, found one of other shapes or numbers; give "
                "all hosts the same command, files and kind of processor"
            )

    return check
