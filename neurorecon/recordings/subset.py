"""Part of a recording: some of its training trials, some of its neurons."""

import copy
import dataclasses

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.recordings.sensorium import Recording
from neurorecon.recordings.trial import Trial


class RecordingSubset(Recording):
    """A recording with fewer neurons; training trials that are left out have the tier `none`, and the ids stay.

    Attributes:
      neurons: (num_neurons,) numbers of the neurons in the whole recording, ascending.
    """

    def __init__(self, whole: Recording, tiers: list[str], neurons: np.ndarray) -> None:
        self.__dict__.update(copy.copy(whole).__dict__)
        self._whole = whole
        self._tiers = tiers
        self._behaviour_mean = None  # of the training trials, which are others
        self.neurons = neurons
        self.num_neurons = len(neurons)

    def trial(self, trial_id: str) -> Trial:
        """As `Recording.trial`."""
        trial = self._whole.trial(trial_id)
        responses = np.ascontiguousarray(trial.responses[:, self.neurons])
        return dataclasses.replace(trial, tier=self._tiers[int(trial.id)], responses=responses)

    def statistics(self, kind: str) -> dict[str, np.ndarray]:
        """As `Recording.statistics`."""
        found = self._whole.statistics(kind)
        return {k: v[self.neurons] for k, v in found.items()} if kind == "responses" else found

    def _neuron_array(self, name: str, ndim: int) -> np.ndarray | None:
        array = self._whole._neuron_array(name, ndim)
        return None if array is None else array[self.neurons]


def subset_of(recording: Recording, *, trials: float = 1.0, neurons: float = 1.0, seed: int = 0) -> Recording:
    """A recording with a share of its training trials and of its neurons; itself where both shares are 1.

    Drawn by the seed; a smaller share's trials and neurons are among those of a larger one.

    Args:
      recording: the whole.
      trials: share of the tier `train`, above 0 and at most 1; at least one trial is kept. Other tiers stay whole.
      neurons: share of the neurons, likewise.
      seed: of the draws.

    Raises:
      NeuroreconError: a share out of its range, or no training trial.
    """
    for name, share in (("trials", trials), ("neurons", neurons)):
        if not 0 < share <= 1:
            raise NeuroreconError(f"subset.{name}: expected a share above 0 and at most 1, found {share}")
    if trials == neurons == 1:
        return recording
    training = np.asarray(recording.trial_ids("train"))
    kept = set(training[_drawn(len(training), trials, [seed, 0])].tolist())
    tiers = [recording.tier(i) for i in recording.trial_ids()]
    tiers = [t if t != "train" or str(n) in kept else "none" for n, t in enumerate(tiers)]
    return RecordingSubset(recording, tiers, _drawn(recording.num_neurons, neurons, [seed, 1]))


def _drawn(number: int, share: float, seed: list[int]) -> np.ndarray:
    order = np.random.default_rng(seed).permutation(number)
    return np.sort(order[: max(1, round(share * number))])
