"""Scores over conditions: paired by clip, resampled over clips, honest with few."""

import numpy as np
import pytest
from scipy.stats import pearsonr

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.bootstrap import Interval, bootstrap_mean
from neurorecon.evaluation.clip_scores import (
    clip_count,
    correlation_interval,
    difference_text,
    interval_text,
    mean_scores,
    paired_difference,
    score_interval,
)

A = {("m", "1"): 0.5, ("m", "2"): 0.7, ("m", "3"): 0.6}
B = {("m", "3"): 0.5, ("m", "2"): 0.6, ("m", "1"): 0.4}  # in another order


def test_differences_are_taken_on_the_same_clips():
    assert paired_difference(A, B) == pytest.approx((0.1, 0.1, 0.1))
    with pytest.raises(NeuroreconError, match="same clips"):
        paired_difference(A, {("m", "1"): 0.4})


def test_one_animal_is_resampled_over_clips_and_several_over_animals():
    assert score_interval(A) == bootstrap_mean(list(A.values()), seed=0)
    two = {**A, ("n", "1"): 0.1, ("n", "2"): 0.2}
    assert score_interval(two).mean == pytest.approx((0.6 + 0.15) / 2)
    assert score_interval(two).low < 0.2


def test_draws_are_averaged_clip_by_clip():
    assert mean_scores([A, B]) == pytest.approx({("m", "1"): 0.45, ("m", "2"): 0.65, ("m", "3"): 0.55})
    for wrong in ([], [A, {("m", "1"): 0.4}]):
        with pytest.raises(NeuroreconError, match="same clips"):
            mean_scores(wrong)


def test_correlations_over_few_clips_have_wide_intervals():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 8))
    found = correlation_interval(x, y)
    assert found.mean == pytest.approx(pearsonr(x, y).statistic)
    z, half = np.arctanh(found.mean), 1.959964 / np.sqrt(8 - 3)  # Fisher's transform
    assert (found.low, found.high) == pytest.approx((np.tanh(z - half), np.tanh(z + half)))
    assert np.isnan(correlation_interval(x, np.ones(8))).all()
    assert np.isnan(correlation_interval(x[:3], y[:3])[1:]).all()
    for bad in (y[:7], np.full(8, np.nan)):
        with pytest.raises(NeuroreconError, match="finite"):
            correlation_interval(x, bad)


def test_texts_say_when_the_sign_is_open():
    assert interval_text(Interval(0.7141, 0.683, 0.744)) == "0.714 [0.683, 0.744]"
    assert interval_text(Interval(0.7141, float("nan"), float("nan"))) == "0.714"
    assert difference_text(Interval(0.02, 0.01, 0.03)) == "+0.020 [0.010, 0.030]"
    assert difference_text(Interval(-0.02, -0.03, 0.01)).endswith("(no difference that these clips can show)")
    assert clip_count(A).startswith("3 clips; with so few") and clip_count({("m", "1"): 1.0}) == "1 clip"
