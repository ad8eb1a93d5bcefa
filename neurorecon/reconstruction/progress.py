"""Where a reconstruction stands, in a form that can be stored and gone on with."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction.loop import State


class Progress(NamedTuple):
    """A descent that can be stored and gone on with.

    Attributes:
      states: one for each group of encoders that is descended on its own; a `State`, or its leaves as read from disk.
        Their arrays are NumPy's own: the devices' are given away to the next steps.
      traces: for each of them name -> (movie, clip, step, ...).
    """

    states: tuple[Any, ...]
    traces: tuple[dict[str, np.ndarray], ...]

    @property
    def step(self) -> int:
        """Updates made, the mean over the groups."""
        return sum(int(jax.tree.leaves(state)[0]) for state in self.states) // len(self.states)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Flat names -> arrays, for storage."""
        arrays: dict[str, np.ndarray] = {}
        for group, (state, trace) in enumerate(zip(self.states, self.traces)):
            arrays |= {f"state:{group}:{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
            arrays |= {f"trace:{group}:{name}": values for name, values in trace.items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Progress":
        """The inverse of `to_arrays`.

        Raises:
          NeuroreconError: these are not the arrays of a progress.
        """
        states: dict[int, dict[int, np.ndarray]] = {}
        traces: dict[int, dict[str, np.ndarray]] = {}
        try:
            for key in arrays:
                kind, group, name = key.split(":", 2)
                if kind == "state":
                    states.setdefault(int(group), {})[int(name)] = arrays[key]
                elif kind == "trace":
                    traces.setdefault(int(group), {})[name] = arrays[key]
                else:
                    raise ValueError(key)
            groups = range(len(states))
            return cls(
                tuple([states[group][i] for i in range(len(states[group]))] for group in groups),
                tuple(traces.get(group, {}) for group in groups),
            )
        except (ValueError, KeyError) as error:
            raise NeuroreconError(
                f"progress: expected the arrays of a stored progress, found others ({error}); start again without it"
            ) from error

    def extended(self, group: int, state: State, trace: dict[str, np.ndarray]) -> "Progress":
        """With one group's state replaced, by a copy, and its trace (movie, clip, step, ...) continued."""
        states, traces = list(self.states), list(self.traces)
        before = traces[group]
        states[group] = jax.tree.map(np.array, state)
        traces[group] = {k: np.concatenate([before[k], v], axis=2) if before else v for k, v in trace.items()}
        return Progress(tuple(states), tuple(traces))

    def of_clips(self, places: Sequence[int]) -> "Progress":
        """Of some of the clips alone, in the order of `places`; a place may be named more than once."""
        take = np.asarray(places)
        states = tuple(
            [x if np.ndim(x) == 0 else np.asarray(x)[:, take] for x in jax.tree.leaves(state)] for state in self.states
        )
        traces = tuple({name: values[:, take] for name, values in trace.items()} for trace in self.traces)
        return Progress(states, traces)

    def resumed(self, start: Sequence[State]) -> "Progress":
        """With the states in the structure of `start`, a descent's own.

        Raises:
          NeuroreconError: the progress belongs to another descent.
        """
        found = [[np.shape(x) for x in jax.tree.leaves(state)] for state in self.states]
        expected = [[np.shape(x) for x in jax.tree.leaves(state)] for state in start]
        if found != expected:
            raise NeuroreconError(
                "progress: belongs to a descent of other shapes or another recipe; start again without it"
            )
        states = []
        for state, like in zip(self.states, start):
            leaves, structure = jax.tree.flatten(like)
            leaves = [np.asarray(x, leaf.dtype) for x, leaf in zip(jax.tree.leaves(state), leaves)]
            states.append(jax.tree.unflatten(structure, leaves))
        return Progress(tuple(states), self.traces)
