"""Reconstructs the movies behind recorded responses, scores them beside their controls, and makes the report.

    python -m experiments.reconstruct --config experiments/configs/base.py --workdir runs/mine \\
      --config.recordings=FOLDER --config.encoders=runs/trained

Trains encoders first where none are given. Writes, for each clip, WORKDIR/reconstructions/ANIMAL/TRIAL.npz and
WORKDIR/movies/ANIMAL_TRIAL.mp4, the controls' movies under WORKDIR/controls/, then metrics.json and report.html. Called
again, it goes on where it stopped.
"""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from tqdm import tqdm

from experiments import cli
from experiments.descents import Descent, behaviour_of, members_of, neurons_of, responses_of, resumable, settings_of
from experiments.evaluate import evaluate
from experiments.inputs import Ensemble, ensemble_of, fold_clips, located, recordings_of
from experiments.preparation import Animal, Kept, given_alpha, prepare_animal
from experiments.report import report
from experiments.train import train_encoders
from neurorecon import runs
from neurorecon.encoders.canvas import crop_from_canvas
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation import fit_spread_scale
from neurorecon.files import save_npz
from neurorecon.reconstruction import Posterior, Reconstruction, reconstruct, sample_posterior
from neurorecon.reconstruction.calibration import Calibration
from neurorecon.reconstruction.likelihoods import LIKELIHOODS

# A run goes on only with the same of these; more clips can be asked for later.
KEYS = (
    "recordings", "encoders", "seed", "recipe", "num_steps", "default_recipe", "published_recipe", "prior", "mask",
    "validation_tier", "linear_decoder", "decodable_fraction", "calibration_clips", "fold", "responses", "neurons",
    "save_movies", "posterior", "members", "behaviour",
)  # fmt: skip
CONTROLS = ("grey", "shuffled_neurons", "linear_decoder", "ceiling")
CHOICES = {
    "recipe": ("default", "published"),
    "mask.kind": ("sensitivity", "alpha", "none"),
    "responses": ("recorded", "predicted"),
    "neurons.ablation": ("exclude", "zero_target"),
    "neurons.order": ("random", "most_reliable", "least_reliable"),
    "shard": ("", "models", "windows", "auto"),
    "behaviour.given": ("recorded", "shuffled", "mean"),
    "prior.spectrum": ("measured", "natural", "flat"),
    "default_recipe.likelihood": LIKELIHOODS,
}


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
    animals = [
        prepare_animal(config, folder, recording, ensemble, index, linear="linear_decoder" in controls, kept=kept)
        for index, recording in enumerate(recordings)
    ]
    descents = list(_descents(config, folder, animals, chosen, controls, ensemble))
    _run(config, folder, ensemble, descents)
    if "linear_decoder" in controls:
        for animal, ids in zip(animals, chosen):
            animal.decode(folder, ids)
    metrics = evaluate(workdir)
    if films:
        report(workdir)
    return metrics


def _check_choices(config: ml_collections.ConfigDict) -> None:
    """Before the work folder is claimed: a word misspelt must not stand there as what the job was begun with."""
    for key, choices in CHOICES.items():
        found: Any = config
        for part in key.split("."):
            found = found[part]
        if found not in choices:
            raise NeuroreconError(f"--config.{key}: expected one of {', '.join(choices)}, found {found!r}")
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
            path = folder / "validation" / animal.name / f"{trial.id}.npz"
            yield Descent("validation", animal, trial.id, path, len(ensemble.members))
    kinds = ["reconstruction", *(c for c in controls if c in ("shuffled_neurons", "ceiling"))]
    for kind in kinds:
        root = folder / "reconstructions" if kind == "reconstruction" else folder / "controls" / kind
        # The ceiling's responses come from the last member, so the others do the inverting.
        members = len(ensemble.members) - (kind == "ceiling")
        for animal, ids in zip(animals, chosen):
            for trial_id in ids:
                yield Descent(kind, animal, trial_id, root / animal.name / f"{trial_id}.npz", members)


def _run(config: ml_collections.ConfigDict, folder: Path, ensemble: Ensemble, descents: list[Descent]) -> None:
    left = [d for d in descents if not d.path.is_file()]
    if len(left) < len(descents):
        print(f"{len(descents) - len(left)} of {len(descents)} movies are there")
    steps = config.num_steps or (left[0].animal.recipe.num_steps if left else 0)
    log = runs.MetricsLog(folder / "reconstruction.jsonl")
    calibrations: dict[str, Calibration | None] = {}
    scales: dict[str, float] = {}
    sampled = sum(d.has_spread for d in left) if config.posterior.samples else 0
    with tqdm(total=steps * (len(left) + sampled), desc="reconstruct", unit="step", mininterval=2.0) as bar:
        for number, descent in enumerate(left):
            bar.set_postfix_str(
                f"{descent.kind} {descent.animal.name}/{descent.trial_id}, movie {number + 1} of {len(left)}"
            )
            started = time.monotonic()
            responses = responses_of(config, ensemble, descent)
            result = _descend(config, folder, ensemble, descent, responses, bar)
            movie = result.movie
            spread: dict[str, Any] = {}
            if config.posterior.samples and descent.has_spread:
                posterior = _sample(config, folder, ensemble, descent, responses, movie, bar)
                if descent.kind == "reconstruction" and descent.animal.name not in scales:
                    scales[descent.animal.name] = _spread_scale(config, folder, descent.animal)
                scale = scales[descent.animal.name] if descent.kind == "reconstruction" else 1.0
                spread = {"movie_std": np.float32(scale) * posterior.std, "spread_scale": scale}
                result = dataclasses.replace(result, encoder_windows=result.encoder_windows + posterior.encoder_windows)
            if descent.kind != "validation":
                if descent.animal.name not in calibrations:
                    calibrations[descent.animal.name] = _calibration(folder, descent.animal)
                calibration = calibrations[descent.animal.name]
                if calibration is not None:
                    movie = calibration.apply(movie, descent.animal.decoded(responses))
            seconds = time.monotonic() - started
            _save(descent, movie, result, seconds, spread, all_movies=config.save_movies)
            log.write(
                {
                    "kind": descent.kind,
                    "animal": descent.animal.name,
                    "trial": descent.trial_id,
                    "loss": [float(x) for x in result.trace["loss"][[0, -1]]],
                    "seconds": seconds,
                }
            )


def _calibration(folder: Path, animal: Animal) -> Calibration | None:
    paths = [folder / "validation" / animal.name / f"{t.id}.npz" for t in animal.validation]
    return animal.calibration([runs.load_arrays(path)["movie"] for path in paths[: animal.calibration_clips]])


def _spread_clips(config: ml_collections.ConfigDict) -> int:
    return config.posterior.validation_clips if config.posterior.samples else 0


def _spread_scale(config: ml_collections.ConfigDict, folder: Path, animal: Animal) -> float:
    """What the posterior's spread is multiplied by, from the first validation clips; 1 where none are asked for."""
    trials = animal.validation[: _spread_clips(config)]
    if not trials:
        return 1.0
    stored = [runs.load_arrays(folder / "validation" / animal.name / f"{t.id}.npz") for t in trials]
    return fit_spread_scale(
        [t.stimulus[config.skip_frames :] for t in trials],
        [arrays["movie"][config.skip_frames :] for arrays in stored],
        [arrays["movie_std"][config.skip_frames :] for arrays in stored],
        animal.mask,
    )


def _arguments(config: ml_collections.ConfigDict, descent: Descent, responses: np.ndarray) -> dict[str, Any]:
    """What a descent and its posterior samples have in common."""
    animal = descent.animal
    return settings_of(config, animal) | {
        "recipe": animal.recipe.replace(ablation=config.neurons.ablation),
        "neurons": neurons_of(config, descent),
        "baseline": animal.baseline(responses),
    }


def _progress(folder: Path, name: str, descent: Descent) -> Path:
    return folder / "progress" / f"{name}-{descent.animal.name}-{descent.trial_id}.npz"


def _descend(
    config: ml_collections.ConfigDict,
    folder: Path,
    ensemble: Ensemble,
    descent: Descent,
    responses: np.ndarray,
    bar: tqdm,
) -> Reconstruction:
    with resumable(_progress(folder, descent.kind, descent), bar, config.checkpoint_seconds) as resume:
        return reconstruct(
            ensemble.members[: descent.num_models],
            responses,
            behaviour_of(config, descent),
            **_arguments(config, descent, responses),
            **resume,
        )


def _sample(
    config: ml_collections.ConfigDict,
    folder: Path,
    ensemble: Ensemble,
    descent: Descent,
    responses: np.ndarray,
    movie: np.ndarray,
    bar: tqdm,
) -> Posterior:
    animal = descent.animal
    assert animal.noise is not None
    with resumable(_progress(folder, f"posterior-{descent.kind}", descent), bar, config.checkpoint_seconds) as resume:
        return sample_posterior(
            ensemble.members[: descent.num_models],
            responses,
            behaviour_of(config, descent),
            noise=animal.noise,
            num_samples=config.posterior.samples,
            movie=movie,
            **_arguments(config, descent, responses),
            **resume,
        )


def _save(
    descent: Descent,
    movie: np.ndarray,
    result: Reconstruction,
    seconds: float,
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
        "seconds": seconds,
    }
    if all_movies:
        arrays["movies"] = crop_from_canvas(result.movies, movie.shape[1:])
    traces = {f"trace_{k}": v for k, v in result.trace.items() if not k.startswith("window_")}
    save_npz(descent.path, **arrays, **spread, **traces)


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    reconstruct_recordings(config, workdir)


if __name__ == "__main__":
    cli.run(main, __doc__, config="experiments/configs/base.py")
