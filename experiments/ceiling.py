"""How well could movies be reconstructed at best: recorded responses beside predicted ones, with and without noise.

    python -m experiments.ceiling --config experiments/configs/demo.py --workdir runs/demo

What it asks: a reconstruction from recorded responses falls short of the movie because single trials are noisy, because
the encoders are wrong, and because neurons don't tell everything. The same clips are inverted by the same encoders from
five kinds of responses:

- recorded: single trials;
- noise_matched: predicted by other encoders, plus noise fitted to what these leave unexplained of validation trials;
- predicted: by those other encoders, without noise;
- other_architecture: by an encoder of another architecture, without noise;
- same_encoders: by the encoders that invert, as published; they share their own mistakes.

By default the last half of the ensemble predicts and the first half inverts; --config.ceiling.predictors names others.
The other architecture, linear-nonlinear, is trained in the study's folder unless WORKDIR/linear_nonlinear holds it; or
--config.ceiling.other_architecture names a work folder, or leaves it out (empty).

How to read it: noise_matched below predicted is what noise costs. recorded below noise_matched is what the noise's size
does not explain: mistakes of the encoders that have structure, noise that neurons share. The fitted noise holds the
encoders' mistakes too, as if they were noise, so that this last gap is a lower estimate. Ceilings from predicted
responses are upper bounds: the movie enters through an encoder, and what encoders get wrong together goes unnoticed.

Cost: six clips of 10 s in five conditions, and training a linear-nonlinear encoder: about five minutes on two free
cores with the demo's settings. Goes on where it stopped.
"""

import time
from pathlib import Path

import ml_collections
import numpy as np

from experiments import cli, studies
from experiments import predicted_responses as predicted
from experiments.evaluate_encoders import LINEAR, linear_nonlinear_config
from experiments.inputs import Ensemble, ensemble_of, located, recordings_of
from experiments.preparation import prepare_animal
from experiments.reconstruct import trials_of
from experiments.train import train_encoders
from neurorecon import runs
from neurorecon.encoders import LinearNonlinear, predict_ensemble
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation import movie_correlation
from neurorecon.recordings import Recording
from neurorecon.reporting.ceiling_findings import COLUMNS, ceiling_figure, findings

KEYS = (*predicted.KEYS, "ceiling", "training", "linear_nonlinear", "factorized")
TRAINED = "other_architecture"  # folder of the encoder that the study trains


def ceiling(config: ml_collections.ConfigDict, workdir: str) -> None:
    """The study; see the module.

    Raises:
      NeuroreconError: bad config, recordings or encoders, fewer than two encoders, or a descent that is not finite.
    """
    started = time.monotonic()
    if config.fold >= 0 and config.ceiling.other_architecture == "train":
        raise NeuroreconError(
            "--config.ceiling.other_architecture: expected a work folder, since clips of a fold are taken "
            "(--config.fold) and a training would see them; name one, or set it empty"
        )
    config, folder = studies.begin(config, workdir, "ceiling", KEYS)
    config.calibration_clips = config.posterior.samples = 0  # movies are those of the inversion alone
    config = located(config)
    recordings = recordings_of(config)
    clips = [_clips(config, recording) for recording in recordings]
    given = ensemble_of(cli.listed(config.encoders))
    inverting, predicting = predicted.two_ensembles(given, config.ceiling.predictors, "ceiling.predictors")
    other = _other_architecture(config, workdir, folder, inverting)
    animals = [prepare_animal(config, folder, r, inverting, i, linear=False) for i, r in enumerate(recordings)]
    paths = [folder / "movies" / a.name / f"{trial}.npz" for a, ids in zip(animals, clips) for trial in ids]
    descents = predicted.Descents(config, folder, paths, config.num_steps or animals[0].recipe.num_steps)
    rows = []
    for index, (animal, ids) in enumerate(zip(animals, clips)):
        recording = animal.recording
        readout = predicted.usable_encoders(recording, predicting, index, "ceiling.predictors")
        noise = predicted.fitted_noise(animal, predicting, readout, config.skip_frames)
        others = None
        if other is not None:
            others = predicted.usable_encoders(recording, other, index, "ceiling.other_architecture")
        for trial_id in ids:
            trial = recording.target(trial_id)
            skip = predicted.checked_skip(config, trial.num_frames, f"clip {trial_id}")
            path = folder / "movies" / animal.name / f"{trial_id}.npz"
            names = ["recorded", "noise_matched", "predicted", "same_encoders"]
            names += ["other_architecture"] if other is not None else []
            if path.is_file():
                movies = runs.load_arrays(path)["movies"]
            else:
                shown = trial.stimulus, trial.behaviour
                mean = predict_ensemble(predicting.members, *shown, readout=readout)
                noisy = predicted.with_noise(noise, mean, [config.seed, index, int(trial_id)])
                own = predict_ensemble(inverting.members, *shown, readout=animal.readout)
                responses = [trial.responses, noisy, mean, own]
                if other is not None and others is not None:
                    responses.append(predict_ensemble(other.members, *shown, readout=others))
                if config.recipe == "published":  # as the published code reads them
                    responses = [np.maximum(r, 0.0) for r in responses]
                movies = descents.movies(path, animal, inverting, np.stack(responses), trial.behaviour)
            scores = {
                name: movie_correlation(trial.stimulus[skip:], movie[skip:].astype(np.float32), animal.mask)
                for name, movie in zip(names, movies)
            }
            row = {"animal": animal.name, "trial": trial_id, **dict.fromkeys(COLUMNS.keys() - {"animal", "trial"})}
            rows.append(row | {name: value if np.isfinite(value) else 0.0 for name, value in scores.items()})
    descents.close()
    counts = len(predicting.members), len(inverting.members)
    label = "" if other is None else type(other.members[0][0]).__name__
    studies.finish(
        folder,
        started=started,
        config=config,
        title="What could be reconstructed at best",
        question="How much of what movies miss is the noise of single trials, and how much the encoders' fault?",
        findings=findings(rows, *counts, label),
        columns=COLUMNS,
        rows=rows,
        figures={"ceiling": ceiling_figure(rows)},
    )


def _clips(config: ml_collections.ConfigDict, recording: Recording) -> list[str]:
    ids = trials_of(recording, studies.capped(config, config.ceiling.num_clips))
    if not ids:
        raise NeuroreconError(f"--config.tier: expected trials of {config.tier} in {recording.name}, found none")
    return ids


def _other_architecture(
    config: ml_collections.ConfigDict, workdir: str, folder: Path, inverting: Ensemble
) -> Ensemble | None:
    """Encoders of another architecture than those that invert: trained here, read, or None."""
    named, own = config.ceiling.other_architecture, {type(encoder) for encoder, _ in inverting.members}
    if not named:
        return None
    if named == "train":
        if LinearNonlinear in own:
            changed = config.copy_and_resolve_references()
            changed.update_from_flattened_dict({"num_models": 1, "encoder": "factorized"})
            return train_encoders(changed, str(folder / TRAINED))
        there = Path(workdir) / LINEAR  # of an evaluation of the encoders
        if (there / "encoders" / "animals.json").is_file():
            return ensemble_of([str(there)])
        return train_encoders(linear_nonlinear_config(config), str(folder / TRAINED))
    other = ensemble_of(cli.listed(named))
    if own & {type(encoder) for encoder, _ in other.members}:
        raise NeuroreconError(
            f"--config.ceiling.other_architecture {named}: expected another architecture than that of the encoders, "
            f"found {', '.join(sorted(kind.__name__ for kind in own))}"
        )
    return other


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    ceiling(config, workdir)


if __name__ == "__main__":
    cli.run(main, __doc__, config="experiments/configs/base.py")
