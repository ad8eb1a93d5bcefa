"""Studies that invert predicted responses: who predicts and who inverts, with which noise, and the descent itself.

The encoders that predict never invert: encoders that invert their own predictions share their mistakes, and score
higher than any brain could.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from experiments import cli
from experiments.descents import resumable, settings_of
from experiments.inputs import Ensemble, ensemble_of
from experiments.preparation import Animal
from neurorecon.encoders import predict_ensemble
from neurorecon.errors import NeuroreconError
from neurorecon.files import save_npz
from neurorecon.reconstruction.noise import ResponseNoise, fit_noise, simulate_responses
from neurorecon.reconstruction.reconstruct import reconstruct_clips
from neurorecon.recordings import Recording

# Residuals are fitted frame by frame, back to a third of a second: calcium outlasts several frames.
NOISE_ORDER = 10

# Of the config: what a study that predicts responses must not have changed when it goes on.
KEYS = (
    "seed", "recipe", "num_steps", "default_recipe", "published_recipe", "prior", "mask", "validation_tier", "fold",
    "skip_frames", "decodable_fraction", "stop",
)  # fmt: skip


def two_ensembles(given: Ensemble, predictors: str, key: str) -> tuple[Ensemble, Ensemble]:
    """The encoders that invert and those that predict.

    Args:
      given: of the run.
      predictors: work folders of other encoders, which predict while the given ones invert; empty: the given ensemble
        is split, its first half (the larger one) inverts and the rest predicts.
      key: of the config, named in errors.

    Raises:
      NeuroreconError: fewer than two encoders to split, or the two lots have an encoder in common.
    """
    if predictors:
        return given, distinct(given, ensemble_of(cli.listed(predictors)), key)
    count = len(given.members)
    if count < 2:
        raise NeuroreconError(
            f"--config.encoders: expected two encoders at least, one to predict and another to invert, found {count}; "
            f"train with --config.num_models=2, or name others in --config.{key}"
        )
    half = count - count // 2
    return Ensemble(given.members[:half], given.animals), Ensemble(given.members[half:], given.animals)


def distinct(inverting: Ensemble, others: Ensemble, key: str) -> Ensemble:
    """`others`, when none of them has the weights of an encoder that inverts.

    Raises:
      NeuroreconError: one has.
    """
    for place, (encoder, variables) in enumerate(others.members):
        for own, weights in inverting.members:
            if type(own) is type(encoder) and _equal(variables, weights):
                raise NeuroreconError(
                    f"--config.{key}: expected other encoders than those that invert, found the same weights in "
                    f"number {place}; name encoders of another training"
                )
    return others


def _equal(a: Any, b: Any) -> bool:
    x, y = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(x) == len(y) and all(np.array_equal(p, q) for p, q in zip(x, y))


def fitted_noise(animal: Animal, predicting: Ensemble, readout: int, skip_frames: int) -> ResponseNoise:
    """What the predicting encoders leave unexplained of validation trials, neuron by neuron and frame by frame.

    The trials' own variability and the encoders' errors together. Neurons are taken as independent.

    Raises:
      NeuroreconError: trials too short for it.
    """
    predicted = [
        predict_ensemble(predicting.members, t.stimulus, t.behaviour, readout=readout)[skip_frames:]
        for t in animal.validation
    ]
    recorded = [t.responses[skip_frames:] for t in animal.validation]
    return fit_noise(predicted, recorded, frame_step=1, order=NOISE_ORDER)


def with_noise(noise: ResponseNoise, predicted: np.ndarray, seed: Sequence[int]) -> np.ndarray:
    """Predicted mean (time, neuron) plus one draw of the fitted noise."""
    return simulate_responses(noise, predicted, frame_step=1, seed=list(seed))[0]


def checked_skip(config: ml_collections.ConfigDict, num_frames: int, what: str) -> int:
    """`config.skip_frames`, when it leaves something of `num_frames` to score.

    Raises:
      NeuroreconError: it doesn't.
    """
    if not 0 <= config.skip_frames <= num_frames - 4:
        raise NeuroreconError(
            f"--config.skip_frames: expected at least 4 frames of {what} left to score, found {num_frames} frames and "
            f"{config.skip_frames} skipped"
        )
    return config.skip_frames


def usable_encoders(recording: Recording, ensemble: Ensemble, index: int, key: str) -> int:
    """The readout of a recording in encoders that predict.

    Raises:
      NeuroreconError: no readout or another screen.
    """
    readout = ensemble.readout(recording, index)
    for encoder, _ in ensemble.members:
        if tuple(encoder.screen) != tuple(recording.frame_shape):
            raise NeuroreconError(
                f"--config.{key}: expected encoders for frames of {tuple(recording.frame_shape)}, found "
                f"{tuple(encoder.screen)}"
            )
    return readout


class Descents:
    """Descents of one study, each kept in a file once it is done, with a bar that tells the time left.

    Args:
      config: of the study.
      folder: of the study.
      paths: of every descent; those that are there are not made again.
      steps: of a descent.
    """

    def __init__(self, config: ml_collections.ConfigDict, folder: Path, paths: Sequence[Path], steps: int) -> None:
        self._config, self._folder, self._steps = config, folder, steps
        left = [path for path in paths if not path.is_file()]
        if len(left) < len(paths):
            print(f"{len(paths) - len(left)} of {len(paths)} lots of movies are there")
        self._bar = tqdm(total=steps * len(left), desc=folder.name, unit="step", mininterval=2.0, disable=not left)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()

    def movies(
        self, path: Path, animal: Animal, inverting: Ensemble, responses: np.ndarray, behaviour: np.ndarray
    ) -> np.ndarray:
        """Reconstructs clips of equal length in one compiled descent, and writes them to `path`.

        Args:
          path: of the npz.
          animal: whose recipe and masks.
          inverting: encoders.
          responses: (clip, time, neuron).
          behaviour: (time, 4), the same for every clip.

        Returns:
          (clip, time, height, width) float16, a tenth of a grey value at worst.

        Raises:
          NeuroreconError: a descent that is not finite.
        """
        store = self._folder / "progress" / f"{animal.name}-{path.stem}.npz"
        self._bar.set_postfix_str(f"{animal.name} {path.stem}, {len(responses)} movies")
        baselines = [animal.baseline(one) for one in responses]
        with resumable(store, self._bar, self._config.checkpoint_seconds) as resume:
            result = reconstruct_clips(
                inverting.members,
                responses,
                np.stack([behaviour] * len(responses)),
                baseline=None if baselines[0] is None else np.stack(baselines),  # type: ignore[arg-type]
                **settings_of(self._config, animal),
                **resume,
            )
            movies = result.movie.astype(np.float16)
            save_npz(path, movies=movies)
        return movies
