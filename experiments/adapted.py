"""Priors of single clips: each clip's first reconstruction, under the animal's prior, sets its second's spectrum."""

import functools
from pathlib import Path

import ml_collections
import numpy as np

from experiments.descents import Descent, movie_path, neurons_of
from experiments.preparation import Animal
from neurorecon import runs
from neurorecon.reconstruction.adaptation import Adaptation, fit_adaptation, whitened_std


def adapts(config: ml_collections.ConfigDict) -> bool:
    """Whether clips are reconstructed twice."""
    return config.recipe == "default" and config.prior.adapt_clips > 0


def first_clips(config: ml_collections.ConfigDict, animal: Animal) -> list[str]:
    """Validation trials whose first reconstructions tell what such a one shows of the movie; none: no adaptation."""
    if not adapts(config) or len(animal.validation) < 2:
        return []
    return [trial.id for trial in animal.validation[: config.prior.adapt_clips]]


def first_steps(config: ml_collections.ConfigDict) -> int:
    """Updates of a first reconstruction."""
    return min(config.prior.first_steps, config.num_steps or config.prior.first_steps)


def steps_of(config: ml_collections.ConfigDict, descent: Descent) -> int:
    """Updates that a descent takes, those of its first reconstruction included."""
    if descent.kind == "first":
        return first_steps(config)
    steps = config.num_steps or descent.animal.recipe.num_steps
    return steps + (first_steps(config) if first_clips(config, descent.animal) else 0)


def first_scale(config: ml_collections.ConfigDict, animal: Animal, num_frames: int) -> np.ndarray:
    """(time, height, width) what the prior of first reconstructions of so many frames is scaled by."""
    prior = animal.recipe.parametrisation
    shape = (num_frames, *animal.training_movies[0].shape[1:])
    return whitened_std(prior.power(shape), config.prior.first_exponent)  # type: ignore[attr-defined]


class PriorScales:
    """What the prior of each clip is scaled by.

    Args:
      config, folder: of the run.
    """

    def __init__(self, config: ml_collections.ConfigDict, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._animals: dict[str, Animal] = {}
        self._fitted = functools.cache(self._fit)  # once for each animal, after its first reconstructions

    def wanted(self, descent: Descent) -> bool:
        """Whether the descent has a first reconstruction of its own."""
        return descent.kind != "first" and bool(first_clips(self._config, descent.animal))

    def of(self, descent: Descent, responses: np.ndarray, movie: np.ndarray) -> np.ndarray:
        """(time, height, width) the clip's standard deviation of each cosine coefficient over the animal's prior.

        Args:
          descent: of the clip.
          responses: (time, neuron).
          movie: (time, height, width), the first reconstruction.
        """
        animal = descent.animal
        self._animals[animal.name] = animal
        neurons = neurons_of(self._config, descent)
        return self._fitted(animal.name).relative_std(_deviation(animal, responses, neurons, movie))

    def _fit(self, name: str) -> Adaptation:
        config, animal = self._config, self._animals[name]
        ids = first_clips(config, animal)
        trials = animal.validation[: len(ids)]
        true, reconstructed = [], []
        for trial in trials:
            path = movie_path(self._folder, "first", name, trial.id)
            first = Descent("first", animal, trial.id, path, 0)
            neurons = neurons_of(config, first)
            true.append(_deviation(animal, trial.responses, neurons, trial.stimulus))
            reconstructed.append(_deviation(animal, trial.responses, neurons, runs.load_arrays(path)["movie"]))
        training = [movie - animal.grey for movie in animal.training_movies]
        return fit_adaptation(true, reconstructed, training, animal.recipe.parametrisation.power)  # type: ignore[attr-defined]


def _deviation(animal: Animal, responses: np.ndarray, neurons: np.ndarray | None, movie: np.ndarray) -> np.ndarray:
    """From the prior's mean."""
    baseline = animal.baseline(responses, neurons)
    return movie - animal.grey - (0.0 if baseline is None else baseline)
