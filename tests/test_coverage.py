"""Coverage of intervals, and the factor that sets it right."""

import numpy as np
import pytest

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.coverage import fit_spread_scale, interval_coverage

MASK = np.zeros((9, 11), bool)
MASK[2:8, 3:9] = True


def clips(num_clips, seed, factor=1.0, num_frames=200):
    """Errors of standard deviation `factor` times the spread that is claimed; outside the mask anything."""
    rng = np.random.default_rng(seed)
    truths, movies, stds = [], [], []
    for _ in range(num_clips):
        std = rng.uniform(2, 30, (num_frames, 9, 11))
        truth = rng.uniform(0, 255, std.shape)
        movie = truth + factor * std * rng.normal(size=std.shape)
        movie[:, ~MASK] = 1e4
        truths, movies, stds = [*truths, truth], [*movies, movie], [*stds, std]
    return truths, movies, stds


def test_honest_spread_covers_what_it_says():
    truths, movies, stds = clips(1, 0)
    found = interval_coverage(truths[0], movies[0], stds[0], MASK, levels=(0.5, 0.9, 0.99))
    for level, share in found.items():
        assert share == pytest.approx(level, abs=0.015)


def test_too_small_a_spread_covers_too_little():
    truths, movies, stds = clips(1, 0, factor=2.0)
    found = interval_coverage(truths[0], movies[0], stds[0], MASK)
    assert found[0.9] == pytest.approx(0.589, abs=0.015)  # P(|x| < 1.645 / 2)
    assert interval_coverage(truths[0], movies[0], stds[0], MASK, scale=2.0)[0.9] == pytest.approx(0.9, abs=0.01)


def test_a_factor_fitted_on_some_clips_covers_others():
    scale = fit_spread_scale(*clips(3, 1, factor=1.7), MASK)
    assert scale == pytest.approx(1.7, rel=0.02)
    truths, movies, stds = clips(1, 2, factor=1.7)
    assert interval_coverage(truths[0], movies[0], stds[0], MASK, scale=scale)[0.9] == pytest.approx(0.9, abs=0.01)


def test_errors_with_heavy_tails_are_covered_at_the_level_fitted():
    rng = np.random.default_rng(0)
    truth, std = np.zeros((300, 9, 11)), np.ones((300, 9, 11))
    movie = rng.standard_t(3, truth.shape)
    for level in (0.5, 0.9):
        scale = fit_spread_scale([truth], [movie], [std], MASK, level=level)
        assert interval_coverage(truth, movie, std, MASK, scale=scale)[level if level == 0.5 else 0.9] == pytest.approx(
            level, abs=0.002
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"movie": np.zeros((4, 9, 10))},
        {"std": np.full((4, 9, 11), np.nan)},
        {"std": np.full((4, 9, 11), -1.0)},
        {"mask": np.zeros((9, 11), bool)},
        {"mask": np.ones((9, 11))},
        {"levels": (1.0,)},
        {"scale": 0.0},
    ],
)
def test_faults_are_one_line(changes):
    arguments = {"truth": np.zeros((4, 9, 11)), "movie": np.ones((4, 9, 11)), "std": np.ones((4, 9, 11)), "mask": MASK}
    with pytest.raises(NeuroreconError) as error:
        interval_coverage(**arguments | changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_faults_of_the_fit_are_one_line(count):
    one = [np.zeros((4, 9, 11))]
    stds = [[], one, [np.ones((4, 9, 11))]][count]
    with pytest.raises(NeuroreconError) as error:  # no spread, a spread of zero, no error
        fit_spread_scale(one, one, stds, MASK)
    assert "\n" not in str(error.value)
