"""Confidence intervals: coverage, known cases, pairing, and what one clip gives."""

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.bootstrap import (
    bootstrap_difference,
    bootstrap_hierarchical,
    bootstrap_mean,
    bootstrap_ratio,
    summarise,
)


@pytest.fixture
def values():
    return np.random.default_rng(3).gamma(2, 1, 25)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_agrees_with_scipy(values, method):
    found = bootstrap_mean(values, seed=0, num_samples=20_000, method=method)
    expected = scipy_bootstrap(
        (values,), np.mean, n_resamples=20_000, method=method, rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    np.testing.assert_allclose(found[1:], expected, atol=0.02)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_covers_the_true_mean_as_often_as_it_says(method):
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(300):
        _, low, high = bootstrap_mean(rng.normal(1, 1, 40), seed=i, num_samples=500, level=0.9, method=method)
        hits += low <= 1 <= high
    assert 0.84 < hits / 300 < 0.95


def test_is_reproducible_and_depends_on_the_seed(values):
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_chunks_do_not_change_the_result(values, monkeypatch):
    whole = bootstrap_mean(values, seed=0, num_samples=999)
    monkeypatch.setattr("neurorecon.evaluation.bootstrap.CHUNK", 250)
    assert bootstrap_mean(values, seed=0, num_samples=999) == pytest.approx(whole)


def test_one_value_has_no_interval_and_equal_values_a_point():
    for found in (bootstrap_mean([0.4], seed=0), bootstrap_hierarchical({"a": [0.4]}, seed=0)):
        assert found.mean == 0.4 and np.isnan(found.low) and np.isnan(found.high)
    for method in ("percentile", "bca"):
        np.testing.assert_allclose(bootstrap_mean([0.4] * 5, seed=0, method=method), 0.4)


def test_pairing_removes_what_the_clips_share():
    rng = np.random.default_rng(1)
    clip = rng.normal(0, 10, 30)  # easy and hard clips
    a, b = clip + 1 + rng.normal(0, 0.1, 30), clip + rng.normal(0, 0.1, 30)
    mean, low, high = bootstrap_difference(a, b, seed=0)
    assert mean == pytest.approx(a.mean() - b.mean())
    assert low > 0.9 and high < 1.1
    ratio = bootstrap_ratio(np.exp(clip / 20) * 1.1, np.exp(clip / 20), seed=0, method="bca")
    np.testing.assert_allclose(ratio, 1.1)


def test_hierarchy_is_wider_when_animals_differ():
    rng = np.random.default_rng(2)
    animals = {str(i): level + rng.normal(0, 0.1, 20) for i, level in enumerate([0, 1, 2, 3.0])}
    nested = bootstrap_hierarchical(animals, seed=0)
    pooled = bootstrap_mean(np.concatenate(list(animals.values())), seed=0)
    assert nested.mean == pytest.approx(pooled.mean)
    assert nested.high - nested.low > 1.5 * (pooled.high - pooled.low)
    # animals count the same, whatever their number of clips
    unequal = {"a": [0.0] * 9, "b": [1.0]}
    assert bootstrap_hierarchical(unequal, seed=0).mean == 0.5
    one = {"a": animals["0"]}
    assert bootstrap_hierarchical(one, seed=5) == bootstrap_mean(animals["0"], seed=5)


def test_clips_are_drawn_anew_each_time_an_animal_is_drawn():
    # Two animals of two clips, values 0 and 1: the mean of 4 independent draws.
    animals = {"a": [0.0, 1.0], "b": [0.0, 1.0]}
    found = bootstrap_hierarchical(animals, seed=0, level=0.999)
    assert found.low == 0 and found.high == 1
    # P(0 or 1) = 1 / 8; were one draw used twice for an animal drawn twice, it would be 3 / 16
    assert bootstrap_hierarchical(animals, seed=0, level=0.85) == (0.5, 0.25, 0.75)


def test_summary_form():
    found = summarise({"a": [0.1, 0.2, 0.4]}, seed=0)
    assert found["mean"] == pytest.approx(0.7 / 3) and len(found["ci95"]) == 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bootstrap_mean([], seed=0), "values: expected at least one"),
        (lambda: bootstrap_mean([1, np.nan], seed=0), "expected finite"),
        (lambda: bootstrap_mean([1, 2], seed=0, level=1), "level"),
        (lambda: bootstrap_mean([1, 2], seed=0, method="t"), "method: expected"),
        (lambda: bootstrap_difference([1, 2], [1], seed=0), "b: expected one value for each"),
        (lambda: bootstrap_ratio([1, 2], [-1, 2], seed=0), "b: expected a mean clearly above 0"),
        (lambda: bootstrap_hierarchical({}, seed=0), "at least one animal"),
        (lambda: bootstrap_hierarchical({"x": []}, seed=0), "values[x]"),
    ],
)
def test_bad_input_gets_one_line(call, words):
    with pytest.raises(NeuroreconError) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)
