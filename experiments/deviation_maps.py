"""Local gains of one animal's trials, by reconstruction or by the score of contrast, and their null distribution."""

import abc
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_collections
import numpy as np
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from experiments.descents import resumable, settings_of
from experiments.inputs import Ensemble
from experiments.predicted_responses import NOISE_ORDER, with_noise
from experiments.preparation import Animal, frame_step_of
from neurorecon import runs
from neurorecon.encoders import predict_ensemble
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.local_gain import GainNull, GainScale, LocalGain, fit_gain_null, local_gain, score_gain
from neurorecon.files import save_npz
from neurorecon.reconstruction import reconstruct
from neurorecon.reconstruction.contrast_score import movie_gradient, weighted_residuals
from neurorecon.reconstruction.noise import fit_noise
from neurorecon.recordings import Trial

LEAST_CLIPS = 3
Responses = Callable[[], np.ndarray]  # (time, neuron), made when they are needed


class Maps(abc.ABC):
    """One animal's local gains. What takes long is made once, kept under WORKDIR/deviation/, and gone on from.

    Args:
      config: of the reconstruction, with `deviation` as asked now.
      folder: of the reconstruction.
      animal, ensemble: which.
      on_made: called for every set of responses that is done.
    """

    per_clip: int  # sets of responses for each reconstructed clip, beside the draws

    def __init__(
        self, config: ml_collections.ConfigDict, folder: Path, animal: Animal, ensemble: Ensemble, on_made: Callable
    ) -> None:
        d = config.deviation
        self.validation = animal.validation[: d.validation_clips]
        if len(self.validation) < LEAST_CLIPS:
            raise NeuroreconError(
                f"--config.deviation.validation_clips: expected {LEAST_CLIPS} or more of {animal.name}, found "
                f"{len(self.validation)}"
            )
        self.config, self.animal, self.ensemble = config, animal, ensemble
        self.folder = folder / "deviation" / animal.name
        self.scale = GainScale(d.window_seconds * animal.recording.frame_rate, d.window_pixels, d.detail_pixels)
        self._on_made, self._counted = on_made, set[tuple[str, str]]()
        self._predictions: dict[str, np.ndarray] = {}
        self._noise = self._fitted_noise(1, NOISE_ORDER)

    def predicted(self, trial: Trial) -> np.ndarray:
        """(time, neuron) of the encoders for the true movie."""
        if trial.id not in self._predictions:
            members, readout = self.ensemble.members, self.animal.readout
            self._predictions[trial.id] = predict_ensemble(members, trial.stimulus, trial.behaviour, readout=readout)
        return self._predictions[trial.id]

    @abc.abstractmethod
    def gains(self, trial: Trial, responses: Mapping[str, Responses]) -> dict[str, LocalGain]:
        """Of responses to this trial, by names under which they are kept."""

    @abc.abstractmethod
    def clip(self, trial: Trial, movie: np.ndarray) -> LocalGain:
        """Of a reconstructed clip and the movie (time, height, width) that the run made of it."""

    def draws(self, trial: Trial) -> list[LocalGain]:
        """Of responses simulated for this trial: the encoders' and noise."""

        def drawn(place: int) -> np.ndarray:
            return with_noise(self._noise, self.predicted(trial), [self.config.seed, int(trial.id), place])

        names = {f"draw{k}": functools.partial(drawn, k) for k in range(self.config.deviation.samples)}
        return list(self.gains(trial, names).values())

    def null(self) -> GainNull:
        """From validation clips."""
        gains = [self.gains(t, {"recorded": functools.partial(_recorded, t)})["recorded"] for t in self.validation]
        return fit_gain_null(gains, [self.draws(t) for t in self.validation])

    def skipped(self, trial: Trial) -> int:
        """Frames at the start that are not scored."""
        return min(self.config.skip_frames, trial.num_frames // 4)

    def _fitted_noise(self, frame_step: int, order: int):
        skip, trials = self.config.skip_frames, self.animal.validation
        predicted, recorded = [self.predicted(t)[skip:] for t in trials], [t.responses[skip:] for t in trials]
        return fit_noise(predicted, recorded, frame_step=frame_step, order=order)

    def _count(self, trial: Trial, name: str) -> None:
        if (trial.id, name) not in self._counted:
            self._counted.add((trial.id, name))
            self._on_made()


class ReconstructedGains(Maps):
    """Reconstructions regressed on what is expected of them."""

    per_clip = 1

    def gains(self, trial: Trial, responses: Mapping[str, Responses]) -> dict[str, LocalGain]:
        return {name: self._gain(trial, self._movie(trial, name, made)) for name, made in responses.items()}

    def clip(self, trial: Trial, movie: np.ndarray) -> LocalGain:
        return self._gain(trial, movie)

    def _gain(self, trial: Trial, movie: np.ndarray) -> LocalGain:
        skip = self.skipped(trial)
        expected = self._movie(trial, "expected", lambda: self.predicted(trial))
        return local_gain(movie[skip:], expected[skip:], self.animal.mask, self.scale)

    def _movie(self, trial: Trial, name: str, responses: Responses) -> np.ndarray:
        """(time, height, width) that the run's recipe makes of `responses()`."""
        path = self.folder / f"{trial.id}_{name}.npz"
        if not path.is_file():
            config, animal, given = self.config, self.animal, responses()
            store = path.with_name(f"{path.stem}_progress.npz")
            with tqdm(disable=True) as bar, resumable(store, bar, config.checkpoint_seconds) as resume:
                made = reconstruct(
                    self.ensemble.members,
                    given,
                    trial.behaviour,
                    baseline=animal.baseline(given),
                    **settings_of(config, animal),
                    **resume,
                )
            save_npz(path, movie=made.movie)
        self._count(trial, name)
        return runs.load_arrays(path)["movie"]


class ScoredGains(Maps):
    """One-step estimates from the score of contrast; nothing is descended."""

    per_clip = 2

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._frame_step = frame_step_of(self.ensemble)
        self._likelihood = self._fitted_noise(self._frame_step, 2)

    def gains(self, trial: Trial, responses: Mapping[str, Responses]) -> dict[str, LocalGain]:
        scores, skip = self._scores(trial, responses), self.skipped(trial)
        lost = scores.pop("lost")[skip:]
        return {name: score_gain(s[skip:], lost, self.animal.mask, self.scale) for name, s in scores.items()}

    def clip(self, trial: Trial, movie: np.ndarray) -> LocalGain:
        return self.gains(trial, {"recorded": functools.partial(_recorded, trial)})["recorded"]

    def _scores(self, trial: Trial, responses: Mapping[str, Responses]) -> dict[str, np.ndarray]:
        """(time, height, width) each, and "lost": of a movie without contrast."""
        d, members, readout = self.config.deviation, self.ensemble.members, self.animal.readout
        settings = json.dumps({"detail_pixels": d.detail_pixels, "shared_gain_seconds": d.shared_gain_seconds})
        scores = {}
        for name in ("lost", *responses):
            path = self._path(trial, name)
            kept = runs.load_arrays(path) if path.is_file() else {}
            if str(kept.get("settings")) == settings:
                scores[name] = kept["score"]
        missing = [name for name in ("lost", *responses) if name not in scores]
        if missing:
            blur = gaussian_filter(trial.stimulus, (0, d.detail_pixels, d.detail_pixels))
            contrast = trial.stimulus - blur
            weighted = []
            for name in missing:
                if name == "lost":
                    # Of all responses at once nothing is taken for a gain that neurons share.
                    given, shortest = predict_ensemble(members, blur, trial.behaviour, readout=readout), 0
                else:
                    rate = self.animal.recording.frame_rate
                    given, shortest = responses[name](), round(d.shared_gain_seconds * rate)
                weighted.append(
                    weighted_residuals(
                        self._likelihood,
                        self.predicted(trial),
                        given[None],
                        frame_step=self._frame_step,
                        shortest_gain=shortest,
                    )[0]
                )
            gradients = movie_gradient(members, trial.stimulus, trial.behaviour, np.stack(weighted), readout=readout)
            for name, gradient in zip(missing, gradients):
                scores[name] = (contrast * gradient).astype(np.float32)
                save_npz(self._path(trial, name), score=scores[name], settings=settings)
        for name in scores:
            self._count(trial, name)
        return scores

    def _path(self, trial: Trial, name: str) -> Path:
        return self.folder / f"{trial.id}_{name}_score.npz"


STATISTICS: dict[str, type[Maps]] = {"score": ScoredGains, "reconstruction": ReconstructedGains}


def _recorded(trial: Trial) -> np.ndarray:
    return trial.responses
