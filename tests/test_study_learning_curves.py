"""Learning curves: every condition trained once on its part, scored on the same neurons and clips, and resumed."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.inputs import ensemble_of, recordings_of
from experiments.learning_curves import Condition, condition_config, conditions_of, learning_curves
from neurorecon.encoders import Factorized, load_encoder, predict_trial
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.response_metrics import neuron_correlations
from neurorecon.recordings import open_recording
from tests.recording_examples import one_line
from tests.tiny_run import SHAPE, files_and_times, get_fields, random_encoders, simulated, tiny_config


def study_config(tree, **changes):
    changes = {"learning_curves__trials": "0.6,1", "learning_curves__neurons": "1,0.5"} | changes
    return tiny_config(recordings=str(tree), learning_curves__num_steps=2, validation_tier="oracle", **changes)


@pytest.fixture
def trained(monkeypatch):
    """Parts that were trained on: random weights stand in for those of a training, which takes most of the time."""
    parts = []

    def stand_in(config, folder):
        (recording,) = recordings_of(config)
        parts.append((len(recording.trial_ids("train")), recording.num_neurons, config.training.num_steps))
        fields = {"canvas": SHAPE, "behaviour_std": (20.0,) * 4, **get_fields()}
        encoder = Factorized(num_neurons=(recording.num_neurons,), **fields)
        return ensemble_of([str(random_encoders(Path(folder), encoder, num_models=config.num_models))])

    monkeypatch.setattr("experiments.learning_curves.train_encoders", stand_in)
    return parts


def test_curves_score_the_same_neurons_and_go_on(tmp_path, trained, capsys):
    tree = simulated(tmp_path / "sim")
    workdir = random_encoders(tmp_path / "run")
    config = study_config(tree)
    study = learning_curves(config, str(workdir))
    folder = workdir / "studies/learning_curves"
    assert trained == [(4, 12, 2), (6, 12, 2), (6, 6, 2)]
    assert [(r["trials"], r["neurons"]) for r in study.rows] == [(4, 12), (6, 12), (6, 6)]
    (half,) = recordings_of(condition_config(config, Condition(1.0, 0.5)))
    trials = [open_recording(tree).trial(i) for i in half.trial_ids("oracle")]
    targets = [t.responses[:, half.neurons] for t in trials]
    expected = [np.load(tmp_path / f"sim/expected/mouse1/{t.id}.npy")[:, half.neurons] for t in trials]
    ceiling = neuron_correlations(expected, targets, skip=15).mean()
    for row, name in zip(study.rows, ("trials60_neurons100", "trials100_neurons100", "trials100_neurons50")):
        encoder, variables = load_encoder(folder / name / "encoders/0")
        assert encoder.num_neurons == (row["neurons"],)
        kept = slice(None) if row["neurons"] == 6 else half.neurons
        found = [predict_trial(encoder, variables, t.stimulus, t.behaviour)[:, kept] for t in trials]
        assert row["correlation"] == pytest.approx(neuron_correlations(found, targets, skip=15).mean(), abs=1e-5)
        assert row["share"] == pytest.approx(row["correlation"] / ceiling, rel=1e-4)
        assert row["low"] <= row["correlation"] <= row["high"]
    assert study.rows[2]["all_neurons"] == pytest.approx(study.rows[2]["correlation"])
    text = " ".join(study.findings)
    assert "From 4 to 6 training trials" in text and "From 6 to 12 neurons" in text and "of the ceiling" in text
    assert "2 steps of one encoder against 6" in text and "also chose the best moment" in text
    assert study.findings[0] in capsys.readouterr().out
    with open(folder / "table.csv", newline="") as handle:
        assert [float(r["correlation"]) for r in csv.DictReader(handle)] == [r["correlation"] for r in study.rows]
    assert {p.name for p in folder.glob("*.svg")} == {"trials.svg", "neurons.svg"}
    assert json.loads((folder / "study.json").read_text())["rows"] == study.rows
    # Called again, nothing is trained again; what is missing is.
    parts = [folder / name for name in ("trials60_neurons100", "trials100_neurons100")]
    before = files_and_times(*parts)
    (folder / "trials100_neurons50/sums.npz").unlink()
    again = learning_curves(config, str(workdir))
    assert trained[3:] == [(6, 6, 2)]
    changed = {p for p, t in files_and_times(*parts).items() if before.get(p) != t}
    assert not changed
    for old, new in zip(study.rows, again.rows):
        assert {k: v for k, v in old.items() if k != "seconds"} == {k: v for k, v in new.items() if k != "seconds"}
    with pytest.raises(NeuroreconError) as error:
        learning_curves(study_config(tree, learning_curves__trials="1"), str(workdir))
    one_line(error, "learning_curves")


def test_conditions_and_their_configs():
    config = tiny_config(learning_curves__trials="1, 0.25,0.5", learning_curves__neurons="0.125,1")
    found = conditions_of(config)
    assert found == [Condition(0.25, 1), Condition(0.5, 1), Condition(1, 1), Condition(1, 0.125)]
    assert found[3].folder == "trials100_neurons12.5" and len({c.folder for c in found}) == 4
    config.training.validation_trials = 8
    # The share of the trials that validate stays, at least two of them.
    assert [condition_config(config, c).training.validation_trials for c in found] == [2, 4, 8, 8]
    config.validation_tier = "oracle"
    assert condition_config(config, found[0]).training.validation_trials == 8
    small = condition_config(config, found[0])
    assert (small.subset.trials, small.subset.neurons, small.num_models) == (0.25, 1, 1)
    assert small.training.num_steps == config.learning_curves.num_steps
    for text in ("", "0,1", "half", "0.5,2"):
        config.learning_curves.trials = text
        with pytest.raises(NeuroreconError) as error:
            conditions_of(config)
        one_line(error, "learning_curves.trials", repr(text))
