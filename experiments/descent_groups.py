"""Descents that share one compiled call: which go together, how many at once, and how a group goes on after a kill.

Clips of one call have one kind, animal, number of encoders, neurons in use and length. Their movies are those that they
would have alone. With `config.length_bucket`, groups of different lengths share the compiled code too.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from experiments.adapted import PriorScales, first_scale, first_steps
from experiments.descents import Descent, arguments_of, behaviour_of, kept_in, movie_path, neurons_of, responses_of
from experiments.inputs import Ensemble
from neurorecon import hosts, runs
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import Progress, Reconstruction, reconstruct_clips
from neurorecon.reconstruction.padding import padded, padded_length, unpadded, why_not

ON_ACCELERATORS = 8  # clips at once on each device that shares them
_SAMPLES = "posterior-"  # how the files of posterior samples begin, which are not groups


class Begun(NamedTuple):
    """A group that was under way.

    Attributes:
      path: where its state is kept.
      trials: its clips, in the order of the state's clip axis, which may be longer.
      size: of the clip axis.
      length: frames of its arrays; None where the file doesn't tell.
      progress: its state.
      prior_scale: of its clips, (clip, time, height, width); None: it was in its first reconstruction, or has none.
    """

    path: Path
    trials: tuple[str, ...]
    size: int
    length: int | None
    progress: Progress
    prior_scale: np.ndarray | None


class Group(NamedTuple):
    """Descents of one call.

    Attributes:
      descents: of one kind, animal, number of encoders, neurons in use and length.
      size: of the clip axis, the same for all groups of a run that differ in their clips alone. Where a group has
        fewer, its first clip is repeated: that compiles nothing anew, and ends the same, bit for bit, after a kill.
      length: frames of the arrays, at least the clips'.
      begun: the group under way that they were part of.
    """

    descents: list[Descent]
    size: int
    length: int
    begun: Begun | None

    def store(self, folder: Path) -> Path:
        """Where its state is kept in the folder `folder`."""
        first, *rest = self.descents
        name = f"{first.kind}-{first.animal.name}-{first.trial_id}"
        if rest:
            trials = ",".join(d.trial_id for d in rest)
            name += f"-and-{len(rest)}-{crc32(trials.encode()):08x}"
        return folder / f"{name}.npz"


def devices_for_clips(config: ml_collections.ConfigDict) -> int:
    """How many devices, of all hosts, each have clips of their own, whatever the number of clips."""
    return jax.device_count() if config.shard == "clips" else 1


def clips_at_once(config: ml_collections.ConfigDict) -> int:
    """`config.clips_at_once`, or what it stands for where it is 0.

    On CPU 1, or 1 for each device that shares clips: activations then stay in cache. Elsewhere `ON_ACCELERATORS` for
    each device that may share clips.

    Raises:
      NeuroreconError: below 0, or fewer than the devices that are to share them.
    """
    devices = devices_for_clips(config)
    if config.clips_at_once < 0 or 0 < config.clips_at_once < devices:
        fewest = f", or at least the {devices} devices that share them (--config.shard=clips)" if devices > 1 else ""
        raise NeuroreconError(
            f"--config.clips_at_once: expected 0 (automatic) or more{fewest}, found {config.clips_at_once}"
        )
    if config.clips_at_once:
        return config.clips_at_once // devices * devices
    if jax.default_backend() == "cpu":
        return devices
    return ON_ACCELERATORS * (jax.device_count() if config.shard in ("clips", "auto") else 1)


def groups_of(
    config: ml_collections.ConfigDict, folder: Path, states: Path, descents: Sequence[Descent]
) -> list[Group]:
    """Descents that are left to do in groups, in the order of each group's first.

    Clips that were under way together stay together where there is room for them. Of several hosts the first looks at
    the folders, and has the states.

    Args:
      config, folder: of the run.
      states: the folder where states are kept; those of movies that are there are removed.
      descents: of the run, those that are done included.

    Raises:
      NeuroreconError: a state that is damaged, or more neurons asked for than there are.
    """
    groups: list[Group] = []
    places = {id(descent): place for place, descent in enumerate(descents)}

    def found() -> list[Any]:
        groups.extend(_groups(config, folder, states, descents))
        return [[[places[id(d)] for d in group.descents], group.size, group.length] for group in groups]

    told = hosts.from_first(found)
    return groups or [Group([descents[place] for place in each], size, length, None) for each, size, length in told]


def _groups(config: ml_collections.ConfigDict, folder: Path, states: Path, descents: Sequence[Descent]) -> list[Group]:
    most, devices = clips_at_once(config), devices_for_clips(config)
    begun = _begun(folder, states)
    if all(d.path.is_file() for d in descents):
        return []
    totals: dict[tuple, int] = {}
    lots: dict[tuple, list[Descent]] = {}
    found: dict[tuple, tuple[int, Begun | None]] = {}
    frames: dict[str, set[int]] = {}
    for descent in descents:
        animal = descent.animal
        num_frames = animal.recording.num_frames(descent.trial_id)
        neurons = neurons_of(config, descent)
        alike = (
            descent.kind,
            animal.name,
            descent.num_models,
            num_frames,
            None if neurons is None else neurons.tobytes(),
        )
        totals[alike] = totals.get(alike, 0) + 1
        if descent.path.is_file():
            continue
        frames.setdefault(animal.name, set()).add(num_frames)
        length = num_frames if why_not(animal.recipe) else padded_length(num_frames, config.length_bucket)
        state = begun.get((descent.kind, animal.name, descent.trial_id))
        if state is not None and state.length not in (None, length):
            print(f"{state.path}: was begun with another --config.length_bucket; trial {descent.trial_id} begins anew")
            state.path.unlink(missing_ok=True)
            state = None
        key = (alike, None if state is None else state.path)
        lots.setdefault(key, []).append(descent)
        found[key] = length, state
    if config.length_bucket:
        for animal in {d.animal.name: d.animal for d in descents}.values():
            if len(frames.get(animal.name, ())) > 1 and (reason := why_not(animal.recipe)):
                print(f"{animal.name}: each length of clips is compiled, since of the recipe {reason}")
    groups = []
    for key, lot in lots.items():
        length, state = found[key]
        total = totals[key[0]]
        size = -(-total // -(-total // most))  # as even as can be
        size = -(-size // devices) * devices
        groups += [Group(lot[i : i + size], size, length, state) for i in range(0, len(lot), size)]
    return groups


def _begun(folder: Path, states: Path) -> dict[tuple[str, str, str], Begun]:
    """(kind, animal, trial) -> the group under way that it is part of, the furthest where it is part of several."""
    found: dict[tuple[str, str, str], Begun] = {}
    for path in sorted(states.glob("*.npz")):
        if path.name.startswith(_SAMPLES):
            continue
        arrays = runs.load_arrays(path)
        if "trials" in arrays:
            kind, animal = str(arrays.pop("kind")), str(arrays.pop("animal"))
            trials, length = [str(trial) for trial in arrays.pop("trials")], int(arrays.pop("length"))
        else:  # as it was kept before clips could go together
            kind, _, rest = path.stem.partition("-")
            animal, _, trial = rest.rpartition("-")
            trials, length = [trial], None
        if all(movie_path(folder, kind, animal, trial).is_file() for trial in trials):
            path.unlink(missing_ok=True)  # a kill came between the last movie and this
            continue
        scale = arrays.pop("prior_scale", None)
        progress = Progress.from_arrays(arrays)
        size = max((np.shape(x)[1] for x in jax.tree.leaves(progress.states) if np.ndim(x) > 1), default=1)
        one = Begun(path, tuple(trials), size, length, progress, scale)
        for trial in trials:
            other = found.get((kind, animal, trial))
            if other is None or _reached(other) < _reached(one):
                found[kind, animal, trial] = one
    return found


def _reached(begun: Begun) -> tuple[bool, int]:
    return begun.prior_scale is not None, begun.progress.step


@contextlib.contextmanager
def descended(
    config: ml_collections.ConfigDict,
    folder: Path,
    states: Path,
    ensemble: Ensemble,
    group: Group,
    bar: tqdm,
    scales: PriorScales,
    *,
    last_step: int | None = None,
) -> Iterator[list[tuple[np.ndarray, Reconstruction, np.ndarray | None]]]:
    """Responses (time, neuron), reconstruction and scale of the prior, if it has one, of each clip of a group.

    The state is kept in `states` until the context ends well: what is done with the outcome belongs inside.

    Args:
      config, folder, ensemble: of the run.
      states: the folder where states are kept.
      group: of `groups_of`.
      bar: counts the steps of each clip.
      scales: of the run.
      last_step: see `kept_in`.
    """
    first, number = group.descents[0], len(group.descents)
    fill = [*range(number), *[0] * (group.size - number)]

    def prepared() -> tuple[list[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        responses = [responses_of(config, ensemble, d) for d in group.descents]
        behaviour = [behaviour_of(config, d) for d in group.descents]
        neurons = neurons_of(config, first)
        baselines = [first.animal.baseline(one, neurons) for one in responses]
        return responses, (
            np.stack([responses[k] for k in fill]),
            np.stack([behaviour[k] for k in fill]),
            None if baselines[0] is None else np.stack([baselines[k] for k in fill]),  # type: ignore[arg-type]
        )

    responses, given = hosts.agreed(prepared)
    arguments = arguments_of(config, first)
    if first.kind == "first":
        arguments["num_steps"] = first_steps(config)
        arguments["recipe"] = arguments["recipe"].replace(stop=None)
    recipe, encoders = arguments["recipe"], ensemble.members[: first.num_models]
    num_frames, fills = len(responses[0]), bool(config.length_bucket) and not why_not(recipe)
    if fills:
        longer = padded(recipe, *given, group.length)
        given, arguments["recipe"] = longer[1:], longer.recipe
    labels = {
        "kind": first.kind,
        "animal": first.animal.name,
        "trials": np.array([d.trial_id for d in group.descents]),
        "length": group.length,
    }
    keep = {"store": group.store(states), "bar": bar, "checkpoint_seconds": config.checkpoint_seconds, "clips": number}

    def reconstructed(resume: dict[str, Any], scale: np.ndarray | None, **changes: Any) -> Reconstruction:
        if scale is not None:
            added = group.length - num_frames if fills else 0
            scale = np.pad(scale, [(0, 0), (0, added), (0, 0), (0, 0)], constant_values=1.0)
        made = reconstruct_clips(
            encoders, given[0], given[1], baseline=given[2], prior_scale=scale, **(arguments | changes), **resume
        )
        return unpadded(made, encoders, recipe, num_frames) if fills else made

    scale, progress, before = None, _progress(group, fill), 0
    if first.kind == "first":
        scale = _first_scales(config, group, num_frames)
    elif scales.wanted(first):
        scale, before = _scale_begun(group, fill), first_steps(config)
        if scale is None:
            with kept_in(**keep, progress=progress, labels=labels) as resume:
                to_the_end = arguments["recipe"].replace(stop=None)
                whiter = _first_scales(config, group, num_frames)
                seen = reconstructed(resume, whiter, num_steps=before, recipe=to_the_end)
            own = partial(_scales, scales, group.descents, responses, seen.movie)
            scale, progress = hosts.agreed(own)[fill], None
        else:
            bar.update(before * number)
        labels["prior_scale"] = scale[:number]
    steps = arguments["num_steps"] or recipe.num_steps
    with kept_in(**keep, progress=progress, labels=labels, num_steps=steps, last_step=last_step) as resume:
        result = reconstructed(resume, scale)
        windows = result.encoder_windows * (1 + before / result.num_steps)
        result = dataclasses.replace(result, encoder_windows=windows)
        yield [(responses[k], _clip(result, k), None if scale is None else scale[k]) for k in range(number)]
    begun = group.begun
    if begun and all(movie_path(folder, first.kind, first.animal.name, trial).is_file() for trial in begun.trials):
        begun.path.unlink(missing_ok=True)


def _progress(group: Group, fill: list[int]) -> Progress | None:
    if group.begun is None:
        return None
    here = [group.begun.trials.index(d.trial_id) for d in group.descents]
    if here == list(range(len(here))) and group.size == group.begun.size:
        return group.begun.progress
    return group.begun.progress.of_clips([here[k] for k in fill])


def _scale_begun(group: Group, fill: list[int]) -> np.ndarray | None:
    """(clip, time, height, width) the scales of the group's prior, where its first reconstructions were done."""
    begun = group.begun
    found: dict[str, np.ndarray] = {}
    if begun is not None and begun.prior_scale is not None:
        here = [begun.trials.index(d.trial_id) for d in group.descents]
        found = {"prior_scale": begun.prior_scale[[here[k] for k in fill]]}
    return hosts.arrays_from_first(found).get("prior_scale")


def _first_scales(config: ml_collections.ConfigDict, group: Group, num_frames: int) -> np.ndarray:
    return np.stack([first_scale(config, group.descents[0].animal, num_frames)] * group.size)


def _scales(
    scales: PriorScales, descents: Sequence[Descent], responses: Sequence[np.ndarray], movies: np.ndarray
) -> np.ndarray:
    return np.stack([scales.of(*each) for each in zip(descents, responses, movies)])


def _clip(result: Reconstruction, place: int) -> Any:
    """One clip of several."""
    trace = {name: values[place] for name, values in result.trace.items()}
    return dataclasses.replace(result, movie=result.movie[place], movies=result.movies[place], trace=trace)
