"""How fine and how fast a detail can be seen: noise and gratings of known scale, inverted from predicted responses.

    python -m experiments.resolution --config experiments/configs/demo.py --workdir runs/demo

What it asks: nobody records responses to hundreds of test stimuli, so one set of encoders predicts them and another
inverts them. By default the last half of the ensemble predicts and the first half inverts, never the same encoder;
--config.resolution.predictors names encoders of another training instead. Behaviour stands at its mean. Stimuli are
Gaussian noise of each pair of length constants in space and time, and gratings of each pair of frequencies, drifting
in several directions; the prior remains that of natural movies. Controls: each first stimulus also with black and
white exchanged (its reconstruction must be the plain one with the sign turned: they correlate below 0), and also from
responses with noise of the size that the encoders leave unexplained of recorded trials.

How to read it: maps of the movie correlation inside the evaluation mask over the two scales; half-points, where it
falls to half of its best along one scale; the power of stimuli and reconstructions over frequency, with the share of
amplitude that comes through; and single frames. Correlations are an upper bound: no recorded response enters. What
encoders can't predict (very fine detail, say) comes out neither here nor in life; what they predict wrongly is not
noticed. Degrees are those at the screen's centre (--config.screen).

Cost: 176 clips of 3 s by default, five minutes on two free cores with the demo's encoders. Goes on where it stopped.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np

from experiments import cli, studies
from experiments import predicted_responses as predicted
from experiments.inputs import Ensemble, ensemble_of, located, recordings_of
from experiments.preparation import Animal, prepare_animal
from neurorecon import runs
from neurorecon.encoders import predict_ensemble
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation import movie_correlation
from neurorecon.evaluation.coherence import movie_spectra
from neurorecon.evaluation.resolution import Reconstructed
from neurorecon.reconstruction.filter_scale import receptive_field_sigmas
from neurorecon.reporting.resolution_figures import resolution_figures
from neurorecon.reporting.resolution_findings import COLUMNS, AnimalResult, findings, table
from neurorecon.stimuli.resolution import Scale, scales, stimuli_of

KEYS = (*predicted.KEYS, "resolution", "screen")
VARIANTS = ("plain", "inverted", "noise_matched")
EXAMPLE_FRAME = 30  # of those shown, from the end: away from both ends of the clip
NEURONS = 24  # whose receptive fields are measured, a backward pass each


class Lot(NamedTuple):
    """The clips of one condition, reconstructed together.

    Attributes:
      scale: of the condition.
      shown: (clip, time, height, width), what the predicting encoders see.
      variants: of each clip.
      repeats: of each clip, its place among the condition's stimuli.
    """

    scale: Scale
    shown: np.ndarray
    variants: tuple[str, ...]
    repeats: tuple[int, ...]


def resolution(config: ml_collections.ConfigDict, workdir: str) -> None:
    """The study; see the module.

    Raises:
      NeuroreconError: bad config, recordings or encoders, fewer than two encoders, or a descent that is not finite.
    """
    started = time.monotonic()
    own = config.resolution
    skip = predicted.checked_skip(config, own.num_frames, "a stimulus (--config.resolution.num_frames)")
    conditions = [scale for kind in ("noise", "grating") for scale in _scales(config, kind)]
    config, folder = studies.begin(config, workdir, "resolution", KEYS)
    config.calibration_clips = config.posterior.samples = 0  # neither is of use here
    config = located(config)
    recordings = recordings_of(config)
    given = ensemble_of(cli.listed(config.encoders))
    inverting, predicting = predicted.two_ensembles(given, own.predictors, "resolution.predictors")
    animals = [prepare_animal(config, folder, r, inverting, i, linear=False) for i, r in enumerate(recordings)]
    results = []
    steps = config.num_steps or animals[0].recipe.num_steps
    paths = [_path(folder, animal, scale) for animal in animals for scale in conditions]
    descents = predicted.Descents(config, folder, paths, steps)
    for index, animal in enumerate(animals):
        readout = predicted.usable_encoders(animal.recording, predicting, index, "resolution.predictors")
        noise = predicted.fitted_noise(animal, predicting, readout, config.skip_frames)
        degrees = 1 / studies.screen_pixels_per_degree(config, animal.recording.frame_shape[1])
        result = AnimalResult(
            animal.name, degrees, animal.recording.frame_rate, _receptive_fields(folder, animal, inverting), animal.mask
        )
        behaviour = np.tile(animal.recording.behaviour_mean(), (own.num_frames, 1))
        for lot in _lots(config, animal, conditions, degrees):
            path = _path(folder, animal, lot.scale)
            if path.is_file():
                movies = runs.load_arrays(path)["movies"]
            else:
                responses = []
                for shown, variant, repeat in zip(lot.shown, lot.variants, lot.repeats):
                    mean = predict_ensemble(predicting.members, shown, behaviour, readout=readout)
                    seed = [config.seed, index, conditions.index(lot.scale), repeat]
                    responses.append(predicted.with_noise(noise, mean, seed) if variant == "noise_matched" else mean)
                movies = descents.movies(path, animal, inverting, np.stack(responses), behaviour)
            _score(result, animal, lot, movies, skip)
        results.append(result)
    descents.close()
    studies.finish(
        folder,
        started=started,
        config=config,
        title="Resolution in space and time",
        question="How fine and how fast a detail can be seen in a reconstruction?",
        findings=findings(results, len(predicting.members), len(inverting.members)),
        columns=COLUMNS,
        rows=table(results),
        figures=resolution_figures(results),
    )


def _scales(config: ml_collections.ConfigDict, kind: str) -> list[Scale]:
    own = config.resolution
    if own.noise_repeats < 1 or own.directions < 1 or own.inverted < 0 or own.noise_matched < 0:
        raise NeuroreconError(
            "--config.resolution: expected at least one of noise_repeats and directions, and no negative inverted or "
            "noise_matched"
        )
    numbers = []
    for key in (f"{kind}_spatial", f"{kind}_temporal"):
        try:
            numbers.append([float(v) for v in cli.listed(own[key])])
        except ValueError:
            raise NeuroreconError(f"--config.resolution.{key}: expected numbers, found {own[key]!r}") from None
    return scales(kind, *numbers)


def _path(folder: Path, animal: Animal, scale: Scale) -> Path:
    return folder / "movies" / animal.name / f"{scale.name}.npz"


def _lots(config: ml_collections.ConfigDict, animal: Animal, conditions: list[Scale], degrees: float) -> Iterator[Lot]:
    own, (height, width) = config.resolution, animal.recording.frame_shape
    for scale in conditions:
        count = own.noise_repeats if scale.kind == "noise" else own.directions
        stimuli = stimuli_of(
            scale,
            repeats=count,
            seed=config.seed,
            num_frames=own.num_frames,
            height=height,
            width=width,
            frame_rate=animal.recording.frame_rate,
            degrees_per_pixel=degrees,
        )
        counts = (count, min(own.inverted, count), min(own.noise_matched, count))
        clips = [(variant, k) for variant, n in zip(VARIANTS, counts) for k in range(n)]
        shown = np.stack([255 - stimuli[k] if variant == "inverted" else stimuli[k] for variant, k in clips])
        yield Lot(scale, shown, tuple(v for v, _ in clips), tuple(k for _, k in clips))


def _receptive_fields(folder: Path, animal: Animal, inverting: Ensemble) -> np.ndarray:
    """(neuron,) sigmas in pixels, of some neurons of the first inverting encoder; kept in the folder."""
    path = folder / "receptive_fields" / f"{animal.name}.npz"
    if not path.is_file():
        count = animal.recording.num_neurons
        some = np.unique(np.linspace(0, count - 1, min(NEURONS, count)).astype(int))
        around = animal.validation[0]
        sigmas = receptive_field_sigmas(
            *inverting.members[0], around.stimulus, around.behaviour, some, readout=animal.readout
        )
        runs.save_arrays(path, {"neurons": some, "sigmas": sigmas})
    return runs.load_arrays(path)["sigmas"]


def _score(result: AnimalResult, animal: Animal, lot: Lot, movies: np.ndarray, skip: int) -> None:
    """Adds the clips of a condition to the animal's results."""
    scored = movies[:, skip:].astype(np.float32)
    plain = {repeat: movie for variant, repeat, movie in zip(lot.variants, lot.repeats, scored) if variant == "plain"}
    for shown, variant, repeat, movie in zip(lot.shown[:, skip:], lot.variants, lot.repeats, scored):
        own = _correlation(shown, movie, animal.mask)
        between = _correlation(plain[repeat], movie, animal.mask) if variant == "inverted" else float("nan")
        result.scores.append(Reconstructed(animal.name, *lot.scale, variant, repeat, own, between))
        if lot.scale.kind == "noise" and variant != "inverted":
            spectra = movie_spectra(
                shown,
                movie,
                animal.mask,
                pixels_per_degree=1 / result.degrees_per_pixel,
                frame_rate=result.frame_rate,
                segment_seconds=min(2.0, len(shown) / result.frame_rate),
            )
            (result.spectra if variant == "plain" else result.noise_spectra).append(spectra)
    if lot.repeats and lot.scale.kind == "noise":
        result.frames[lot.scale.spatial, lot.scale.temporal] = lot.shown[0, -EXAMPLE_FRAME], movies[0, -EXAMPLE_FRAME]


def _correlation(truth: np.ndarray, movie: np.ndarray, mask: np.ndarray) -> float:
    """Movie correlation; 0 of a constant movie, which tells nothing."""
    found = movie_correlation(truth, movie, mask)
    return found if np.isfinite(found) else 0.0


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    resolution(config, workdir)


if __name__ == "__main__":
    cli.run(main, __doc__, config="experiments/configs/base.py")
