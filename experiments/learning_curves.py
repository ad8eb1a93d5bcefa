"""How good do encoders get with more training trials, and with more neurons?

    python -m experiments.learning_curves --config experiments/configs/demo.py --workdir runs/demo

WORKDIR is the folder of a training or a reconstruction, which says the recordings. For each share of the training
trials (config.learning_curves.trials) and of the neurons (config.learning_curves.neurons) it trains one encoder anew,
with the config's encoder and training settings, and scores it on the trials of config.tier, which no training sees.

How to read it. Scores are single-trial correlations by the competition's rule, and, where the true expected response is
known (in simulation), their share of what that response reaches, the ceiling. Every condition is scored on the same
neurons, those of the smallest share, and on the same clips: a curve rises only where the encoders get better. Trials
include those that choose the best moment of the training; their share is the same in all conditions. A curve still
steep at its right end says that more data would help; a flat one, that something else limits the encoder (its size, the
length of the training, or the noise: see the ceiling). Differences are paired over clips. The intervals say nothing of
another draw of trials, neurons or starting weights: each condition is trained once.

Cost: one training of config.learning_curves.num_steps steps for each condition; these are shorter than the default
training, so that all values are lower than what it reaches. About ten minutes on two free cores for the demo's animal.
Killed and called again, it goes on in the training that was interrupted. Table and curves are in
WORKDIR/studies/learning_curves, each training in a folder there, named after its shares in per cent.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from matplotlib.figure import Figure

from experiments import cli
from experiments.evaluate_encoders import ENSEMBLE, EXPECTED, response_sums, true_response
from experiments.inputs import recordings_of
from experiments.studies import begin, finish
from experiments.train import train_encoders
from neurorecon import runs
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.bootstrap import Interval
from neurorecon.evaluation.clip_scores import interval_text
from neurorecon.evaluation.response_intervals import interval, resampled_score, single_trial_values
from neurorecon.evaluation.response_scores import SEED
from neurorecon.recordings import Recording
from neurorecon.recordings.subset import RecordingSubset
from neurorecon.reporting.studies import Study
from neurorecon.reporting.study_figures import COLOURS, add_legend, line_with_interval, new_figure, study_style

NAME = "learning_curves"
KEYS = (
    "encoder", "factorized", "linear_nonlinear", "dwiseneuro", "training", "seed", "validation_tier", "tier",
    "learning_curves",
)  # fmt: skip
COLUMNS = {
    "trials": "training trials of each animal, those that choose the best moment included",
    "neurons": "neurons of each animal, all trained on",
    "correlation": "single-trial correlation, mean over the neurons that all conditions share",
    "low": "of its 95 % interval over clips",
    "high": "of its 95 % interval over clips",
    "share": "of the ceiling, what the true expected response reaches on the same neurons",
    "share_low": "of its 95 % interval over clips",
    "share_high": "of its 95 % interval over clips",
    "all_neurons": "single-trial correlation, mean over all neurons of the condition",
    "seconds": "that training and scoring took",
}


class Condition(NamedTuple):
    """Shares of the training trials and of the neurons."""

    trials: float
    neurons: float

    @property
    def folder(self) -> str:
        return f"trials{100 * self.trials:g}_neurons{100 * self.neurons:g}"


class Measured(NamedTuple):
    """A condition's scores of the clips as they are and of resampled ones, as from `resampled_score`.

    Attributes:
      row: of the table.
      encoders, ceiling: on the neurons that all conditions share; ceiling None where it isn't known.
      clips: number of clips.
    """

    row: dict[str, Any]
    encoders: np.ndarray
    ceiling: np.ndarray | None
    clips: int


def learning_curves(config: ml_collections.ConfigDict, workdir: str) -> Study:
    """Trains and scores every condition, or goes on; writes the study and returns it.

    Raises:
      NeuroreconError: nothing was trained or reconstructed in the work folder, a share out of its range, or too few
        trials for one.
    """
    started = time.monotonic()
    conditions = conditions_of(config)
    config, folder = begin(config, workdir, NAME, KEYS)
    smallest = min(c.neurons for c in conditions)
    measured: dict[Condition, Measured] = {}
    for number, condition in enumerate(conditions):
        print(
            f"{number + 1} of {len(conditions)}: {condition.trials:.0%} of the training trials, "
            f"{condition.neurons:.0%} of the neurons"
        )
        measured[condition] = measure(config, folder / condition.folder, condition, smallest)
    most = conditions[-1].trials, max(c.neurons for c in conditions)
    along = {
        "trials": [c for c in conditions if c.neurons == most[1]],
        "neurons": sorted(c for c in conditions if c.trials == most[0]),
    }
    curves = {axis: [measured[c] for c in chosen] for axis, chosen in along.items()}
    figures = {axis: (curve_figure(axis, curve), caption(axis, curve, config)) for axis, curve in curves.items()}
    return finish(
        folder,
        started=started,
        config=config,
        title="Learning curves",
        question="How good do encoders get with more training trials, and with more neurons?",
        findings=findings(curves, config),
        columns=COLUMNS,
        rows=[m.row for m in measured.values()],
        figures=figures,
    )


def conditions_of(config: ml_collections.ConfigDict) -> list[Condition]:
    """Every share of the trials with all neurons and every share of the neurons with all trials, smallest first.

    Raises:
      NeuroreconError: a share that is no number above 0 and at most 1, or none at all.
    """
    shares = {}
    for key in ("trials", "neurons"):
        text = str(config.learning_curves[key])
        try:
            shares[key] = sorted({float(part) for part in cli.listed(text)})
        except ValueError:
            shares[key] = []
        if not shares[key] or not 0 < shares[key][0] <= shares[key][-1] <= 1:
            raise NeuroreconError(
                f"--config.learning_curves.{key}: expected shares above 0 and at most 1, such as '0.25,0.5,1', "
                f"found {text!r}"
            )
    most = Condition(shares["trials"][-1], shares["neurons"][-1])
    by_trials = [Condition(t, most.neurons) for t in shares["trials"]]
    return [*by_trials, *(Condition(most.trials, n) for n in shares["neurons"][:-1])]


def condition_config(config: ml_collections.ConfigDict, condition: Condition) -> ml_collections.ConfigDict:
    """The config of one condition's training."""
    changed = config.copy_and_resolve_references()
    changed.encoders = ""
    changed.num_models = 1
    changed.subset.update(trials=condition.trials, neurons=condition.neurons)
    steps = config.learning_curves.num_steps
    changed.training.update(num_steps=steps, validation_every=max(1, steps // 4))
    changed.training.update(core_from="", distil_from="", shard="")
    if config.validation_tier == "train":  # part of the trials: their share stays
        held_out = round(config.training.validation_trials * condition.trials)
        changed.training.validation_trials = min(config.training.validation_trials, max(2, held_out))
    return changed


def measure(config: ml_collections.ConfigDict, folder: Path, condition: Condition, smallest: float) -> Measured:
    """Trains and scores a condition; what is there already is not made again.

    Args:
      config: of the study.
      folder: of the condition.
      condition: what to take.
      smallest: share of the neurons that all conditions have.
    """
    config = condition_config(config, condition)
    recordings = recordings_of(config)
    shared = [_numbers(r) for r in recordings_of(condition_config(config, Condition(1.0, smallest)))]
    path = folder / "sums.npz"
    if not path.is_file():
        begun = time.monotonic()
        ensemble = train_encoders(config, str(folder))
        arrays: dict[str, np.ndarray] = {}
        for index, r in enumerate(recordings):
            sums = response_sums(r, config.tier, ensemble, ensemble.readout(r, index), true_response(r))
            arrays |= {f"{r.name}/{n}": sums.trials[n] for n in (ENSEMBLE, EXPECTED) if n in sums.trials}
        runs.save_arrays(path, arrays | {"seconds": np.asarray(time.monotonic() - begun)})
    stored = runs.load_arrays(path)
    # (clip, sum, neuron); the shared neurons are among those of the condition.
    places = [np.searchsorted(_numbers(r), numbers) for r, numbers in zip(recordings, shared)]
    encoders = [stored[f"{r.name}/{ENSEMBLE}"] for r in recordings]
    clips = sum(len(x) for x in encoders)

    def score(animals: Sequence[np.ndarray]) -> np.ndarray:
        return resampled_score(animals, single_trial_values, seed=SEED)

    on_shared = score([x[:, :, p] for x, p in zip(encoders, places)])
    ceiling = None
    if all(f"{r.name}/{EXPECTED}" in stored for r in recordings):
        ceiling = score([stored[f"{r.name}/{EXPECTED}"][:, :, p] for r, p in zip(recordings, places)])
    correlation = interval(on_shared, num_clips=clips)
    share = None if ceiling is None else interval(on_shared / ceiling, num_clips=clips)
    row = {
        "trials": float(np.mean([len(r.trial_ids("train")) for r in recordings])),
        "neurons": float(np.mean([r.num_neurons for r in recordings])),
        **dict(zip(("correlation", "low", "high"), _three(correlation))),
        **dict(zip(("share", "share_low", "share_high"), _three(share))),
        "all_neurons": float(score(encoders)[0]),
        "seconds": round(float(stored["seconds"]), 1),
    }
    return Measured(row, on_shared, ceiling, clips)


def _numbers(recording: Recording) -> np.ndarray:
    """Numbers of a recording's neurons in the whole one."""
    return recording.neurons if isinstance(recording, RecordingSubset) else np.arange(recording.num_neurons)


def _three(value: dict[str, Any] | None) -> list[float | None]:
    """Mean and limits; None for what isn't there (a single clip has no limits)."""
    if value is None:
        return [None] * 3
    return [float(x) if np.isfinite(x) else None for x in (value["mean"], *value["ci95"])]


def findings(curves: dict[str, list[Measured]], config: ml_collections.ConfigDict) -> list[str]:
    """Sentences with numbers and intervals, the most important first."""
    found = []
    for axis, curve in curves.items():
        first, last = curve[0], curve[-1]
        if len(curve) < 2:
            continue
        gain, before = _said(last.encoders - first.encoders, last), curve[-2]
        found.append(
            f"From {first.row[axis]:g} to {last.row[axis]:g} {_words(axis)}, single-trial correlation changes from "
            f"{_said(first.encoders, first)} to {_said(last.encoders, last)}, by {gain} on the same clips."
        )
        if len(curve) > 2:
            step = _said(last.encoders - before.encoders, last)
            found.append(f"The step from {before.row[axis]:g} to {last.row[axis]:g} {_words(axis)} gives {step}.")
    whole = curves["trials"][-1]
    if whole.ceiling is not None:
        found.append(
            f"With everything, an encoder reaches {_said(whole.encoders / whole.ceiling, whole)} of the ceiling, "
            f"{_said(whole.ceiling, whole)}, which the true expected response reaches."
        )
    steps, usual = config.learning_curves.num_steps, config.training.num_steps
    if steps < usual:
        found.append(
            f"The trainings are short: {steps} steps of one encoder against {usual} of the config's training, which "
            "reaches more; with more steps, more data may help more."
        )
    found.append(
        f"Scored on {whole.clips} clips of tier {config.tier} and the same neurons throughout; 95 % intervals are over "
        "clips, not over draws of trials, neurons or starting weights, of which there is one."
    )
    if config.validation_tier == config.tier:
        found.append(f"The clips of tier {config.tier} also chose the best moment of each training.")
    return found


def _said(resampled: np.ndarray, of: Measured) -> str:
    value = interval(resampled, num_clips=of.clips)
    return interval_text(Interval(value["mean"], *value["ci95"]))


def _words(axis: str) -> str:
    return {"trials": "training trials", "neurons": "neurons trained on"}[axis]


def caption(axis: str, curve: Sequence[Measured], config: ml_collections.ConfigDict) -> str:
    """What a curve shows."""
    other, rest = ("neurons", "neurons") if axis == "trials" else ("trials", "training trials")
    return (
        f"Single-trial correlation against the number of {_words(axis)}, with {curve[-1].row[other]:g} {rest} and "
        f"{config.learning_curves.num_steps} steps each; same clips and neurons throughout. Bands: 95 % intervals over "
        f"{curve[-1].clips} clips."
    )


@study_style()
def curve_figure(axis: str, curve: Sequence[Measured]) -> Figure:
    """Correlation of the encoders, and the ceiling where it is known, over trials or neurons."""
    figure, axes = new_figure()
    panel = axes[0, 0]
    x = [m.row[axis] for m in curve]

    def line(values: Sequence[np.ndarray], label: str, colour: str, **style: Any) -> None:
        mean, low, high = np.array([_three(interval(v, num_clips=curve[0].clips)) for v in values], float).T
        line_with_interval(panel, x, mean, low, high, label=label, colour=colour, **style)

    line([m.encoders for m in curve], "encoder", COLOURS[0])
    ceilings = [m.ceiling for m in curve if m.ceiling is not None]
    if ceilings:
        line(ceilings, "ceiling: true expected response", COLOURS[2], ls="--", marker="")
    panel.set_xscale("log", base=2)
    panel.set_xticks(x, [f"{value:g}" for value in x])
    panel.minorticks_off()
    panel.set_ylim(bottom=min(0.0, *(m.encoders.min() for m in curve)))
    panel.set(xlabel=_words(axis), ylabel="single-trial correlation")
    add_legend(panel, loc="lower right")
    return figure


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    learning_curves(config, workdir)


if __name__ == "__main__":
    cli.run(main, __doc__, config="experiments/configs/demo.py")
