"""What a reconstruction knows beforehand of an animal, all of it from training and validation trials."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import jax
import ml_collections
import numpy as np

from experiments.alpha_masks import alpha_of
from experiments.decoder_training import claimed, tell_components, trained_decoder
from experiments.inputs import Ensemble, ensemble_of, fold_trials
from experiments.spectra import prior_of
from neurorecon import runs
from neurorecon.decoders import ConvolutionalDecoder
from neurorecon.encoders import predict_ensemble
from neurorecon.encoders.canvas import crop_from_canvas
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation import decodable_mask, fit_linear_decoder, neuron_correlations
from neurorecon.evaluation.linear_decoder import LinearDecoder
from neurorecon.files import save_npz
from neurorecon.reconstruction import Recipe, default_recipe, losses, prior_alone, published_recipe
from neurorecon.reconstruction.calibration import Calibration, fit_calibration
from neurorecon.reconstruction.likelihoods import fit_likelihood
from neurorecon.reconstruction.noise import ResponseNoise, fit_noise
from neurorecon.reconstruction.stopping import HeldOutNeurons
from neurorecon.recordings import Recording, Trial
from neurorecon.training.trainer import split_trials


@dataclasses.dataclass(frozen=True)
class Animal:
    """One recording, ready to be reconstructed.

    Attributes:
      name, recording, readout: which.
      recipe: with the prior measured on this animal's training movies.
      mask: (height, width) bool, where movies are scored.
      update_mask: where the responses may move pixels; None for everywhere.
      decoder: the linear decoder, fitted; None where nothing needs it.
      prior_decoder: whose movie of a clip is the prior's mean; None: that is one grey level.
      validation: trials that neither encoders nor decoder were fitted to.
      calibration_clips: so many of them calibrate the movies; 0 for none.
      noise: what the encoders leave unexplained of validation trials, where posterior samples are drawn; else None.
      reliability: gives (neuron,) the correlation of predicted and recorded responses of validation trials.
      alpha: (height, width) of the screen or canvas, from which the masks come.
      training_movies: on which the prior is measured.
      grey: the prior's mean, a grey value; 0 where a decoder's movie is.
      level: mean grey value of the training movies.
    """

    name: str
    recording: Recording
    readout: int
    recipe: Recipe
    mask: np.ndarray
    update_mask: np.ndarray | None
    decoder: LinearDecoder | None
    prior_decoder: LinearDecoder | ConvolutionalDecoder | None
    validation: list[Trial]
    calibration_clips: int
    noise: ResponseNoise | None
    reliability: Callable[[], np.ndarray]
    alpha: np.ndarray
    training_movies: list[np.ndarray]
    grey: float
    level: float

    def decoded(self, responses: np.ndarray) -> np.ndarray:
        """The linear decoder's movie of responses (time, neuron), grey values 0..255."""
        if self.decoder is None:
            raise NeuroreconError(f"{self.name}: the linear decoder was not fitted")
        return _shown(self.decoder, responses)

    def calibration(self, movies: list[np.ndarray]) -> Calibration | None:
        """From the reconstructions of the first `calibration_clips` validation trials; None where there are none."""
        if not movies:
            return None
        trials = self.validation[: len(movies)]
        estimates = [(movie, self.decoded(t.responses)) for movie, t in zip(movies, trials)]
        mean = float(np.mean([t.stimulus.mean() for t in trials]))
        return fit_calibration([t.stimulus for t in trials], estimates, mean=mean, mask=self.mask)

    def baseline(self, responses: np.ndarray, neurons: np.ndarray | None = None) -> np.ndarray | None:
        """The prior's mean for responses (time, neuron); None where the recipe has its own.

        Args:
          responses: of one clip.
          neurons: (neuron,) bool, those in use: the decoder must not see what the descent doesn't. None: all.
        """
        if self.prior_decoder is None:
            return None
        if neurons is not None:
            responses = np.where(neurons, responses, self.prior_decoder.uninformative)
        return _shown(self.prior_decoder, responses)

    def draw_from_prior(self, folder: Path, trial_ids: list[str], *, seed: int) -> None:
        """Writes movies of the prior alone under `folder`/controls/prior_alone/: what no response shows."""
        for trial_id in trial_ids:
            path = folder / "controls" / "prior_alone" / self.name / f"{trial_id}.npz"
            if not path.is_file():
                movie = prior_alone(
                    self.recipe,
                    (self.recording.num_frames(trial_id), *self.recording.frame_shape),
                    key=jax.random.fold_in(jax.random.key(seed), crc32(f"{self.name}/{trial_id}".encode())),
                    baseline=0.0 if self.prior_decoder is None else self.level,
                )
                save_npz(path, movie=movie)

    def decode(self, folder: Path, trial_ids: list[str]) -> None:
        """Writes the linear decoder's movies under `folder`/controls/linear_decoder/."""
        if self.decoder is None:
            return
        for trial_id in trial_ids:
            path = folder / "controls" / "linear_decoder" / self.name / f"{trial_id}.npz"
            if not path.is_file():
                movie = self.decoded(self.recording.target(trial_id).responses)
                save_npz(path, movie=movie, penalty=self.decoder.penalty)


def _shown(decoder: LinearDecoder | ConvolutionalDecoder, responses: np.ndarray) -> np.ndarray:
    return np.clip(decoder.predict(responses), 0.0, 255.0).astype(np.float32)


class Kept:
    """Encoders and prepared animals of one process, for runs that differ in what their descents are given alone."""

    # Of the config, what no preparation looks at.
    INDIFFERENT = frozenset({
        "neurons", "behaviour", "responses", "controls", "trials", "tier", "fold_clips", "max_clips", "num_steps",
        "steps_per_call", "window_chunk", "memory_gib", "precision", "shard", "cpu_devices", "clips_at_once",
        "length_bucket", "job", "compilation_cache", "save_movies", "variants", "checkpoint_seconds",
    })  # fmt: skip

    def __init__(self) -> None:
        self._ensembles: dict[tuple[str, ...], Ensemble] = {}
        self._animals: dict[tuple, Animal] = {}

    def ensemble(self, paths: list[str]) -> Ensemble:
        """As `ensemble_of`, read once."""
        if tuple(paths) not in self._ensembles:
            self._ensembles[tuple(paths)] = ensemble_of(paths)
        return self._ensembles[tuple(paths)]

    def animal(
        self,
        config: ml_collections.ConfigDict,
        folder: Path,
        recording: Recording,
        ensemble: Ensemble,
        index: int,
        *,
        linear: bool,
    ) -> Animal:
        """As `prepare_animal`, prepared once."""
        settings = {k: v for k, v in config.to_dict().items() if k not in self.INDIFFERENT}
        path = folder / "masks" / f"{recording.name}.npz"
        given = crc32(runs.load_arrays(path)["alpha"].tobytes()) if path.is_file() else None
        key = (json.dumps(settings, sort_keys=True), str(recording.path), index, linear)
        animal = self._animals.get((*key, given))
        if animal is None:
            animal = prepare_animal(config, folder, recording, ensemble, index, linear=linear)
            self._animals[(*key, given)] = animal
            # A folder that was given the mask which is measured here is the same case.
            self._animals[(*key, crc32(animal.alpha.tobytes()))] = animal
        if given is None and not path.is_file():
            save_npz(path, alpha=animal.alpha, kind=config.mask.kind)
        return animal


def prepare_animal(
    config: ml_collections.ConfigDict,
    folder: Path,
    recording: Recording,
    ensemble: Ensemble,
    index: int,
    *,
    linear: bool,
    kept: Kept | None = None,
) -> Animal:
    """Measures prior and masks and fits the linear decoder, from training and validation trials alone.

    Args:
      config: of the run.
      folder: its masks/NAME.npz is taken where it is there, and written where it isn't.
      recording, ensemble: which.
      index: of the recording among all of the run.
      linear: fit the linear decoder even where the recipe does not need it.
      kept: of earlier runs of this process.

    Raises:
      NeuroreconError: bad config, or an encoder that doesn't fit the recording.
    """
    if kept is not None:
        return kept.animal(config, folder, recording, ensemble, index, linear=linear)
    readout = ensemble.readout(recording, index)
    for encoder, _ in ensemble.members:
        if tuple(encoder.screen) != tuple(recording.frame_shape):
            raise NeuroreconError(
                f"{recording.name}: frames of {tuple(recording.frame_shape)}, but an encoder for frames of "
                f"{tuple(encoder.screen)}; use encoders trained on this recording"
            )
    fit_ids, validation_ids = split_trials(
        recording, validation_tier=config.validation_tier, num_validation=config.training.validation_trials
    )
    if config.fold >= 0:  # nothing may have seen the clips to reconstruct
        unseen = set(fold_trials(recording, config.fold))
        fit_ids, validation_ids = ([i for i in ids if i not in unseen] for ids in (fit_ids, validation_ids))
        if not fit_ids or not validation_ids:
            raise NeuroreconError(
                f"{recording.name}: expected training and validation trials outside fold {config.fold}, "
                f"found {len(fit_ids)} and {len(validation_ids)}; raise --config.training.validation_trials"
            )
    print(f"{recording.name}: measures prior and masks")
    fit = [recording.target(i) for i in fit_ids]
    validation = [recording.target(i) for i in validation_ids]
    shown = fit if config.mask.fold < 0 else [recording.target(i) for i in fold_trials(recording, config.mask.fold)]
    alpha = alpha_of(config, folder, shown, ensemble, readout, recording.name, index)
    screen_alpha = crop_from_canvas(alpha, recording.frame_shape)
    mask = screen_alpha >= (1.0 if config.mask.kind == "alpha" else config.mask.threshold)
    decoder = None
    from_linear = config.recipe == "default" and config.prior.mean == "linear_decoder"
    calibrating = min(config.calibration_clips, len(validation)) if config.recipe == "default" else 0
    if linear or from_linear or calibrating or config.decodable_fraction > 0:
        root = config.linear_decoder.square_root and min(float(t.responses.min()) for t in fit) >= 0
        print(f"{recording.name}: fits the linear decoder{' to square roots of the responses' if root else ''}")
        decoder = fit_linear_decoder(
            [t.responses for t in fit],
            [t.stimulus for t in fit],
            [t.responses for t in validation],
            [t.stimulus for t in validation],
            num_lags=config.linear_decoder.num_lags,
            lag_step=config.linear_decoder.lag_step,
            mask=mask,
            skip_frames=min(config.skip_frames, min(t.num_frames for t in validation) // 2),
            square_root=root,
        )
        tell_components(recording, decoder)
    if config.decodable_fraction > 0 and decoder is not None:
        decoded = [decoder.predict(t.responses) for t in validation]
        mask = decodable_mask([t.stimulus for t in validation], decoded, config.decodable_fraction)
    if not mask.any():
        raise NeuroreconError(f"{recording.name}: the evaluation mask is empty; lower --config.mask.threshold")
    update = None
    if config.mask.kind != "none" and (config.mask.restrict or config.recipe == "published"):
        update = alpha >= config.mask.update_threshold
    movies = [t.stimulus for t in fit]
    mean = level = float(np.mean([m.mean() for m in movies]))
    prior_decoder: LinearDecoder | ConvolutionalDecoder | None = decoder if from_linear else None
    if config.recipe == "default" and config.prior.mean == "convolutional_decoder":
        prior_decoder = trained_decoder(config, config, claimed(config, folder), recording, mask)
    if prior_decoder is not None:
        # What the decoder leaves to be explained, seen on trials that it was not fitted to.
        movies = [t.stimulus - _shown(prior_decoder, t.responses) for t in validation]
        mean = 0.0
    prior = prior_of(config, movies, mean)
    predicted = functools.cache(
        lambda: [predict_ensemble(ensemble.members, t.stimulus, t.behaviour, readout=readout) for t in validation]
    )
    measured = functools.cache(lambda: _noise(ensemble, validation, predicted(), config.skip_frames))

    def fitted(likelihood: str) -> losses.ResponseLoss:
        skip = config.skip_frames
        return fit_likelihood(
            likelihood,
            [p[skip:] for p in predicted()],
            [t.responses[skip:] for t in validation],
            frame_step=frame_step_of(ensemble),
        )

    return Animal(
        name=recording.name,
        recording=recording,
        readout=readout,
        recipe=_recipe(config, ensemble, prior, fitted),
        mask=mask,
        update_mask=update,
        decoder=decoder,
        prior_decoder=prior_decoder,
        validation=validation,
        calibration_clips=calibrating,
        noise=measured() if config.posterior.samples else None,
        reliability=lambda: neuron_correlations(
            predicted(), [t.responses for t in validation], skip=config.skip_frames
        ),
        alpha=alpha,
        training_movies=movies,
        grey=mean,
        level=level,
    )


def _recipe(
    config: ml_collections.ConfigDict,
    ensemble: Ensemble,
    prior: dict[str, Any],
    fitted: Callable[[str], losses.ResponseLoss],
) -> Recipe:
    stop = HeldOutNeurons(config.stop.held_out, config.stop.patience) if config.stop.held_out else None
    if config.recipe == "published":
        return published_recipe(**config.published_recipe.to_dict(), stop=stop)
    if config.recipe != "default":
        raise NeuroreconError(f"--config.recipe: expected default or published, found {config.recipe!r}")
    changes = config.default_recipe.to_dict()
    likelihood, weight = changes.pop("likelihood"), changes.pop("likelihood_weight")
    loss = losses.poisson if likelihood == "poisson" else fitted(likelihood)
    # The frames between those of a stream repeat what it says, and are no news of their own.
    streams = float(np.mean([encoder.frame_step for encoder, _ in ensemble.members]))
    return default_recipe(**prior, losses={likelihood: (weight / streams, loss)}, stop=stop, **changes)


def frame_step_of(ensemble: Ensemble) -> int:
    """That of all encoders.

    Raises:
      NeuroreconError: they differ.
    """
    steps = {encoder.frame_step for encoder, _ in ensemble.members}
    if len(steps) > 1:
        raise NeuroreconError(
            f"--config.encoders: expected encoders of one frame step, found {sorted(steps)}; choose others, or "
            "--config.default_recipe.likelihood=poisson"
        )
    return steps.pop()


def _noise(ensemble: Ensemble, trials: list[Trial], predictions: list[np.ndarray], skip: int) -> ResponseNoise:
    """What the ensemble leaves unexplained of trials that it was not fitted to."""
    step = frame_step_of(ensemble)
    return fit_noise([p[skip:] for p in predictions], [t.responses[skip:] for t in trials], frame_step=step)
