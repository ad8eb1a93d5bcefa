"""The ceiling study: what its sentences say of known scores, and the whole of it on a tiny animal."""

import csv
import json

import numpy as np
import pytest

from experiments.ceiling import ceiling
from neurorecon.encoders import LinearNonlinear
from neurorecon.errors import NeuroreconError
from neurorecon.reporting.ceiling_findings import COLUMNS, ceiling_figure, findings
from tests.tiny_run import NUM_NEURONS, ORACLE, SHAPE, files_and_times, random_encoders, simulated, tiny_config


def rows(recorded, noise_matched, predicted, other=None, same=0.9):
    rng = np.random.default_rng(0)
    return [
        {
            "animal": "mouse1",
            "trial": str(k),
            "recorded": recorded + shift,
            "noise_matched": noise_matched + shift,
            "predicted": predicted + shift + 0.001 * k,
            "other_architecture": None if other is None else other + shift,
            "same_encoders": same + shift,
        }
        for k, shift in enumerate(rng.normal(0, 0.05, 6))
    ]


def test_sentences_follow_the_scores():
    below = " ".join(findings(rows(0.5, 0.6, 0.8, 0.7), 1, 2, "LinearNonlinear"))
    assert ("100 % of the gap" not in below and "67 % of the gap" in below) or "66 % of the gap" in below
    assert "Recorded responses stay 0.100 [0.100, 0.100] below noise-matched ones" in below
    assert "LinearNonlinear" in below and "2 encoders invert and one other predicts" in below
    assert "0.100" in below and "-0.10" in below  # of the other architecture, paired
    above = " ".join(findings(rows(0.7, 0.6, 0.8), 1, 1, ""))
    assert "above noise-matched" in above and "left out" in above
    assert set(rows(0, 0, 0)[0]) == set(COLUMNS)


def test_figure_shows_what_is_there():
    with_other, without = (ceiling_figure(rows(0.5, 0.6, 0.8, other))[0] for other in (0.7, None))
    assert [len(f.axes[0].get_yticks()) for f in (with_other, without)] == [5, 4]


@pytest.fixture(scope="module")
def animal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("animal")
    encoder = LinearNonlinear(
        num_neurons=(NUM_NEURONS,), canvas=SHAPE, window_frames=20, frame_step=1, rank=1, num_taps=3
    )
    other = random_encoders(folder / "other", encoder, num_models=1)
    return simulated(folder), random_encoders(folder / "run"), other


def tiny(animal, **changes):
    tree, encoders, other = animal
    settings = {"num_steps": 2, "ceiling__other_architecture": str(other)} | changes
    return tiny_config(recordings=str(tree), encoders=str(encoders), **settings)


def test_the_study_and_that_it_goes_on(animal, tmp_path):
    ceiling(tiny(animal), str(tmp_path))
    folder = tmp_path / "studies" / "ceiling"
    table = list(csv.DictReader((folder / "table.csv").open()))
    assert [row["trial"] for row in table] == list(ORACLE)
    kinds = list(COLUMNS)[2:]
    assert all(-1 <= float(row[kind]) <= 1 for row in table for kind in kinds)
    assert len({row[kind] for row in table for kind in kinds}) == 2 * len(kinds)  # each from responses of its own
    study = json.loads((folder / "study.json").read_text())
    assert "upper bound" in study["findings"][-1] and "<svg" in (folder / "ceiling.svg").read_text()
    kept = files_and_times(folder / "movies")
    (folder / "movies" / "mouse1" / f"{ORACLE[1]}.npz").unlink()
    ceiling(tiny(animal), str(tmp_path))
    after = files_and_times(folder / "movies")
    assert [k for k in after if after[k] != kept[k]] == [str(folder / "movies" / "mouse1" / f"{ORACLE[1]}.npz")]
    assert list(csv.DictReader((folder / "table.csv").open())) == table


def test_the_other_architecture_is_another(animal, tmp_path):
    with pytest.raises(NeuroreconError, match="another architecture"):
        ceiling(tiny(animal, ceiling__other_architecture=str(animal[1])), str(tmp_path / "same"))
    with pytest.raises(NeuroreconError, match="would see them"):
        ceiling(tiny(animal, ceiling__other_architecture="train", fold=0), str(tmp_path / "fold"))


def test_the_other_architecture_is_trained_or_left_out(animal, tmp_path):
    changes = {"ceiling__num_clips": 1, "training__num_steps": 1, "linear_nonlinear__window_frames": 10}
    ceiling(tiny(animal, ceiling__other_architecture="train", **changes), str(tmp_path))
    folder = tmp_path / "studies" / "ceiling"
    found = json.loads((folder / "other_architecture" / "encoders" / "0" / "architecture.json").read_text())
    assert "linear_nonlinear" in json.dumps(found)
    ceiling(tiny(animal, ceiling__other_architecture="", **changes), str(tmp_path / "out"))
    (row,) = csv.DictReader((tmp_path / "out" / "studies" / "ceiling" / "table.csv").open())
    assert row["other_architecture"] == "" and row["same_encoders"]
