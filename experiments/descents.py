"""One movie to reconstruct, what its descent is given (responses, behaviour, neurons, encoders), and how it resumes."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from experiments.cli import listed
from experiments.inputs import Ensemble
from experiments.preparation import Animal
from neurorecon import hosts, runs
from neurorecon.encoders import predict_ensemble, predict_trial
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation import shuffled_neurons
from neurorecon.reconstruction import Progress


class Descent(NamedTuple):
    """One movie to reconstruct: the clip itself, or a control of it."""

    kind: str  # "first", "validation", "reconstruction", "shuffled_neurons" or "ceiling"
    animal: Animal
    trial_id: str
    path: Path
    num_models: int

    @property
    def has_spread(self) -> bool:
        """Whether its posterior is sampled, where the run does that."""
        return self.kind in ("validation", "reconstruction")


def movie_path(folder: Path, kind: str, animal: str, trial_id: str) -> Path:
    """Where a work folder keeps the movie of a descent."""
    root = {"reconstruction": folder / "reconstructions"} | {name: folder / name for name in ("first", "validation")}
    return root.get(kind, folder / "controls" / kind) / animal / f"{trial_id}.npz"


def settings_of(config: ml_collections.ConfigDict, animal: Animal) -> dict[str, Any]:
    """What all descents of one animal in a run have in common: arguments of `reconstruct` and its like."""
    return {
        "recipe": animal.recipe,
        "key": jax.random.key(config.seed),
        "update_mask": animal.update_mask,
        "readout": animal.readout,
        "num_steps": config.num_steps or None,
        "steps_per_call": config.steps_per_call,
        "window_chunk": config.window_chunk or None,
        "memory_gib": config.memory_gib,
        "precision": config.precision,
        "shard": config.shard,
    }


def responses_of(config: ml_collections.ConfigDict, ensemble: Ensemble, descent: Descent) -> np.ndarray:
    """(time, neuron): as recorded, or what a control puts in their place."""
    trial = descent.animal.recording.target(descent.trial_id)
    if descent.kind == "shuffled_neurons":
        return trial.responses[:, shuffled_neurons(trial.responses.shape[1], seed=config.seed)]
    if descent.kind == "ceiling":
        # The true movie enters here alone: as the stimulus of the responses that stand in for the recorded ones.
        readout = descent.animal.readout
        return predict_trial(*ensemble.members[-1], trial.stimulus, trial.behaviour, readout=readout)
    if config.responses == "predicted" and descent.kind == "reconstruction":
        # An experiment of its own (an upper bound), of which the work folder's config tells.
        readout = descent.animal.readout
        return predict_ensemble(ensemble.members, trial.stimulus, trial.behaviour, readout=readout)
    # As the published code reads them; recorded responses are not negative as a rule.
    return np.maximum(trial.responses, 0.0) if config.recipe == "published" else trial.responses


def behaviour_of(config: ml_collections.ConfigDict, descent: Descent) -> np.ndarray:
    """(time, 4): the trial's own, another training trial's ("shuffled") or the training trials' mean ("mean").

    Raises:
      NeuroreconError: no other training trial is as long.
    """
    recording, trial_id = descent.animal.recording, descent.trial_id
    own = recording.behaviour(trial_id)
    if config.behaviour.given == "recorded":
        return own
    if config.behaviour.given == "mean":
        return np.broadcast_to(recording.behaviour_mean(), own.shape)
    others = [i for i in recording.trial_ids("train") if i != trial_id]
    for other in np.random.default_rng(_seed(config.behaviour.seed, descent)).permutation(others):
        if recording.num_frames(str(other)) >= len(own):
            return recording.behaviour(str(other))[: len(own)]
    raise NeuroreconError(
        f"{recording.path}: expected another training trial of {len(own)} frames or more, whose behaviour to give "
        f"trial {trial_id}, found none; use --config.behaviour.given=mean"
    )


def neurons_of(config: ml_collections.ConfigDict, descent: Descent) -> np.ndarray | None:
    """(neuron,) bool, those in use; None for all. The fewer of two shares or counts are part of the more.

    Raises:
      NeuroreconError: more neurons are asked for than there are.
    """
    total, count = descent.animal.recording.num_neurons, config.neurons.count
    if count > total:
        raise NeuroreconError(f"--config.neurons.count: expected up to the {total} recorded neurons, found {count}")
    if count in (0, total) and config.neurons.share >= 1:
        return None
    if config.neurons.order == "random":
        place = np.random.default_rng(_seed(config.neurons.seed, descent)).random(total)
    else:
        sign = -1 if config.neurons.order == "most_reliable" else 1
        place = np.empty(total)
        place[np.argsort(sign * descent.animal.reliability(), kind="stable")] = (np.arange(total) + 0.5) / total
    if count:
        kept = np.zeros(total, bool)
        kept[np.argsort(place, kind="stable")[:count]] = True
        return kept
    return place <= max(config.neurons.share, place.min())  # one at least


def members_of(config: ml_collections.ConfigDict, ensemble: Ensemble) -> Ensemble:
    """The encoders at the places `config.members`; all where it is empty.

    Raises:
      NeuroreconError: no such places.
    """
    if not config.members:
        return ensemble
    places = listed(config.members)
    known = [str(place) for place in range(len(ensemble.members))]
    if not set(places) <= set(known) or len(set(places)) < len(places):
        raise NeuroreconError(f"--config.members: expected some of {', '.join(known)}, found {config.members!r}")
    return ensemble._replace(members=[ensemble.members[int(place)] for place in places])


def arguments_of(config: ml_collections.ConfigDict, descent: Descent) -> dict[str, Any]:
    """What a descent and its posterior samples have in common, but for responses, behaviour and baseline."""
    return settings_of(config, descent.animal) | {
        "recipe": descent.animal.recipe.replace(ablation=config.neurons.ablation),
        "neurons": neurons_of(config, descent),
    }


@contextlib.contextmanager
def resumable(store: Path, bar: tqdm, checkpoint_seconds: float) -> Iterator[dict[str, Any]]:
    """`progress` and `on_call` of a descent whose state is kept in `store` until the context ends well.

    Args:
      store: an npz; one that is there is gone on from.
      bar: counts the descent's steps.
      checkpoint_seconds: between two writings.
    """

    def found() -> Progress | None:
        return Progress.from_arrays(runs.load_arrays(store)) if hosts.is_first() and store.is_file() else None

    with kept_in(store, bar, checkpoint_seconds, hosts.agreed(found)) as resume:
        yield resume


@contextlib.contextmanager
def kept_in(
    store: Path,
    bar: tqdm,
    checkpoint_seconds: float,
    progress: Progress | None,
    *,
    labels: Mapping[str, Any] | None = None,
    clips: int = 1,
    num_steps: int | None = None,
    last_step: int | None = None,
) -> Iterator[dict[str, Any]]:
    """As `resumable`, for a descent that goes on from `progress`. Of several hosts the first has the file.

    Args:
      store, bar, checkpoint_seconds: as in `resumable`.
      progress: where to go on; None: from the start.
      labels: further arrays to keep in `store`, of names without a colon.
      clips: that are descended together; the bar counts the steps of each.
      num_steps: that the bar is told of in the end, also where the descent stopped before.
      last_step: the state after it is kept whenever it comes: what follows in the context takes long.
    """
    saved, counted = time.monotonic(), 0 if progress is None else progress.step
    bar.update(counted * clips)

    def save_if_due(progress: Progress) -> None:
        nonlocal saved
        if time.monotonic() - saved > checkpoint_seconds or progress.step == last_step:
            runs.save_arrays(store, {**progress.to_arrays(), **(labels or {})})
            saved = time.monotonic()

    def on_call(progress: Progress) -> None:
        nonlocal counted
        bar.update((progress.step - counted) * clips)
        counted = progress.step
        hosts.from_first(partial(save_if_due, progress))

    yield {"progress": progress, "on_call": on_call}
    bar.update(((num_steps or counted) - counted) * clips)
    if hosts.is_first():
        store.unlink(missing_ok=True)


def _seed(seed: int, descent: Descent) -> list[int]:
    return [seed, *descent.animal.name.encode(), int(descent.trial_id)]
