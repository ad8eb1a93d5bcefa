"""Scores the encoders of a training folder beside what knows less and what knows all; called by experiments.evaluate.

Scores are on the trials of `config.tier`, by the rule of the Sensorium 2023 competition, with intervals over clips.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from experiments.inputs import Ensemble, ensemble_of, recordings_of
from neurorecon import runs
from neurorecon.encoders import predict_trial
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.repeat_metrics import FEV_THRESHOLD
from neurorecon.evaluation.response_baselines import BehaviourOnly, MeanResponse
from neurorecon.evaluation.response_intervals import (
    average_values,
    fev_values,
    feve_values,
    interval,
    repeat_sums,
    resampled_score,
    single_trial_values,
    trial_sums,
)
from neurorecon.files import read_json, save_json, save_npz
from neurorecon.recordings import Recording, Trial

SKIP = 50  # frames at the start of a trial, by the competition's rule; a quarter of shorter trials
SEED = 0  # of the bootstrap: the same scores give the same intervals
ENSEMBLE, MEAN, BEHAVIOUR, EXPECTED = "encoders", "mean_response", "behaviour_only", "expected_response"
REPEATED = ("correlation_to_average", "feve")

Predictor = Callable[[Trial], np.ndarray]


def is_training(workdir: str) -> bool:
    """Whether encoders were trained in this work folder."""
    path = Path(workdir) / "jobs.json"
    return path.is_file() and "train" in read_json(path)


def evaluate_encoders(workdir: str, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Scores every encoder of a training folder, their mean, and the baselines.

    Writes encoder_metrics.json, which is returned, and encoder_metrics/ANIMAL.npz with the scores of each neuron.
    Predictors: `encoders` (mean of all), `encoders/K` (each), `mean_response` (of the training trials, at each frame of
    a trial), `behaviour_only` (ridge), and `expected_response` where a simulation wrote expected/ANIMAL/TRIAL.npy.

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
    ensemble = ensemble_of([str(folder)])
    recordings = recordings_of(config)
    sums = [_animal_sums(r, index, ensemble, config.tier) for index, r in enumerate(recordings)]
    for recording, of_animal in zip(recordings, sums):
        _save_neurons(folder / "encoder_metrics" / f"{recording.name}.npz", of_animal)
    names = [n for n in sums[0]["trials"] if all(n in s["trials"] for s in sums)]
    skip = {r.name: s["skip"] for r, s in zip(recordings, sums)}
    metrics: dict[str, Any] = {
        "tier": config.tier,
        "chose_the_best_moment": begun["validation_tier"] == config.tier or config.tier == "train",
        "skipped_frames": skip,
        "scores": _scores(sums, names),
        "animals": {
            r.name: {
                "neurons": r.num_neurons,
                "clips": len(s["trials"][ENSEMBLE]),
                "repeated_clips": len(s["repeats"].get(ENSEMBLE, ())),
                **_scores([s], list(s["trials"])),
            }
            for r, s in zip(recordings, sums)
        },
        "models": [f"{ENSEMBLE}/{k}" for k in range(len(ensemble.members))],
        "differences": _compared(sums, names, np.subtract, (MEAN, BEHAVIOUR, EXPECTED)),
        "share_of_ceiling": _compared(sums, names, np.divide, (EXPECTED,)).get(EXPECTED),
        "versions": runs.versions(),
        "config": config.to_dict(),
    }
    save_json(folder / "encoder_metrics.json", metrics)
    return metrics


def _animal_sums(recording: Recording, index: int, ensemble: Ensemble, tier: str) -> dict[str, Any]:
    """For each predictor the sums (clip, sum, neuron) of its trials, and of the movies shown again."""
    training = [recording.target(i) for i in recording.trial_ids("train")]
    mean = MeanResponse(t.responses for t in training)
    behaviour = BehaviourOnly([t.behaviour for t in training], (t.responses for t in training))
    del training
    predictors: dict[str, Predictor] = {
        MEAN: lambda trial: mean.predict(trial.num_frames),
        BEHAVIOUR: lambda trial: behaviour.predict(trial.behaviour),
    }
    expected = recording.path.parent.parent / "expected" / recording.name
    if expected.is_dir():
        predictors[EXPECTED] = lambda trial: _expected(expected / f"{trial.id}.npy", trial)
    readout = ensemble.readout(recording, index)
    ids = recording.trial_ids(tier)
    skip = min(SKIP, min(recording.num_frames(i) for i in ids) // 4)
    sums: dict[str, Any] = {"skip": skip, "trials": {}, "repeats": {}}
    for trials in _clips(recording, tier, ids):
        predictions: dict[str, list[np.ndarray]] = {}
        for trial in trials:
            members = [predict_trial(e, v, trial.stimulus, trial.behaviour, readout) for e, v in ensemble.members]
            named = {ENSEMBLE: np.mean(members, axis=0)} | {f"{ENSEMBLE}/{k}": p for k, p in enumerate(members)}
            for name, prediction in (named | {n: predict(trial) for n, predict in predictors.items()}).items():
                predictions.setdefault(name, []).append(prediction)
        for name, found in predictions.items():
            pairs = zip(found, trials, strict=True)
            of_clip = sum(trial_sums(p, t.responses, skip=skip, centre=mean.mean) for p, t in pairs)
            sums["trials"].setdefault(name, []).append(of_clip)
            if len(trials) > 1:
                shown = np.stack([t.responses[skip:] for t in trials])
                again = repeat_sums(shown, np.stack(found)[:, skip:], centre=mean.mean)
                sums["repeats"].setdefault(name, []).append(again)
    return {k: v if k == "skip" else {n: np.stack(s) for n, s in v.items()} for k, v in sums.items()}


def _clips(recording: Recording, tier: str, ids: list[str]) -> Iterator[list[Trial]]:
    """The trials of each movie, in the order of the movies' first trials."""
    groups = {group[0]: group for group in recording.repeats(tier)}
    later = {i for group in groups.values() for i in group[1:]}
    for trial_id in ids:
        if trial_id not in later:
            yield [recording.target(i) for i in groups.get(trial_id, [trial_id])]


def _expected(path: Path, trial: Trial) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise NeuroreconError(f"{path}: expected the true response of a simulated trial, can't be read") from error
    if array.shape != trial.responses.shape:
        raise NeuroreconError(f"{path}: expected {trial.responses.shape}, (time, neuron), found {array.shape}")
    return array


def _scores(sums: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """Score -> predictor -> mean and interval, over all neurons of the animals."""
    found: dict[str, Any] = {"single_trial_correlation": {}}
    clips = sum(len(s["trials"][ENSEMBLE]) for s in sums)
    for name in names:
        score = resampled_score([s["trials"][name] for s in sums], single_trial_values, seed=SEED)
        found["single_trial_correlation"][name] = interval(score, num_clips=clips)
    repeated = [s["repeats"] for s in sums if s["repeats"]]
    if not repeated:
        return found
    clips = sum(len(s[ENSEMBLE]) for s in repeated)
    # Neurons that the stimulus hardly drives have no fraction to explain.
    explainable = [_explainable(s) for s in repeated]
    found |= {name: {} for name in REPEATED}
    for name in names:
        animals = [s[name] for s in repeated]
        score = resampled_score(animals, average_values, seed=SEED)
        found["correlation_to_average"][name] = interval(score, num_clips=clips)
        if sum(e.sum() for e in explainable):
            score = resampled_score(animals, feve_values, seed=SEED, neurons=explainable)
            found["feve"][name] = interval(score, num_clips=clips)
    found["explainable_neurons"] = int(sum(e.sum() for e in explainable))
    return found


def _explainable(repeats: dict[str, np.ndarray]) -> np.ndarray:
    return fev_values(repeats[ENSEMBLE].sum(0)) >= FEV_THRESHOLD  # not so for NaN, of neurons that never answer


def _compared(sums: list[dict[str, Any]], names: list[str], how: Any, others: tuple[str, ...]) -> dict[str, Any]:
    """Single-trial correlation of the encoders' mean against others', clips drawn together."""
    clips = sum(len(s["trials"][ENSEMBLE]) for s in sums)

    def score(name: str) -> np.ndarray:
        return resampled_score([s["trials"][name] for s in sums], single_trial_values, seed=SEED)

    return {n: interval(how(score(ENSEMBLE), score(n)), num_clips=clips) for n in others if n in names}


def _save_neurons(path: Path, sums: dict[str, Any]) -> None:
    names = list(sums["trials"])
    arrays = {"predictors": np.array(names)}
    arrays["single_trial_correlation"] = np.stack([single_trial_values(sums["trials"][n].sum(0)) for n in names])
    if sums["repeats"]:
        added = {n: sums["repeats"][n].sum(0) for n in names}
        arrays["correlation_to_average"] = np.stack([average_values(added[n]) for n in names])
        arrays["feve"] = np.stack([feve_values(added[n]) for n in names])
        arrays["fev"] = fev_values(added[ENSEMBLE])
    save_npz(path, **arrays)


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
    if len(metrics["animals"]) > 1:
        lines += [
            f"  {name:<34}" + "".join(cell(animal.get(s, {}).get(ENSEMBLE)) for s in columns).rstrip()
            for name, animal in metrics["animals"].items()
        ]
    if metrics["chose_the_best_moment"]:
        lines.append(f"  the trials of tier {metrics['tier']} also fitted the encoders or chose their best moment")
    return "\n".join(lines)
