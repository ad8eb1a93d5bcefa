"""Part of a recording: the same trials and neurons for a seed, small parts inside large ones, other tiers whole."""

import itertools
import shutil

import numpy as np
import pytest

from experiments.inputs import recordings_of
from neurorecon.errors import NeuroreconError
from neurorecon.recordings import open_recording, prepare, write_sensorium
from neurorecon.recordings.prepared import fingerprint
from neurorecon.recordings.subset import RecordingSubset, subset_of
from tests.recording_examples import NEURONS, make_trials, one_line
from tests.tiny_run import tiny_config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    write_sensorium(folder / "mouse", make_trials(12))
    return open_recording(folder / "mouse")


def test_trials_and_neurons_are_those_of_the_whole(whole):
    part = subset_of(whole, trials=0.5, neurons=0.4, seed=1)
    training = whole.trial_ids("train")
    kept = part.trial_ids("train")
    assert len(kept) == round(0.5 * len(training)) and set(kept) < set(training)
    assert part.num_neurons == len(part.neurons) == round(0.4 * NEURONS) < NEURONS
    assert part.num_trials == whole.num_trials and whole.trial_ids("train") == training
    assert part.tier_counts["none"] == len(training) - len(kept) + whole.tier_counts.get("none", 0)
    for tier in set(whole.tier_counts) - {"train", "none"}:
        assert part.trial_ids(tier) == whole.trial_ids(tier)
    for trial_id in whole.trial_ids():
        ours, theirs = part.trial(trial_id), whole.trial(trial_id)
        np.testing.assert_array_equal(ours.responses, theirs.responses[:, part.neurons])
        np.testing.assert_array_equal(ours.stimulus, theirs.stimulus)
        assert ours.tier == part.tier(trial_id) and ours.tier in (theirs.tier, "none")
    left_out = next(i for i in training if i not in kept)
    mean = np.concatenate([whole.behaviour(i) for i in kept]).mean(0)
    np.testing.assert_allclose(part.behaviour_mean(), mean, rtol=1e-5)
    assert part.tier(left_out) == "none"
    if whole.unit_ids is not None:
        np.testing.assert_array_equal(part.unit_ids, whole.unit_ids[part.neurons])


def test_smaller_parts_lie_inside_larger_ones(whole):
    parts = [subset_of(whole, trials=s, neurons=s, seed=3) for s in (0.2, 0.5, 0.8)]
    for small, large in itertools.pairwise(parts):
        assert set(small.trial_ids("train")) < set(large.trial_ids("train"))
        assert set(small.neurons) < set(large.neurons)
    again, other = (subset_of(whole, neurons=0.5, seed=s) for s in (3, 4))
    np.testing.assert_array_equal(again.neurons, parts[1].neurons)
    assert not np.array_equal(other.neurons, parts[1].neurons)
    assert subset_of(whole) is whole
    assert subset_of(whole, trials=1e-9, neurons=1e-9).num_neurons == 1


def test_a_prepared_part_is_the_part(whole, tmp_path):
    part = subset_of(whole, trials=0.5, neurons=0.4, seed=1)
    for cache in (None, tmp_path / "cache"):
        prepared = prepare(part, cache)
        assert prepared.trial_ids("train") == part.trial_ids("train") and prepared.num_neurons == part.num_neurons
        np.testing.assert_array_equal(prepared.trial("0").responses, part.trial("0").responses)
    prints = [fingerprint(subset_of(whole, trials=t, neurons=n)) for t, n in ((1, 1), (0.5, 1), (1, 0.5), (0.5, 0.5))]
    assert len(set(prints)) == 4 and fingerprint(part) == fingerprint(subset_of(whole, trials=0.5, neurons=0.4, seed=1))


def test_the_config_takes_a_part(whole, tmp_path):
    tree = tmp_path / "mouse"
    shutil.copytree(whole.path, tree)
    (recording,) = recordings_of(tiny_config(recordings=str(tree)))
    assert not isinstance(recording, RecordingSubset)
    (recording,) = recordings_of(tiny_config(recordings=str(tree), subset__neurons=0.4, subset__seed=1))
    np.testing.assert_array_equal(recording.neurons, subset_of(whole, neurons=0.4, seed=1).neurons)
    for key in ("trials", "neurons"):
        with pytest.raises(NeuroreconError) as error:
            recordings_of(tiny_config(recordings=str(tree), **{f"subset__{key}": 1.5}))
        one_line(error, f"subset.{key}", "1.5")
