"""What a descent is given: which neurons, whose behaviour, which encoders."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import preparation
from experiments.descents import Descent, behaviour_of, members_of, neurons_of
from experiments.inputs import Ensemble
from neurorecon.errors import NeuroreconError
from tests.tiny_run import tiny_config

TOTAL = 40
RELIABILITY = np.random.default_rng(0).permutation(TOTAL) / TOTAL
LENGTHS = {"0": 5, "1": 30, "2": 30, "3": 20}  # frames of each trial


class Recorded:
    """A recording of behaviour alone, its values the number of the trial."""

    path, num_neurons = Path("somewhere"), TOTAL

    def trial_ids(self, tier):
        assert tier == "train"
        return ["0", "1", "2"]

    def num_frames(self, trial_id):
        return LENGTHS[trial_id]

    def behaviour(self, trial_id):
        return np.full((LENGTHS[trial_id], 4), float(trial_id))

    def behaviour_mean(self):
        return np.arange(4.0)


def descent(trial_id="3"):
    animal = SimpleNamespace(name="mouse1", recording=Recorded(), reliability=lambda: RELIABILITY)
    return Descent("reconstruction", animal, trial_id, Path("x.npz"), 1)


def kept(trial_id="3", **changes):
    return neurons_of(tiny_config(**{f"neurons__{k}": v for k, v in changes.items()}), descent(trial_id))


def test_all_neurons_unless_asked():
    assert kept() is None and kept(count=TOTAL) is None
    with pytest.raises(NeuroreconError, match="up to the 40"):
        kept(count=TOTAL + 1)


def test_fewer_neurons_are_part_of_more():
    few, more = kept(count=5), kept(count=20)
    assert few.sum() == 5 and more.sum() == 20 and more[few].all()
    assert (kept(count=5) == few).all() and (kept(count=5, seed=1) != few).any() and (kept("2", count=5) != few).any()
    assert kept(share=0.6)[kept(share=0.3)].all() and kept(share=1e-9).sum() == 1


@pytest.mark.parametrize("order, sign", [("most_reliable", -1), ("least_reliable", 1)])
def test_neurons_by_reliability(order, sign):
    expected = np.sort(np.argsort(sign * RELIABILITY)[:10])
    np.testing.assert_array_equal(np.flatnonzero(kept(count=10, order=order)), expected)
    np.testing.assert_array_equal(np.flatnonzero(kept(share=0.25, order=order)), expected)


def test_behaviour_of_another_training_trial_or_the_mean():
    given = lambda trial_id="3", **changes: behaviour_of(  # noqa: E731
        tiny_config(**{f"behaviour__{k}": v for k, v in changes.items()}), descent(trial_id)
    )
    assert (given() == 3).all()
    assert (given(given="mean") == np.arange(4.0)).all() and given(given="mean").shape == (20, 4)
    seen = {float(given(given="shuffled", seed=seed)[0, 0]) for seed in range(20)}
    assert seen == {1.0, 2.0}  # trial 0 is too short
    assert given(given="shuffled").shape == (20, 4)
    assert (given("1", given="shuffled") == 2).all()  # never its own


def test_members_are_places_in_the_ensemble():
    ensemble = Ensemble(["a", "b", "c"], ["mouse1"])
    assert members_of(tiny_config(), ensemble) == ensemble
    assert members_of(tiny_config(members="2,0"), ensemble) == Ensemble(["c", "a"], ["mouse1"])
    for wrong in ("3", "0,0", "a"):
        with pytest.raises(NeuroreconError, match="some of 0, 1, 2"):
            members_of(tiny_config(members=wrong), ensemble)


@pytest.mark.parametrize("steps", [(1, 1), (3, 3), (2, 4)])
def test_the_likelihood_is_weighed_by_stream(steps):
    """Interleaved streams of frames say the same: their sum counts as one stream does."""
    config = tiny_config(default_recipe__likelihood="poisson", default_recipe__likelihood_weight=0.6)
    ensemble = Ensemble([(SimpleNamespace(frame_step=step), {}) for step in steps], None)
    recipe = preparation._recipe(config, ensemble, {}, pytest.fail)
    assert recipe.losses["poisson"][0] == pytest.approx(0.6 / np.mean(steps))
