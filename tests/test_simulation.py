"""The simulated cortex: reproducible, causal, local, tuned like V1, noisy as the recordings are."""

import dataclasses
import itertools

import numpy as np
import pytest

from neurorecon.errors import NeuroreconError
from neurorecon.recordings.trial import Trial
from neurorecon.simulation import calcium
from neurorecon.simulation.animal import (
    make_animal,
    plan_trials,
    simulate_animal,
    simulate_planned,
    simulate_trial,
)
from neurorecon.simulation.behaviour import simulate_behaviour
from neurorecon.simulation.cortex import expected_rate, make_population, normalised_drive
from neurorecon.simulation.filters import Patch, temporal_pairs
from neurorecon.stimuli.gratings import grating
from neurorecon.stimuli.natural import natural_movie

RESTING = np.array([1.0, 0.0, 0.0, 0.0], np.float32)


@pytest.fixture(scope="module")
def animal():
    return make_animal(0, num_neurons=120)


@pytest.fixture(scope="module")
def trials(animal):
    return [simulate_planned(animal, planned) for planned in plan_trials({"train": 8})]


def zscore(x):
    return (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-8)


def resting(num_frames):
    return np.tile(RESTING, (num_frames, 1))


# Reproducible


def test_trials_are_reproducible_alone_and_in_order():
    sizes = {"num_neurons": 20, "height": 18, "width": 24}
    plan = {"train": 2, "oracle": 1}
    run = list(simulate_animal(3, num_clips=plan, num_frames=30, **sizes))
    assert [trial.tier for trial, _ in run] == ["train", "train", "oracle"]
    assert [trial.id for trial, _ in run] == ["0", "1", "2"]
    ((later, expected),) = simulate_animal(3, num_clips=plan, num_frames=30, skip=2, **sizes)
    for name in ("stimulus", "responses", "behaviour"):
        np.testing.assert_array_equal(getattr(later, name), getattr(run[2][0], name))
    np.testing.assert_array_equal(expected, run[2][1])
    stimuli = [trial.stimulus for trial, _ in run]
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(stimuli, 2))
    (other, _), *_ = simulate_animal(4, num_clips=plan, num_frames=30, **sizes)
    assert not np.array_equal(other.stimulus, run[0][0].stimulus)


def test_repeats_show_one_movie_with_new_noise():
    run = simulate_animal(
        0,
        num_clips={"final_test_main": 1},
        num_repeats={"final_test_main": 2},
        num_neurons=20,
        num_frames=40,
        height=18,
        width=32,
    )
    (first, _), (second, _) = run
    np.testing.assert_array_equal(first.stimulus, second.stimulus)
    assert not np.array_equal(first.responses, second.responses)
    assert not np.array_equal(first.behaviour, second.behaviour)


def test_trial_has_the_shapes_of_a_recording(trials):
    trial, expected = trials[0]
    assert isinstance(trial, Trial)
    assert trial.stimulus.shape == (300, 36, 64)
    assert trial.responses.shape == expected.shape == (300, 120)
    assert trial.behaviour.shape == (300, 4)
    for array in (trial.stimulus, trial.responses, trial.behaviour, expected):
        assert array.dtype == np.float32 and np.isfinite(array).all()


# What the population sees


def test_rates_are_causal(animal):
    movie = natural_movie(1, num_frames=60)
    changed = movie.copy()
    changed[40:] = 255 - changed[40:]
    first, second = (expected_rate(animal.population, m, resting(60)) for m in (movie, changed))
    np.testing.assert_allclose(first[:40], second[:40], rtol=1e-4, atol=1e-5)
    assert np.abs(first[43:] - second[43:]).max() > 1
    # Responses look ahead by interpolation, one scan interval at most.
    first, second = (calcium.expected_responses(animal.imaging, rate) for rate in (first, second))
    np.testing.assert_allclose(first[:36], second[:36], rtol=1e-3, atol=1e-3)


def test_pixels_outside_the_patch_have_no_effect(animal):
    movie = natural_movie(1, num_frames=20)
    outside = ~animal.population.patch.mask(36, 64)
    assert 0.4 < outside.mean() < 0.5
    changed = movie.copy()
    changed[:, outside] = 255 - changed[:, outside]
    first, second = (expected_rate(animal.population, m, resting(20)) for m in (movie, changed))
    np.testing.assert_array_equal(first, second)


def test_every_part_of_the_patch_has_an_effect():
    population = make_population(0, num_neurons=300, height=18, width=32)
    coverage = (population.spatial**2).sum(axis=(0, 2))
    assert (coverage > 0).all()
    assert np.percentile(coverage, 5) > 0.1 * coverage.mean()


def test_a_patch_can_be_anywhere():
    patch = Patch(centre_y=8, centre_x=20, radius_y=6, radius_x=9)
    population = make_population(0, num_neurons=30, height=20, width=32, patch=patch)
    assert np.abs(population.centre[:, 0] - 8).max() <= 6
    assert np.abs(population.centre[:, 1] - 20).max() <= 9
    with pytest.raises(NeuroreconError, match="patch"):
        make_population(0, num_neurons=30, patch=Patch(100, 100, 5, 5))


@pytest.mark.parametrize("value", [0.0, 127.5, 255.0])
def test_extreme_movies_stay_finite(animal, value):
    shown = simulate_trial(animal, np.full((40, 36, 64), value, np.float32), seed=0)
    assert np.isfinite(shown.responses).all() and np.isfinite(shown.expected).all()
    assert shown.responses.min() >= 0
    flicker = np.where(np.arange(40)[:, None, None] % 2, 255.0, 0.0) * np.ones((1, 36, 64))
    assert np.isfinite(simulate_trial(animal, flicker, seed=0).responses).all()


# Tuning


@pytest.fixture(scope="module")
def tuning(animal):
    """Mean and modulation of the normalised drive, (direction, neuron): 0.04 cycles/degree, 2 Hz."""
    directions = np.arange(8) * np.pi / 4
    drives = []
    for direction in directions:
        movie = grating(spatial_frequency=0.04, temporal_frequency=2.0, direction=direction, num_frames=45)
        drives.append(normalised_drive(animal.population, movie)[15:])
    drives = np.stack(drives)
    phase = np.exp(2j * np.pi * 2.0 * np.arange(15, 45) / 30)
    f1 = 2 * np.abs((drives * phase[:, None]).mean(axis=1))
    return directions, drives.mean(axis=1), f1


def test_neurons_prefer_their_orientation(animal, tuning):
    directions, mean, _ = tuning
    vector = (mean * np.exp(2j * directions)[:, None]).sum(axis=0) / mean.sum(axis=0)
    gabor = animal.population.frequency > 0
    assert np.median(np.abs(vector[gabor])) > 0.35
    difference = np.angle(vector * np.exp(-2j * animal.population.orientation))[gabor] / 2
    assert np.median(np.abs(difference)) < np.radians(15)


def test_some_neurons_prefer_one_direction(animal, tuning):
    directions, mean, _ = tuning
    best = mean.argmax(axis=0)
    preferred, opposite = mean.max(axis=0), mean[(best + 4) % 8, np.arange(mean.shape[1])]
    selectivity = (preferred - opposite) / (preferred + opposite)
    gabor = animal.population.frequency > 0
    assert 0.1 < np.median(selectivity[gabor]) < 0.6
    assert (selectivity[gabor] > 0.4).mean() > 0.1
    strong = gabor & (np.abs(animal.population.direction) > 0.6)
    heading = np.where(animal.population.direction > 0, 1, -1)
    toward = np.cos(directions[best] - animal.population.orientation) * heading
    assert (toward[strong] > 0).mean() > 0.9  # above 0: along it


def test_about_half_the_neurons_are_complex(tuning, animal):
    _, mean, f1 = tuning
    best = mean.argmax(axis=0)
    neuron = np.arange(mean.shape[1])
    modulation = f1[best, neuron] / mean[best, neuron]
    assert 0.3 < (modulation > 1).mean() < 0.65
    assert np.median(modulation[animal.population.complexity == 0]) > 1
    assert np.median(modulation[animal.population.complexity == 1]) < 0.5


def test_contrast_response_saturates(animal):
    def peak(contrast):
        movie = grating(spatial_frequency=0.04, temporal_frequency=2.0, contrast=contrast, num_frames=30)
        return normalised_drive(animal.population, movie)[15:].mean()

    low, middle, high = peak(0.1), peak(0.4), peak(1.0)
    assert low < 0.5 * middle and middle < high < 1.6 * middle


def test_surround_suppresses(animal):
    movie = grating(spatial_frequency=0.04, temporal_frequency=2.0, num_frames=30, contrast=0.6)
    y, x = np.mgrid[:36, :64] + 0.5
    near = np.hypot(y - 18, x - 32) < 7
    small = np.where(near, movie, 127.5)
    central = np.hypot(*(animal.population.centre - (18, 32)).T) < 2.5
    central &= animal.population.sigma < 2.5
    full, alone = (normalised_drive(animal.population, m)[15:, central].mean(axis=0) for m in (movie, small))
    assert central.sum() >= 2 and alone.sum() > full.sum()


def test_temporal_filters():
    fast, slow = temporal_pairs(np.array([0.02]), np.array([1.0]), frame_rate=1000.0, seconds=0.5)
    assert 40 < fast.argmax() < 80 < slow.argmax() < 160  # milliseconds
    assert fast.min() < -0.2 * fast.max()  # biphasic
    np.testing.assert_allclose(np.linalg.norm(fast, axis=0), 1.0, rtol=1e-5)


# Behaviour


def test_running_changes_the_gain(animal):
    movie = natural_movie(2, num_frames=60)
    running = resting(60)
    running[:, 1] = 20.0
    still, moving = (expected_rate(animal.population, movie, b).mean(axis=0) for b in (resting(60), running))
    ratio = moving / still
    assert 1.3 < np.median(ratio) < 2.2
    assert 0.02 < (ratio < 1).mean() < 0.3  # some are suppressed


def test_behaviour_is_autocorrelated_and_coupled():
    traces = np.stack([simulate_behaviour(np.random.default_rng(k), 300, 30.0) for k in range(60)])
    dilation, speed = traces[..., 0], traces[..., 1]
    assert 0.2 < (speed > 3).mean() < 0.5 and speed.min() >= 0
    assert np.corrcoef(dilation.ravel(), speed.ravel())[0, 1] > 0.3
    for k in range(4):
        assert np.corrcoef(traces[:, 1:, k].ravel(), traces[:, :-1, k].ravel())[0, 1] > 0.95
    assert 0.9 < dilation.mean() < 1.1 and dilation.min() > 0


# Noise


def test_expected_and_single_trials_correlate_as_in_the_recordings(trials):
    responses = np.concatenate([trial.responses for trial, _ in trials])
    expected = np.concatenate([mean for _, mean in trials])
    assert 0.39 < (zscore(responses) * zscore(expected)).mean() < 0.51
    assert responses.mean() == pytest.approx(expected.mean(), rel=0.1)


def test_responses_are_sparse_and_heavy_tailed(trials):
    responses = np.concatenate([trial.responses for trial, _ in trials])
    spread = responses.std(axis=0)
    assert 1 < np.median(spread) < 10
    assert 0.3 < (responses < 0.1 * spread).mean() < 0.7
    assert np.median((zscore(responses) ** 4).mean(axis=0)) > 10  # 3 for a Gaussian


def test_responses_are_imaged_at_8_hz(trials):
    # Linear interpolation between scans 3 or 4 frames apart: most second differences vanish.
    trace = trials[0][0].responses
    bends = np.abs(np.diff(trace, 2, axis=0)) > 1e-4 * trace.std(axis=0)
    assert 0.1 < bends.mean() < 0.3


def test_expected_is_the_mean_over_noise():
    animal = make_animal(1, num_neurons=15, height=18, width=24)
    movie = natural_movie(5, num_frames=45, height=18, width=24)
    rate = expected_rate(animal.population, movie, resting(45))
    rng = np.random.default_rng(0)
    for noise_level in (0.3, 1.0):
        expected = calcium.expected_responses(animal.imaging, rate, noise_level=noise_level)
        draws = np.stack(
            [calcium.sample_responses(animal.imaging, rate, rng, noise_level=noise_level) for _ in range(1000)]
        )
        error = draws.std(axis=0) / np.sqrt(len(draws))
        z = (draws.mean(axis=0) - expected) / (error + 1e-6)
        assert np.sqrt(np.mean(z**2)) < 1.3
        assert draws.mean() == pytest.approx(expected.mean(), rel=0.02)


def test_noise_level_scales_the_noise(animal):
    movie = np.concatenate([natural_movie(k, num_frames=60) for k in range(5)])
    agreement = []
    for noise_level in (0.0, 0.25, 1.0, 4.0):
        shown = simulate_trial(animal, movie, seed=1, noise_level=noise_level)
        agreement.append((zscore(shown.responses) * zscore(shown.expected)).mean())
    assert agreement[0] == pytest.approx(1.0, abs=1e-3)
    assert all(more > less + 0.05 for more, less in itertools.pairwise(agreement))


def test_shared_gain_makes_neurons_fluctuate_together(animal):
    rate = np.full((60, 120), 20.0, np.float32)
    rng = np.random.default_rng(0)

    def correlation(imaging):
        repeats = [calcium.sample_responses(imaging, rate, rng).mean(axis=0) for _ in range(40)]
        totals = zscore(np.stack(repeats))
        return (totals.T @ totals / len(totals))[np.triu_indices(120, 1)].mean()

    alone = dataclasses.replace(animal.imaging, shared_loading=0 * animal.imaging.shared_loading)
    assert correlation(animal.imaging) > 0.2
    assert abs(correlation(alone)) < 0.05


# Wrong input


def test_wrong_input_is_refused(animal):
    movie = natural_movie(0, num_frames=5)
    with pytest.raises(NeuroreconError, match="movie"):
        simulate_trial(animal, movie[:, :10], seed=0)
    with pytest.raises(NeuroreconError, match="behaviour"):
        simulate_trial(animal, movie, seed=0, behaviour=np.zeros((4, 4)))
    with pytest.raises(NeuroreconError, match="noise_level"):
        simulate_trial(animal, movie, seed=0, noise_level=-1)
    with pytest.raises(NeuroreconError, match="tier"):
        plan_trials({"trian": 3})
    with pytest.raises(NeuroreconError, match="repeats"):
        plan_trials({"train": 3}, {"train": 0})
    with pytest.raises(NeuroreconError, match="num_neurons"):
        make_population(0, num_neurons=0)
