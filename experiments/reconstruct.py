"""Reconstructs the movies behind recorded responses, scores them beside their controls, and makes the report.

    python -m experiments.reconstruct --config experiments/configs/base.py --workdir runs/mine \\
      --config.recordings=FOLDER --config.encoders=runs/trained

Trains encoders first where none are given. Writes, for each clip, WORKDIR/reconstructions/ANIMAL/TRIAL.npz and
WORKDIR/movies/ANIMAL_TRIAL.mp4, the controls' movies under WORKDIR/controls/, then metrics.json and report.html. Called
again, it goes on where it stopped. Several processes share the movies with --config.job=K/N each; the same command
without it then scores them. With --config.hosts=auto the same command, started once on each of several hosts that share
WORKDIR, is one run over the devices of all; see docs/clusters.md.
"""

import contextlib
import dataclasses
import functools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from experiments import cli
from experiments.adapted import PriorScales, adapts, first_clips, steps_of
from experiments.alpha_masks import given_alpha
from experiments.corrections import Correction, save_movie, spread_clips
from experiments.decoder_training import NAME
from experiments.descent_groups import clips_at_once, descended, groups_of
from experiments.descents import Descent, members_of, movie_path
from experiments.evaluate import evaluate
from experiments.inputs import Ensemble, ensemble_of, fold_clips, located, recordings_of
from experiments.job_arrays import Job, first_alone, job_of, made_once, told
from experiments.preparation import Animal, Kept, prepare_animal
from experiments.report import report
from experiments.spectra import PRIOR_MEANS
from experiments.train import train_encoders
from neurorecon import hosts, runs
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import Posterior, Reconstruction
from neurorecon.reconstruction.likelihoods import LIKELIHOODS

# A run goes on only with the same of these; more clips can be asked for later.
KEYS = (
    "recordings", "encoders", "seed", "recipe", "num_steps", "default_recipe", "published_recipe", "prior", "mask",
    "validation_tier", "linear_decoder", "decodable_fraction", "calibration_clips", "fold", "responses", "neurons",
    "save_movies", "posterior", "members", "behaviour", "precision", "stop",
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

    Where several hosts have joined, all call this alike; the first alone writes, and has something to return.

    Raises:
      NeuroreconError: bad config, recordings or encoders, or a descent that is not finite.
    """
    if config.job:
        raise NeuroreconError(
            "--config.job: expected '' here, since experiments.reconstruct alone shares its movies among jobs, found "
            f"{config.job!r}"
        )
    metrics: dict[str, Any] = {}
    with hosts.together():
        prepared = _prepared(config, workdir, kept, None)
        _run(prepared.config, prepared.folder, prepared.ensemble, prepared.descents(), None)

        def complete() -> None:
            _make_controls(prepared)
            metrics.update(evaluate(workdir))
            if films:
                report(workdir)

        hosts.from_first(complete)
    return metrics


def _make_controls(prepared: _Prepared) -> None:
    """Those that take no descent."""
    for job in (prepared.folder / "progress").glob("*-of-*"):
        shutil.rmtree(job, ignore_errors=True)  # of jobs that were killed, whose movies were made here
    for animal, ids in zip(prepared.animals, prepared.chosen):
        if "linear_decoder" in prepared.controls:
            animal.decode(prepared.folder, ids)
        if "prior_alone" in prepared.controls:
            animal.draw_from_prior(prepared.folder, ids, seed=prepared.config.seed)


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
    hosts.expect_joined(config.hosts)
    _check_choices(config)
    config, recordings, chosen = hosts.agreed(lambda: _given(config))
    paths = cli.listed(config.encoders)
    # Not inside `agreed`: Orbax has a barrier of its own after reading.
    given = (kept.ensemble(paths) if kept else ensemble_of(paths)) if paths else None
    folder = Path(hosts.from_first(lambda: str(cli.claim(workdir, config, "reconstruct", KEYS))))
    ensemble = members_of(config, given or train_encoders(config, workdir))
    if "ceiling" in controls and len(ensemble.members) < 2:
        print("ceiling: left out, it takes two encoders (config.num_models)")
        controls.remove("ceiling")
    if "prior_alone" in controls and config.recipe == "published":
        print("prior_alone: left out, the published recipe has no prior")
        controls.remove("prior_alone")
    linear = job is None and "linear_decoder" in controls and hosts.is_first()

    def prepare() -> list[Animal]:
        return [
            prepare_animal(config, folder, recording, ensemble, index, linear=linear, kept=kept)
            for index, recording in enumerate(recordings)
        ]

    names = [r.name for r in recordings]
    if hosts.several():
        hosts.from_first(lambda: _check_decoders(config, folder, names))
    with first_alone(config, folder, names) if job else contextlib.nullcontext():
        there = hosts.from_first(lambda: all(path.is_file() for path in made_once(config, folder, names)))
        animals = hosts.agreed(prepare) if there else hosts.after_first(prepare)
    for animal in animals:
        if adapts(config) and not first_clips(config, animal):
            print(
                f"{animal.name}: one prior for all clips, since it takes 2 validation trials to adapt it to each, and "
                f"there are {len(animal.validation)}"
            )
    return _Prepared(config, folder, ensemble, animals, chosen, controls)


def _check_decoders(config: ml_collections.ConfigDict, folder: Path, names: list[str]) -> None:
    """Several hosts don't train decoders: Orbax would have each keep the other's time."""
    missing = [path for path in made_once(config, folder, names) if path.parent.name == NAME and not path.is_file()]
    if missing:
        raise NeuroreconError(
            f"{missing[0]}: expected the decoder of --config.prior.mean={config.prior.mean}, which one host trains, "
            "found none; make a clip without --config.hosts first (--config.max_clips=1)"
        )


def _given(config: ml_collections.ConfigDict) -> tuple[ml_collections.ConfigDict, list[Any], list[list[str]]]:
    """The config with what is found in folders, recordings, and clips of each; encoders and masks are there."""
    config = located(config)
    recordings = recordings_of(config)
    chosen = [trials_of(r, config) for r in recordings]
    if config.mask.files:
        for index, recording in enumerate(recordings):
            given_alpha(Path(config.mask.files), recording.name, index)
    for path in map(Path, cli.listed(config.encoders)):
        if not path.exists():
            raise NeuroreconError(f"{path}: expected a work folder of a training or an encoder, found neither")
    return config, recordings, chosen


def _check_choices(config: ml_collections.ConfigDict) -> None:
    """Before the work folder is claimed: a word misspelt must not stand there as what the job was begun with."""
    for key, choices in CHOICES.items():
        found: Any = config
        for part in key.split("."):
            found = found[part]
        if found not in choices:
            raise NeuroreconError(f"--config.{key}: expected one of {', '.join(choices)}, found {found!r}")
    if hosts.several() and not config.shard:
        raise NeuroreconError(
            f"--config.shard: expected clips, models, windows or auto, which the {jax.process_count()} hosts share, "
            "found ''"
        )
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
    if config.prior.adapt_clips < 0 or config.prior.adapt_clips == 1 or config.prior.first_steps < 1:
        raise NeuroreconError(
            "--config.prior: expected adapt_clips of 2 or more, or 0 for one spectrum, and first_steps of 1 or more, "
            f"found {config.prior.adapt_clips} and {config.prior.first_steps}"
        )
    if not 0 <= config.prior.first_exponent <= 1:
        raise NeuroreconError(f"--config.prior.first_exponent: expected 0 to 1, found {config.prior.first_exponent}")
    if not 0 <= config.stop.held_out <= 0.5 or config.stop.patience < 1:
        raise NeuroreconError(
            "--config.stop: expected a held_out share of 0 to 0.5 and a patience of 1 or more, found "
            f"{config.stop.held_out} and {config.stop.patience}"
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
        for trial_id in first_clips(config, animal):
            path = movie_path(folder, "first", animal.name, trial_id)
            yield Descent("first", animal, trial_id, path, len(ensemble.members))
        for trial in animal.validation[: max(animal.calibration_clips, spread_clips(config))]:
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
    # First reconstructions are for what else there is to do.
    adapted = {d.animal.name for d in descents if d.kind != "first" and not d.path.is_file()}
    descents = [d for d in descents if d.kind != "first" or d.animal.name in adapted]
    left = [d for d in descents if not d.path.is_file()]
    if len(left) < len(descents):
        print(f"{len(descents) - len(left)} of {len(descents)} movies are there")
    states = folder / "progress" / job.name if job else folder / "progress"
    path = folder / f"reconstruction{f'-{job.name}' if job else ''}.jsonl"
    log = hosts.agreed(lambda: runs.MetricsLog(path) if hosts.is_first() else None)
    total = sum(steps_of(config, d) for d in left)
    if config.posterior.samples:
        total += sum(_last_steps(config, d) for d in left if d.has_spread)
    done = 0
    with tqdm(total=total, desc="reconstruct", unit="step", mininterval=2.0, disable=not hosts.is_first()) as bar:
        correct, scales = Correction(config, folder, states, ensemble, bar), PriorScales(config, folder)
        for group in groups_of(config, folder, states, descents):
            first, together = group.descents[0], len(group.descents)
            which = f"movie {done + 1}" if together == 1 else f"movies {done + 1} to {done + together}"
            bar.set_postfix_str(f"{first.kind} {first.animal.name}/{first.trial_id}, {which} of {len(left)}")
            started = time.monotonic()
            # Sampling takes longer than descending: the end is kept, or a kill would cost the descent of all.
            last_step = _last_steps(config, first) if correct.samples(first) else None
            with descended(config, folder, states, ensemble, group, bar, scales, last_step=last_step) as found:
                shared = (time.monotonic() - started) / together  # each clip's part of the time of all
                for descent, (responses, result, scale) in zip(group.descents, found):
                    started = time.monotonic()
                    posterior = correct.sampled(descent, responses, result.movie, scale)
                    cost = {"seconds": shared - started, "clips_together": together}
                    hosts.from_first(
                        functools.partial(_keep, config, correct, log, descent, responses, result, posterior, cost)
                    )
            done += together
    if job and states.is_dir() and not any(states.iterdir()):
        states.rmdir()


def _last_steps(config: ml_collections.ConfigDict, descent: Descent) -> int:
    """Updates of the last reconstruction of a clip, and of its samples."""
    return config.num_steps or descent.animal.recipe.num_steps


def _keep(
    config: ml_collections.ConfigDict,
    correct: Correction,
    log: runs.MetricsLog | None,
    descent: Descent,
    responses: np.ndarray,
    result: Reconstruction,
    posterior: Posterior | None,
    cost: dict[str, Any],
) -> None:
    """Writes a movie that has been descended, then the log; `cost` with seconds to which the time by now is added."""
    assert log is not None
    movie, spread = correct(descent, responses, result.movie, posterior)
    if posterior is not None:
        windows = result.encoder_windows + posterior.encoder_windows
        result = dataclasses.replace(result, encoder_windows=windows)
    cost = cost | {"seconds": cost["seconds"] + time.monotonic()}
    save_movie(descent, movie, result, cost, spread, all_movies=config.save_movies)
    log.write(
        {
            "kind": descent.kind,
            "animal": descent.animal.name,
            "trial": descent.trial_id,
            "loss": [float(x) for x in result.trace["loss"][[0, -1]]],
            **cost,
        }
    )


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    if config.job and config.hosts:
        raise NeuroreconError(
            f"--config.job: expected '' with --config.hosts, found {config.job!r}; share the movies among jobs of one "
            "host, or have several hosts make each movie together"
        )
    hosts.join(config.hosts)
    if config.job:
        reconstruct_share(config, workdir)
    else:
        reconstruct_recordings(config, workdir)


if __name__ == "__main__":
    cli.run(main, __doc__, config="experiments/configs/base.py")
