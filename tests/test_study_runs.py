"""The studies of ensemble size, neurons, masks and behaviour on a tiny animal: what they write, how they resume."""

import shutil

import numpy as np
import pytest

from experiments.ablation import ablation, doubling
from experiments.behaviour import behaviour
from experiments.ensemble_size import drawn_subsets, ensemble_size
from experiments.masks import masks
from neurorecon.errors import NeuroreconError
from neurorecon.files import read_json
from neurorecon.reporting.studies import read_studies
from tests.tiny_run import NUM_NEURONS, ORACLE, files_and_times, movie, random_encoders, simulated, tiny_config

CHANGES = {
    "num_steps": 2,
    "calibration_clips": 0,
    "mask__threshold": 0.05,
    "masks__strict": 0.2,
    "masks__thresholds": "0,0.7,2",
    "ensemble_size__subsets": 1,
    "ablation__shares": "0.5,1",
    "ablation__draws": 2,
}


def config(tree, **changes):
    return tiny_config(recordings=str(tree), **{**CHANGES, **changes})


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A tree, and a work folder with random encoders."""
    folder = tmp_path_factory.mktemp("asked")
    return simulated(folder), random_encoders(folder / "work")


@pytest.fixture(scope="module")
def studied(asked):
    """All four, run once in one folder; name -> study."""
    tree, work = asked
    for run in (ensemble_size, ablation, masks, behaviour):
        run(config(tree), str(work))
    return work, {study.name: study for study in read_studies(work)}


def test_each_has_a_table_a_figure_and_findings_with_numbers(studied):
    work, found = studied
    assert set(found) == {"ensemble_size", "ablation", "masks", "behaviour"}
    for name, study in found.items():
        assert study.rows and study.captions and study.config["num_steps"] == 2
        assert study.findings and any("." in f and any(c.isdigit() for c in f) for f in study.findings)
        for figure in study.captions:
            assert (work / "studies" / name / f"{figure}.svg").stat().st_size > 1000


def test_ensembles_average_what_single_encoders_make(studied):
    work, found = studied
    rows = {(row["encoders"], row["combined"]): row for row in found["ensemble_size"].rows}
    assert len(rows) == 4
    assert rows[1, "movies averaged"]["correlation"] == rows[1, "gradients averaged"]["correlation"]
    folder = work / "studies" / "ensemble_size"
    alone = [movie(folder / f"encoders_{k}", "6") for k in (0, 1)]
    both = movie(folder / "encoders_0_1", "6")
    assert np.abs(alone[0] - alone[1]).max() > 0.1 and np.abs(both - alone[0]).max() > 0.1
    # One subset of each size is drawn, but what others are compared with is every encoder alone.
    assert rows[1, "movies averaged"]["subsets"] == 2 and rows[2, "movies averaged"]["subsets"] == 1
    one = np.mean(
        [c["movie_correlation"] for k in (0, 1) for c in read_json(folder / f"encoders_{k}/metrics.json")["clips"]]
    )
    gain = rows[2, "movies averaged"]["correlation"] - rows[1, "movies averaged"]["correlation"]
    assert rows[1, "movies averaged"]["correlation"] == pytest.approx(one)
    assert rows[2, "movies averaged"]["gain"] == pytest.approx(gain)
    assert rows[2, "movies averaged"]["gain"] is not None and rows[1, "movies averaged"]["gain"] is None


def test_conditions_are_scored_inside_one_mask(studied):
    work, _ = studied
    masks = [np.load(p)["alpha"] for p in sorted((work / "studies").glob("*/*/masks/mouse1.npz"))]
    assert len(masks) > 10 and all((mask == masks[0]).all() for mask in masks)


def test_what_one_study_made_serves_the_next(studied):
    work, _ = studied
    logs = {p.parent.name for p in (work / "studies").glob("*/*/reconstruction.jsonl") if p.stat().st_size}
    assert "encoders_0_1" in logs  # the first to reconstruct with everything
    assert not {"all", "update_everywhere", "recorded"} & logs
    assert {"random_0.5_0", "random_0.5_1", "most_reliable_0.5_0", "update_strict", "shuffled", "mean"} <= logs


def test_fewer_neurons_and_other_behaviour_change_the_movie(studied):
    work, found = studied
    whole = movie(work / "studies/ablation/all", "6")
    for name in ("ablation/random_0.5_0", "ablation/most_reliable_0.5_0", "behaviour/shuffled", "behaviour/mean"):
        assert np.abs(movie(work / "studies" / name, "6") - whole).max() > 0.01
    assert {row["neurons"] for row in found["ablation"].rows} == {NUM_NEURONS // 2, NUM_NEURONS}


def test_masks_of_too_few_pixels_are_left_out(studied):
    rows = studied[1]["masks"].rows
    assert [row["threshold"] for row in rows if row["evaluation"] == "sweep"] == [0, 0.7]
    covered = [row["square_degrees"] for row in rows if row["evaluation"] == "sweep"]
    assert covered[0] > covered[1] > 0


def test_too_few_clips_are_said_to_be_too_few(studied):
    text = " ".join(studied[1]["behaviour"].findings)
    assert "2 clips" in text and ("so few" in text or "Too few" in text)


def test_a_study_goes_on_where_it_stopped(asked, studied, tmp_path):
    tree, _ = asked
    work, found = studied
    copy = tmp_path / "work"
    shutil.copytree(work, copy)
    folder = copy / "studies" / "ablation"
    (folder / "study.json").unlink()
    shutil.rmtree(folder / "random_0.5_1")  # as if killed in the middle of the third condition
    (folder / "most_reliable_0.5_0" / "reconstructions" / "mouse1" / f"{ORACLE[1]}.npz").unlink()
    kept = files_and_times(folder / "random_0.5_0" / "reconstructions", folder / "all" / "reconstructions")
    again = ablation(config(tree, encoders=str(work)), str(copy))
    assert again.rows == found["ablation"].rows and again.findings == found["ablation"].findings
    assert {p: t for p, t in files_and_times(folder).items() if p in kept} == kept
    with pytest.raises(NeuroreconError, match="begun with"):
        ablation(config(tree, encoders=str(work), ablation__draws=3), str(copy))


def test_subsets_are_all_or_drawn_by_the_seed():
    assert drawn_subsets(3, [1, 2, 3], 3, 0) == {1: [(0,), (1,), (2,)], 2: [(0, 1), (0, 2), (1, 2)], 3: [(0, 1, 2)]}
    many = drawn_subsets(7, [3], 4, 0)[3]
    assert len(set(many)) == 4 and many == drawn_subsets(7, [3], 4, 0)[3] != drawn_subsets(7, [3], 4, 1)[3]


def test_a_doubling_is_the_slope_over_the_logarithm():
    neurons = [100.0, 200.0, 800.0]
    scores = [{("m", "1"): 0.1 + 0.05 * k, ("m", "2"): 0.2 + 0.03 * k} for k in (0, 1, 3)]
    assert doubling(scores, neurons).mean == pytest.approx(0.04)


@pytest.mark.parametrize(
    "run, changes, message",
    [
        (ablation, {"ablation__shares": "1"}, "one below 1"),
        (ablation, {"ablation__counts": "400"}, f"1 to {NUM_NEURONS}"),
        (ablation, {"ablation__orders": "best"}, "orders among"),
        (ensemble_size, {"ensemble_size__sizes": "1,5"}, "from 1 to 2"),
        (masks, {"mask__kind": "none"}, "found none"),
        (masks, {"masks__thresholds": "a"}, "expected numbers"),
    ],
)
def test_bad_keys_are_refused_before_anything_is_reconstructed(asked, tmp_path, run, changes, message):
    tree, work = asked
    with pytest.raises(NeuroreconError, match=message):
        run(config(tree, encoders=str(work), **changes), str(tmp_path))
    assert not list(tmp_path.rglob("*.npz"))
