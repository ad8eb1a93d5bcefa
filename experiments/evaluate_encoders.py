"""Scores the encoders of a training folder beside what knows less and what knows all; called by experiments.evaluate.

Scores are on the trials of `config.tier`, by the rule of the Sensorium 2023 competition, with intervals over clips.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from experiments.cli import listed
from experiments.inputs import Ensemble, ensemble_of, recordings_of
from experiments.train import train_encoders
from neurorecon import runs
from neurorecon.encoders import LinearNonlinear, predict_trial
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.response_baselines import BehaviourOnly, MeanResponse
from neurorecon.evaluation.response_intervals import repeat_sums, trial_sums
from neurorecon.evaluation.response_scores import (
    REPEATED,
    ResponseSums,
    compared,
    ensemble_scores,
    ensemble_subsets,
    neuron_scores,
    predictor_scores,
    resampled_correlations,
)
from neurorecon.files import read_json, save_json, save_npz
from neurorecon.recordings import Recording, Trial
from neurorecon.recordings.subset import RecordingSubset

SKIP = 50  # frames at the start of a trial, by the competition's rule; a quarter of shorter trials
ENSEMBLE, MEAN, BEHAVIOUR, EXPECTED = "encoders", "mean_response", "behaviour_only", "expected_response"
LINEAR = "linear_nonlinear"  # also the name of its folder in the work folder of a training
LESS = (MEAN, BEHAVIOUR, LINEAR)  # what knows less
TRAIN = "train"  # config.evaluation.linear_nonlinear: trains it first
# Not tuned; the best moment is chosen on validation trials, as for every encoder.
LINEAR_TRAINING = {
    "num_models": 1,
    "encoder": "linear_nonlinear",
    "training.optimiser": "adamw",
    "training.learning_rate": 5e-3,
    "training.warmup_steps": 10,
    "training.core_from": "",
    "training.distil_from": "",
    "training.shard": "",
    "training.accumulate": 1,
    "training.precision": "float32",
    "training.cutmix_probability": 0.0,
    "training.mixup_probability": 0.0,
}
LINEAR_STEPS, LINEAR_EVERY = 150, 30  # at most: it fits in fewer steps than deeper encoders
LINEAR_ENVELOPE = 4.0  # pixels, where the config has none: without it, distant pixels fit the noise

Predictor = Callable[[Trial], np.ndarray]


def is_training(workdir: str) -> bool:
    """Whether encoders were trained in this work folder."""
    path = Path(workdir) / "jobs.json"
    return path.is_file() and "train" in read_json(path)


def evaluate_encoders(workdir: str, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Scores every encoder of a training folder, their mean, ensembles of each size, and the baselines.

    Writes encoder_metrics.json, which is returned, and encoder_metrics/ANIMAL.npz with the scores of each neuron.
    Predictors: `encoders` (mean of all), `encoders/K` (each), `mean_response` (of the training trials, at each frame of
    a trial), `behaviour_only` (ridge), `linear_nonlinear` (see `linear_nonlinear_of`), and `expected_response` where a
    simulation wrote expected/ANIMAL/TRIAL.npy.

    Args:
      workdir: of the training.
      config: of the training; its `tier` is scored.

    Raises:
      NeuroreconError: the training is not done, the tier has no trial, or a file is damaged.
    """
    folder = Path(workdir)
    if not (folder / "encoders" / "animals.json").is_file():
        raise NeuroreconError(f"{folder}: expected trained encoders, found a training that is not done; go on with it")
    config = config.copy_and_resolve_references()
    begun = read_json(folder / "jobs.json")["train"]
    config.recordings = begun["recordings"]  # those of the training, whatever was reconstructed since
    config.subset.update(begun.get("subset", {}))
    ensemble = ensemble_of([str(folder)])
    recordings = recordings_of(config)
    linear = linear_nonlinear_of(folder, config)
    sums = []
    for index, recording in enumerate(recordings):
        predictors = baselines(recording) | true_response(recording)
        if linear is not None:
            predictors[LINEAR] = mean_prediction(linear, recording, index)
        sums.append(response_sums(recording, config.tier, ensemble, ensemble.readout(recording, index), predictors))
        save_npz(folder / "encoder_metrics" / f"{recording.name}.npz", **neuron_scores(sums[-1], ENSEMBLE))
    metrics: dict[str, Any] = {
        "tier": config.tier,
        "chose_the_best_moment": begun["validation_tier"] == config.tier or config.tier == "train",
        "skipped_frames": {r.name: skipped(r, config.tier) for r in recordings},
        **_scored(sums, [n for n in sums[0].trials if all(n in s.trials for s in sums)]),
        "animals": {r.name: _of_animal(r, s) for r, s in zip(recordings, sums)},
        "models": [f"{ENSEMBLE}/{k}" for k in range(len(ensemble.members))],
        "ensembles": ensemble_scores(sums),
        "versions": runs.versions(),
        "config": config.to_dict(),
    }
    save_json(folder / "encoder_metrics.json", metrics)
    return metrics


def _scored(sums: list[ResponseSums], names: list[str]) -> dict[str, Any]:
    clips = sum(len(s.trials[ENSEMBLE]) for s in sums)
    correlations = resampled_correlations(sums, names)
    ceiling = compared(correlations, ENSEMBLE, np.divide, (EXPECTED,), num_clips=clips)
    return {
        "scores": predictor_scores(sums, correlations, ENSEMBLE),
        "differences": compared(correlations, ENSEMBLE, np.subtract, (*LESS, EXPECTED), num_clips=clips),
        "share_of_ceiling": ceiling.get(EXPECTED),
    }


def _of_animal(recording: Recording, sums: ResponseSums) -> dict[str, Any]:
    scored = _scored([sums], list(sums.trials))
    return {
        "neurons": recording.num_neurons,
        "clips": len(sums.trials[ENSEMBLE]),
        "repeated_clips": len(sums.repeats.get(ENSEMBLE, ())),
        **scored.pop("scores"),
        **scored,
    }


def skipped(recording: Recording, tier: str) -> int:
    """Frames at the start of every trial that are not scored."""
    return min(SKIP, min(recording.num_frames(i) for i in recording.trial_ids(tier)) // 4)


def baselines(recording: Recording) -> dict[str, Predictor]:
    """Mean response and behaviour alone, from the training trials; these are read one at a time, twice."""
    ids = recording.trial_ids("train")
    mean = MeanResponse(recording.target(i).responses for i in ids)
    behaviour = BehaviourOnly([recording.behaviour(i) for i in ids], (recording.target(i).responses for i in ids))
    return {
        MEAN: lambda trial: mean.predict(trial.num_frames),
        BEHAVIOUR: lambda trial: behaviour.predict(trial.behaviour),
    }


def true_response(recording: Recording) -> dict[str, Predictor]:
    """The expected response where a simulation wrote it beside its recordings; empty elsewhere."""
    folder = recording.path.parent.parent / "expected" / recording.name
    neurons = recording.neurons if isinstance(recording, RecordingSubset) else slice(None)
    return {EXPECTED: lambda trial: _expected(folder / f"{trial.id}.npy", trial, neurons)} if folder.is_dir() else {}


def mean_prediction(ensemble: Ensemble, recording: Recording, index: int) -> Predictor:
    """The mean of all encoders of an ensemble."""
    readout = ensemble.readout(recording, index)

    def predict(trial: Trial) -> np.ndarray:
        found = [predict_trial(e, v, trial.stimulus, trial.behaviour, readout) for e, v in ensemble.members]
        return np.mean(found, axis=0)

    return predict


def response_sums(
    recording: Recording,
    tier: str,
    ensemble: Ensemble,
    readout: int,
    predictors: dict[str, Predictor],
) -> ResponseSums:
    """Sums of every predictor and of the encoders, alone and together, over the clips of a tier.

    Args:
      recording, tier: whose trials; one is in memory at a time, or the repeats of one movie.
      ensemble, readout: the encoders and the animal's readout.
      predictors: name -> from a trial to (time, neuron).
    """
    skip = skipped(recording, tier)
    subsets = ensemble_subsets(len(ensemble.members))
    trial_parts: dict[str, list[np.ndarray]] = {}
    repeat_parts: dict[str, list[np.ndarray]] = {}
    subset_parts: dict[tuple[int, ...], list[np.ndarray]] = {s: [] for s in subsets}
    centre: np.ndarray | None = None
    for trials in _clips(recording, tier):
        shown = [t.responses for t in trials]
        centre = shown[0].mean(0) if centre is None else centre  # one for all clips, since their sums are added
        predictions: dict[str, list[np.ndarray]] = {}
        of_subsets: dict[tuple[int, ...], Any] = dict.fromkeys(subsets, 0.0)
        for trial, target in zip(trials, shown, strict=True):
            members = np.stack(
                [predict_trial(e, v, trial.stimulus, trial.behaviour, readout) for e, v in ensemble.members]
            )
            named = {ENSEMBLE: members.mean(0)} | {f"{ENSEMBLE}/{k}": p for k, p in enumerate(members)}
            named |= {name: predict(trial) for name, predict in predictors.items()}
            for name, prediction in named.items():
                predictions.setdefault(name, []).append(prediction)
            for s in subsets:
                prediction = members[list(s)].mean(0)
                of_subsets[s] = of_subsets[s] + trial_sums(prediction, target, skip=skip, centre=centre)
        for s, sums in of_subsets.items():
            subset_parts[s].append(np.asarray(sums))
        for name, found in predictions.items():
            pairs = zip(found, shown, strict=True)
            of_clip = np.sum([trial_sums(p, t, skip=skip, centre=centre) for p, t in pairs], axis=0)
            trial_parts.setdefault(name, []).append(of_clip)
            if len(trials) > 1:
                again = repeat_sums(np.stack([t[skip:] for t in shown]), np.stack(found)[:, skip:], centre=centre)
                repeat_parts.setdefault(name, []).append(again)
    return ResponseSums(
        {n: np.stack(parts) for n, parts in trial_parts.items()},
        {n: np.stack(parts) for n, parts in repeat_parts.items()},
        {s: np.stack(parts) for s, parts in subset_parts.items()},
    )


def linear_nonlinear_of(folder: Path, config: ml_collections.ConfigDict) -> Ensemble | None:
    """The linear-nonlinear encoders that others are compared with: same trials for fitting and for validation.

    `config.evaluation.linear_nonlinear` names their work folder; where it is "train" they are trained, or trained on,
    in WORKDIR/linear_nonlinear; where it is empty those are taken, or None if there are none.

    Raises:
      NeuroreconError: they are of another architecture, or were trained on something else.
    """
    asked = config.evaluation.linear_nonlinear
    path = folder / LINEAR if asked in ("", TRAIN) else Path(asked)
    if asked == TRAIN:
        train_encoders(linear_nonlinear_config(config), str(path))
    elif not asked and not (path / "encoders" / "animals.json").is_file():
        return None
    if not (path / "jobs.json").is_file():
        raise NeuroreconError(f"--config.evaluation.linear_nonlinear {path}: expected a work folder of a training")
    ensemble = ensemble_of([str(path)])
    if not all(isinstance(encoder, LinearNonlinear) for encoder, _ in ensemble.members):
        raise NeuroreconError(
            f"{path}: expected linear-nonlinear encoders, found {type(ensemble.members[0][0]).__name__}"
        )
    ours, theirs = (_trials_of(read_json(f / "jobs.json")["train"]) for f in (folder, path))
    for key, value in ours.items():
        if value != theirs[key]:
            raise NeuroreconError(
                f"{path}: expected encoders trained with the same {key} as those that they are compared with, "
                f"{value}, found {theirs[key]}"
            )
    return ensemble


def _trials_of(begun: dict[str, Any]) -> dict[str, Any]:
    """What says which trials a training fitted and validated on."""
    return {
        "recordings": [str(Path(p).resolve()) for p in listed(begun["recordings"])],
        "validation_tier": begun["validation_tier"],
        "validation_trials": begun["training"]["validation_trials"],
        "subset": begun.get("subset"),
    }


def linear_nonlinear_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config of a training, for one linear-nonlinear encoder on the same trials."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(LINEAR_TRAINING)
    config.training.num_steps = min(config.training.num_steps, LINEAR_STEPS)
    config.training.validation_every = min(config.training.validation_every, LINEAR_EVERY)
    config.linear_nonlinear.envelope = config.linear_nonlinear.envelope or LINEAR_ENVELOPE
    return config


def _clips(recording: Recording, tier: str) -> Iterator[list[Trial]]:
    """The trials of each movie, in the order of the movies' first trials."""
    groups = {group[0]: group for group in recording.repeats(tier)}
    later = {i for group in groups.values() for i in group[1:]}
    for trial_id in recording.trial_ids(tier):
        if trial_id not in later:
            yield [recording.target(i) for i in groups.get(trial_id, [trial_id])]


def _expected(path: Path, trial: Trial, neurons: np.ndarray | slice) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)[:, neurons]
    except (OSError, ValueError, IndexError) as error:
        raise NeuroreconError(f"{path}: expected the true response of a simulated trial, can't be read") from error
    if array.shape != trial.responses.shape:
        raise NeuroreconError(f"{path}: expected {trial.responses.shape}, (time, neuron), found {array.shape}")
    return array


def encoder_table(metrics: dict[str, Any]) -> str:
    """The scores with their baselines, for a terminal."""

    def cell(value: dict[str, Any] | None) -> str:
        if value is None:
            return f"{'':<24}"
        low, high = value["ci95"]
        interval_ = f" [{low:.3f}, {high:.3f}]" if np.isfinite(low) else ""
        return f"{value['mean']:.3f}{interval_}".ljust(24)

    scores, labels = metrics["scores"], {"single_trial_correlation": "single-trial correlation", "feve": "FEVE"}
    columns = [s for s in ("single_trial_correlation", *REPEATED) if scores.get(s)]
    clips = sum(a["clips"] for a in metrics["animals"].values())
    lines = [f"Encoders on {clips} clips of tier {metrics['tier']}, mean over neurons [95 % interval over clips]"]
    lines.append(f"  {'':<34}" + "".join(labels.get(s, s.replace("_", " ")).ljust(24) for s in columns))
    for name in scores["single_trial_correlation"]:
        of_one = name.startswith(f"{ENSEMBLE}/")
        label = f"encoder {name.partition('/')[2]}" if of_one else name.replace("_", " ")
        label = {ENSEMBLE: f"encoders, mean of {len(metrics['models'])}"}.get(name, label)
        label += " (ceiling)" if name == EXPECTED else ""
        lines.append(f"  {label:<34}" + "".join(cell(scores[s].get(name)) for s in columns).rstrip())
    if metrics["share_of_ceiling"]:
        lines.append(f"  {'share of the ceiling':<34}" + cell(metrics["share_of_ceiling"]).rstrip())
    lines += [
        f"  {'encoders - ' + name.replace('_', ' '):<34}" + cell(metrics["differences"][name]).rstrip()
        for name in LESS
        if name in metrics["differences"]
    ]
    for of_size in metrics["ensembles"] if len(metrics["models"]) > 1 else ():
        label = f"{of_size['models']} encoder{'s' * (of_size['models'] > 1)}, mean of {of_size['subsets']} such"
        gain, (low, high) = of_size["over_one"]["mean"], of_size["over_one"]["ci95"]
        above = f"{gain:+.3f} [{low:.3f}, {high:.3f}] to one" if of_size["models"] > 1 and np.isfinite(low) else ""
        lines.append(f"  {label:<34}" + (cell(of_size) + above).rstrip())
    if len(metrics["animals"]) > 1:
        lines += [
            f"  {name:<34}" + "".join(cell(animal.get(s, {}).get(ENSEMBLE)) for s in columns).rstrip()
            for name, animal in metrics["animals"].items()
        ]
    if metrics["chose_the_best_moment"]:
        lines.append(f"  the trials of tier {metrics['tier']} also fitted the encoders or chose their best moment")
    return "\n".join(lines)
