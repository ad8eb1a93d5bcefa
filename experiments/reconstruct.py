"""Reconstructs the movies behind recorded responses, scores them beside their controls, and makes the report.

    python -m experiments.reconstruct --config experiments/configs/base.py --workdir runs/mine \\
      --config.recordings=FOLDER --config.encoders=runs/trained

Trains encoders first where none are given. Writes, for each clip, WORKDIR/reconstructions/ANIMAL/TRIAL.npz and
WORKDIR/movies/ANIMAL_TRIAL.mp4, the controls' movies under WORKDIR/controls/, then metrics.json and report.html. Called
again, it goes on where it stopped. Several processes share the movies with --config.job=K/N each; the same command
without it then scores them.
"""

import contextlib
import dataclasses
import functools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from tqdm import tqdm

from experiments import cli
from experiments.descent_groups import clips_at_once, descended, groups_of
from experiments.descents import Descent, arguments_of, behaviour_of, members_of, movie_path, neurons_of, resumable
from experiments.evaluate import evaluate
from experiments.inputs import Ensemble, ensemble_of, fold_clips, located, recordings_of
from experiments.job_arrays import Job, first_alone, job_of, told
from experiments.preparation import Animal, Kept, given_alpha, prepare_animal
from experiments.report import report
from experiments.spectra import PRIOR_MEANS
from experiments.train import train_encoders
from neurorecon import runs
from neurorecon.encoders.canvas import crop_from_canvas
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation import fit_spread_scale
from neurorecon.files import save_npz
from neurorecon.reconstruction import Posterior, Reconstruction, sample_posterior
from neurorecon.reconstruction.calibration import Calibration
from neurorecon.reconstruction.likelihoods import LIKELIHOODS

# A run goes on only with the same of these; more clips can be asked for later.
KEYS = (
    "recordings", "encoders", "seed", "recipe", "num_steps", "default_recipe", "published_recipe", "prior", "mask",
    "validation_tier", "linear_decoder", "decodable_fraction", "calibration_clips", "fold", "responses", "neurons",
    "save_movies", "posterior", "members", "behaviour", "precision",
)  # fmt: skip
CONTROLS = ("grey", "prior_alone", "shuffled_neurons", "linear_decoder", "ceiling")
CHOICES = {
    "recipe": ("default", "published"),
    "mask.kind": ("sensitivity", "alpha", "none"),
    "responses": ("recorded", "predicted"),
    "neurons.ablation": ("exclude", "zero_target"),
    "neurons.order": ("random", "most_reliable", "least_reliable"),
    "shard": ("", "clips", "models", "windows", "auto"),
    "precision": ("float32", "bfloat16"),
    "behaviour.given": ("recorded", "shuffled", "mean"),
    "prior.mean": PRIOR_MEANS,
    "prior.spectrum": ("measured", "natural", "flat"),
    "default_recipe.likelihood": LIKELIHOODS,
}


class _Prepared(NamedTuple):
    """Everything that a run needs before its first descent."""

    config: ml_collections.ConfigDict
    folder: Path
    ensemble: Ensemble
    animals: list[Animal]
    chosen: list[list[str]]  # clips of each
    controls: list[str]

    def descents(self) -> list[Descent]:
        return list(_descents(self.config, self.folder, self.animals, self.chosen, self.controls, self.ensemble))


def reconstruct_recordings(
    config: ml_collections.ConfigDict, workdir: str, *, films: bool = True, kept: Kept | None = None
) -> dict[str, Any]:
    """The whole job; returns what stands in metrics.json.

    Args:
      config: see `configs/base.py`.
      workdir: for everything that is written.
      films: also the films and the page.
      kept: of earlier jobs of this process, whose encoders and preparations serve this one where they are the same.

    Raises:
      NeuroreconError: bad config, recordings or encoders, or a descent that is not finite.
    """
    if config.job:
        raise NeuroreconError(
            "--config.job: expected '' here, since experiments.reconstruct alone shares its movies among jobs, found "
            f"{config.job!r}"
        )
    prepared = _prepared(config, workdir, kept, None)
    _run(prepared.config, prepared.folder, prepared.ensemble, prepared.descents(), None)
    for job in (prepared.folder / "progress").glob("*-of-*"):
        shutil.rmtree(job, ignore_errors=True)  # of jobs that were killed, whose movies were made here
    for animal, ids in zip(prepared.animals, prepared.chosen):
        if "linear_decoder" in prepared.controls:
            animal.decode(prepared.folder, ids)
        if "prior_alone" in prepared.controls:
            animal.draw_from_prior(prepared.folder, ids, seed=prepared.config.seed)
    metrics = evaluate(workdir)
    if films:
        report(workdir)
    return metrics


def reconstruct_share(config: ml_collections.ConfigDict, workdir: str) -> None:
    """What `config.job` makes of the movies of a work folder; scores, page and linear decoder's movies are left out.

    Raises:
      NeuroreconError: as `reconstruct_recordings`, or no such job, or no trained encoders.
    """
    job = job_of(config)
    assert job is not None
    if not (config.encoders or config.weights) and not (Path(workdir) / "encoders" / "animals.json").is_file():
        raise NeuroreconError(
            "--config.job: expected trained encoders (--config.encoders), since jobs don't share a training, found "
            "none; train them first"
        )
    prepared = _prepared(config, workdir, None, job)
    descents = prepared.descents()
    _run(prepared.config, prepared.folder, prepared.ensemble, job.share(descents), job)
    print(f"job {config.job}: done; {told(descents)}")


def _prepared(config: ml_collections.ConfigDict, workdir: str, kept: Kept | None, job: Job | None) -> _Prepared:
    """Checks the config, claims the work folder and prepares every animal; jobs leave the control's decoder out."""
    controls = cli.listed(config.controls)
    for control in controls:
        if control not in CONTROLS:
            raise NeuroreconError(f"--config.controls: expected some of {', '.join(CONTROLS)}, found {control!r}")
    _check_choices(config)
    config = located(config)
    recordings = recordings_of(config)
    chosen = [trials_of(r, config) for r in recordings]
    if config.mask.files:
        for index, recording in enumerate(recordings):
            given_alpha(Path(config.mask.files), recording.name, index)
    paths = cli.listed(config.encoders)
    given = (kept.ensemble(paths) if kept else ensemble_of(paths)) if paths else None
    folder = cli.claim(workdir, config, "reconstruct", KEYS)
    ensemble = members_of(config, given or train_encoders(config, workdir))
    if "ceiling" in controls and len(ensemble.members) < 2:
        print("ceiling: left out, it takes two encoders (config.num_models)")
        controls.remove("ceiling")
    if "prior_alone" in controls and config.recipe == "published":
        print("prior_alone: left out, the published recipe has no prior")
        controls.remove("prior_alone")
    linear = job is None and "linear_decoder" in controls
    with first_alone(config, folder, [r.name for r in recordings]) if job else contextlib.nullcontext():
        animals = [
            prepare_animal(config, folder, recording, ensemble, index, linear=linear, kept=kept)
            for index, recording in enumerate(recordings)
        ]
    return _Prepared(config, folder, ensemble, animals, chosen, controls)


def _check_choices(config: ml_collections.ConfigDict) -> None:
    """Before the work folder is claimed: a word misspelt must not stand there as what the job was begun with."""
    for key, choices in CHOICES.items():
        found: Any = config
        for part in key.split("."):
            found = found[part]
        if found not in choices:
            raise NeuroreconError(f"--config.{key}: expected one of {', '.join(choices)}, found {found!r}")
    clips_at_once(config)
    if config.length_bucket < 0:
        raise NeuroreconError(f"--config.length_bucket: expected 0 frames or more, found {config.length_bucket}")
    samples, clips = config.posterior.samples, config.posterior.validation_clips
    if samples < 0 or samples % 2 or clips < 0:
        raise NeuroreconError(
            "--config.posterior: expected an even number of samples and a number of validation_clips, found "
            f"{samples} and {clips}"
        )
    if samples and (config.recipe != "default" or config.calibration_clips > 0):
        raise NeuroreconError(
            "--config.posterior.samples: expected the default recipe without calibration_clips, found "
            f"{config.recipe} with {config.calibration_clips}"
        )
    if not 0 < config.neurons.share <= 1:
        raise NeuroreconError(f"--config.neurons.share: expected above 0, up to 1, found {config.neurons.share}")
    if config.neurons.count < 0 or (config.neurons.count and config.neurons.share < 1):
        raise NeuroreconError(
            f"--config.neurons.count: expected 0 or more, and a share of 1 beside it, found {config.neurons.count} and "
            f"{config.neurons.share}"
        )


def trials_of(recording: Any, config: ml_collections.ConfigDict) -> list[str]:
    """The clips that the config asks for.

    Raises:
      NeuroreconError: no such trials, or one whose responses can't be used.
    """
    ids = cli.listed(config.trials)
    known = recording.trial_ids()
    for trial_id in ids:
        if trial_id not in known:
            raise NeuroreconError(f"--config.trials: {recording.name} has no trial {trial_id!r}")
    if not ids:
        ids = fold_clips(config, recording) if config.fold >= 0 else recording.trial_ids(config.tier)
    ids = ids[: config.max_clips] if config.max_clips > 0 else ids
    for trial_id in ids:
        recording.target(trial_id)  # a damaged trial is better found now than after hours
    return ids


def _descents(
    config: ml_collections.ConfigDict,
    folder: Path,
    animals: list[Animal],
    chosen: list[list[str]],
    controls: list[str],
    ensemble: Ensemble,
) -> Iterator[Descent]:
    # First, since the others are calibrated by them.
    for animal in animals:
        for trial in animal.validation[: max(animal.calibration_clips, _spread_clips(config))]:
            path = movie_path(folder, "validation", animal.name, trial.id)
            yield Descent("validation", animal, trial.id, path, len(ensemble.members))
    kinds = ["reconstruction", *(c for c in controls if c in ("shuffled_neurons", "ceiling"))]
    for kind in kinds:
        # The ceiling's responses come from the last member, so the others do the inverting.
        members = len(ensemble.members) - (kind == "ceiling")
        for animal, ids in zip(animals, chosen):
            for trial_id in ids:
                yield Descent(kind, animal, trial_id, movie_path(folder, kind, animal.name, trial_id), members)


def _run(
    config: ml_collections.ConfigDict, folder: Path, ensemble: Ensemble, descents: list[Descent], job: Job | None
) -> None:
    """Makes the movies that are not there yet; a job has a log and states of its own."""
    left = [d for d in descents if not d.path.is_file()]
    if len(left) < len(descents):
        print(f"{len(descents) - len(left)} of {len(descents)} movies are there")
    steps = config.num_steps or (left[0].animal.recipe.num_steps if left else 0)
    states = folder / "progress" / job.name if job else folder / "progress"
    log = runs.MetricsLog(folder / f"reconstruction{f'-{job.name}' if job else ''}.jsonl")
    sampled = sum(d.has_spread for d in left) if config.posterior.samples else 0
    done = 0
    with tqdm(total=steps * (len(left) + sampled), desc="reconstruct", unit="step", mininterval=2.0) as bar:
        correct = _Correction(config, folder, states, ensemble, bar)
        for group in groups_of(config, folder, states, descents):
            first, together = group.descents[0], len(group.descents)
            which = f"movie {done + 1}" if together == 1 else f"movies {done + 1} to {done + together}"
            bar.set_postfix_str(f"{first.kind} {first.animal.name}/{first.trial_id}, {which} of {len(left)}")
            started = time.monotonic()
            # Sampling takes longer than descending: the end is kept, or a kill would cost the descent of all.
            last_step = steps if correct.samples(first) else None
            with descended(config, folder, states, ensemble, group, bar, last_step=last_step) as found:
                shared = (time.monotonic() - started) / together  # each clip's part of the time of all
                for descent, (responses, result) in zip(group.descents, found):
                    started = time.monotonic()
                    movie, result, spread = correct(descent, responses, result)
                    cost = {"seconds": shared + time.monotonic() - started, "clips_together": together}
                    _save(descent, movie, result, cost, spread, all_movies=config.save_movies)
                    log.write(
                        {
                            "kind": descent.kind,
                            "animal": descent.animal.name,
                            "trial": descent.trial_id,
                            "loss": [float(x) for x in result.trace["loss"][[0, -1]]],
                            **cost,
                        }
                    )
            done += together
    if job and states.is_dir() and not any(states.iterdir()):
        states.rmdir()


class _Correction:
    """What follows the descent of a clip: samples of its posterior, and calibration by the validation clips."""

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

    def __call__(
        self, descent: Descent, responses: np.ndarray, result: Reconstruction
    ) -> tuple[np.ndarray, Reconstruction, dict[str, Any]]:
        """The movie, the reconstruction with the cost of the samples, and what tells the movie's spread."""
        movie, name = result.movie, descent.animal.name
        self._animals[name] = descent.animal
        spread: dict[str, Any] = {}
        if self.samples(descent):
            posterior = _sample(self._config, self._states, self._ensemble, descent, responses, movie, self._bar)
            scale = self._scale(name) if descent.kind == "reconstruction" else 1.0
            spread = {"movie_std": np.float32(scale) * posterior.std, "spread_scale": scale}
            result = dataclasses.replace(result, encoder_windows=result.encoder_windows + posterior.encoder_windows)
        if descent.kind != "validation":
            calibration: Calibration | None = self._calibration(name)
            if calibration is not None:
                movie = calibration.apply(movie, descent.animal.decoded(responses))
        return movie, result, spread


def _calibration(folder: Path, animal: Animal) -> Calibration | None:
    paths = [movie_path(folder, "validation", animal.name, t.id) for t in animal.validation]
    return animal.calibration([runs.load_arrays(path)["movie"] for path in paths[: animal.calibration_clips]])


def _spread_clips(config: ml_collections.ConfigDict) -> int:
    return config.posterior.validation_clips if config.posterior.samples else 0


def _spread_scale(config: ml_collections.ConfigDict, folder: Path, animal: Animal) -> float:
    """What the posterior's spread is multiplied by, from the first validation clips; 1 where none are asked for."""
    trials = animal.validation[: _spread_clips(config)]
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
            baseline=animal.baseline(responses, neurons_of(config, descent)),
            **arguments_of(config, descent),
            **resume,
        )


def _save(
    descent: Descent,
    movie: np.ndarray,
    result: Reconstruction,
    cost: dict[str, Any],
    spread: dict[str, Any],
    *,
    all_movies: bool,
) -> None:
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


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    if config.job:
        reconstruct_share(config, workdir)
    else:
        reconstruct_recordings(config, workdir)


if __name__ == "__main__":
    cli.run(main, __doc__, config="experiments/configs/base.py")
