"""What follows the descent of a clip: posterior samples, calibration by the validation clips, and the movie's file."""

import functools
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from tqdm import tqdm

from experiments.descents import Descent, arguments_of, behaviour_of, movie_path, neurons_of, resumable
from experiments.inputs import Ensemble
from experiments.preparation import Animal
from neurorecon import runs
from neurorecon.encoders.canvas import crop_from_canvas
from neurorecon.evaluation import fit_spread_scale
from neurorecon.files import save_npz
from neurorecon.reconstruction import Posterior, Reconstruction, sample_posterior
from neurorecon.reconstruction.calibration import Calibration


class Correction:
    """What follows the descent of a clip: samples of its posterior, and calibration by the validation clips.

    Args:
      config, folder, ensemble: of the run.
      states: the folder where states are kept.
      bar: counts the steps of the samples.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, folder: Path, states: Path, ensemble: Ensemble, bar: tqdm
    ) -> None:
        self._config, self._states, self._ensemble, self._bar = config, states, ensemble, bar
        # Once for each animal, after its validation clips.
        self._scale = functools.cache(lambda name: _spread_scale(config, folder, self._animals[name]))
        self._calibration = functools.cache(lambda name: _calibration(folder, self._animals[name]))
        self._animals: dict[str, Animal] = {}

    def samples(self, descent: Descent) -> bool:
        return self._config.posterior.samples > 0 and descent.has_spread

    def sampled(
        self, descent: Descent, responses: np.ndarray, movie: np.ndarray, prior_scale: np.ndarray | None
    ) -> Posterior | None:
        """Samples of the posterior, by all hosts together; None where none are asked for.

        Args:
          descent: which.
          responses: (time, neuron).
          movie: (time, height, width), reconstructed from them.
          prior_scale: (time, height, width), with which it was.
        """
        if not self.samples(descent):
            return None
        return _sample(self._config, self._states, self._ensemble, descent, responses, movie, prior_scale, self._bar)

    def __call__(
        self, descent: Descent, responses: np.ndarray, movie: np.ndarray, posterior: Posterior | None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The movie (time, height, width), calibrated, and what tells its spread, for the movie's file."""
        name = descent.animal.name
        self._animals[name] = descent.animal
        spread: dict[str, Any] = {}
        if posterior is not None:
            scale = self._scale(name) if descent.kind == "reconstruction" else 1.0
            spread = {"movie_std": np.float32(scale) * posterior.std, "spread_scale": scale}
        if descent.kind not in ("first", "validation"):
            calibration: Calibration | None = self._calibration(name)
            if calibration is not None:
                movie = calibration.apply(movie, descent.animal.decoded(responses))
        return movie, spread


def _calibration(folder: Path, animal: Animal) -> Calibration | None:
    paths = [movie_path(folder, "validation", animal.name, t.id) for t in animal.validation]
    return animal.calibration([runs.load_arrays(path)["movie"] for path in paths[: animal.calibration_clips]])


def spread_clips(config: ml_collections.ConfigDict) -> int:
    """Validation clips of each animal by which the spread is scaled."""
    return config.posterior.validation_clips if config.posterior.samples else 0


def _spread_scale(config: ml_collections.ConfigDict, folder: Path, animal: Animal) -> float:
    """What the posterior's spread is multiplied by, from the first validation clips; 1 where none are asked for."""
    trials = animal.validation[: spread_clips(config)]
    if not trials:
        return 1.0
    stored = [runs.load_arrays(movie_path(folder, "validation", animal.name, t.id)) for t in trials]
    return fit_spread_scale(
        [t.stimulus[config.skip_frames :] for t in trials],
        [arrays["movie"][config.skip_frames :] for arrays in stored],
        [arrays["movie_std"][config.skip_frames :] for arrays in stored],
        animal.mask,
    )


def _sample(
    config: ml_collections.ConfigDict,
    states: Path,
    ensemble: Ensemble,
    descent: Descent,
    responses: np.ndarray,
    movie: np.ndarray,
    prior_scale: np.ndarray | None,
    bar: tqdm,
) -> Posterior:
    animal = descent.animal
    assert animal.noise is not None
    store = states / f"posterior-{descent.kind}-{animal.name}-{descent.trial_id}.npz"
    with resumable(store, bar, config.checkpoint_seconds) as resume:
        return sample_posterior(
            ensemble.members[: descent.num_models],
            responses,
            behaviour_of(config, descent),
            noise=animal.noise,
            num_samples=config.posterior.samples,
            movie=movie,
            prior_scale=prior_scale,
            baseline=animal.baseline(responses, neurons_of(config, descent)),
            **arguments_of(config, descent),
            **resume,
        )


def save_movie(
    descent: Descent,
    movie: np.ndarray,
    result: Reconstruction,
    cost: dict[str, Any],
    spread: dict[str, Any],
    *,
    all_movies: bool,
) -> None:
    """Writes the movie's file.

    Args:
      descent: which.
      movie: (time, height, width), as it is shown and scored.
      result: of the descent.
      cost, spread: further arrays.
      all_movies: also each encoder's own movie.
    """
    arrays: dict[str, Any] = {
        "movie": movie,
        "mask": descent.animal.mask,
        "animal": descent.animal.name,
        "trial": descent.trial_id,
        "encoder_windows": result.encoder_windows,
        **cost,
    }
    if all_movies:
        arrays["movies"] = crop_from_canvas(result.movies, movie.shape[1:])
    traces = {f"trace_{k}": v for k, v in result.trace.items() if not k.startswith("window_")}
    save_npz(descent.path, **arrays, **spread, **traces)
