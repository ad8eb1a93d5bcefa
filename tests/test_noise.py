"""Measured response noise and the likelihood that knows of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import losses
from neurorecon.reconstruction.noise import ResponseNoise, fit_noise, simulate_responses

STEP, ORDER = 3, 2
DECAY = np.array([0.9, 0.3, 0.0, -0.4])
DISPERSION = np.array([0.5, 2.0, 1.0, 4.0])


def simulated(seed, num_frames=6000):
    """First-order autoregression with the variance in proportion to the mean, in each of STEP interleaved streams."""
    rng = np.random.default_rng(seed)
    mean = rng.uniform(1, 5, (num_frames, 4))
    residual = np.zeros((num_frames, 4))
    fresh = rng.normal(size=(num_frames, 4)) * np.sqrt(1 - DECAY**2)
    for t in range(num_frames):
        residual[t] = (DECAY * residual[t - STEP] if t >= STEP else 0) + fresh[t]
    return mean, mean + np.sqrt(DISPERSION * mean) * residual


@pytest.fixture(scope="module")
def noise():
    trials = [simulated(seed) for seed in range(3)]
    return fit_noise([p for p, _ in trials], [r for _, r in trials], frame_step=STEP, order=ORDER, floor=0.0)


def test_finds_dispersion_and_how_long_residuals_last(noise):
    np.testing.assert_allclose(noise.dispersion, DISPERSION, rtol=0.1)
    np.testing.assert_allclose(noise.predictors[1, 0], DECAY, atol=0.05)
    np.testing.assert_allclose(noise.predictors[2], [DECAY, 0 * DECAY], atol=0.06)
    np.testing.assert_allclose(noise.innovation_std[-1], np.sqrt(1 - DECAY**2), rtol=0.05)
    assert not noise.predictors[0].any() and not noise.predictors[1, 1].any()


def test_gradient_is_that_of_generalised_estimating_equations(noise):
    """Against J^T V^-1/2 R^-1 V^-1/2 (p - y) with dense matrices, in float64."""
    rng = np.random.default_rng(0)
    prediction, target = rng.uniform(0.5, 4, (2, 9, 4)), rng.gamma(1, 2, (2, 9, 4))
    noise = ResponseNoise(*(np.asarray(x, np.float64) for x in noise))
    loss = losses.autoregressive(noise)
    with jax.enable_x64(True):
        found = jax.grad(lambda p: loss(p, jnp.asarray(target)).sum())(jnp.asarray(prediction))
    for n in range(4):
        # The covariances that the fitted predictors belong to: Yule-Walker, solved for the correlation.
        first = noise.predictors[1, 0, n]
        a, b = noise.predictors[2, :, n]
        correlation = [1.0, first]
        for _ in range(7):
            correlation.append(a * correlation[-1] + b * correlation[-2])
        r = scipy.linalg.toeplitz(correlation) * noise.innovation_std[0, n] ** 2
        for w in range(2):
            variance = noise.dispersion[n] * (prediction[w, :, n] + noise.floor[n])
            residual = (prediction[w, :, n] - target[w, :, n]) / np.sqrt(variance)
            wanted = np.linalg.solve(r, residual) / np.sqrt(variance)
            np.testing.assert_allclose(found[w, :, n], wanted, rtol=1e-6, atol=1e-9)


def test_order_0_is_independent_frames():
    prediction, target = simulated(0)
    noise = fit_noise([prediction], [target], frame_step=1, order=0, floor=0.0)
    values = losses.autoregressive(noise)(prediction, target)
    scaled = (prediction - target) ** 2 / (noise.dispersion * prediction) / noise.innovation_std[0] ** 2
    np.testing.assert_allclose(values, 0.5 * scaled, rtol=1e-4)


def test_a_silent_neuron_takes_the_populations_dispersion_and_stays_finite():
    prediction, target = simulated(0)
    prediction[:, 1] = target[:, 1] = 0.0
    noise = fit_noise([prediction], [target], frame_step=STEP)
    assert all(np.isfinite(x).all() for x in noise)
    np.testing.assert_allclose(noise.dispersion[1], np.median(noise.dispersion[[0, 2, 3]]), rtol=1e-5)
    values = losses.autoregressive(noise)(jnp.zeros((5, 4)), jnp.full((5, 4), 1e4))
    assert np.isfinite(values).all()


def test_residuals_that_never_change_stay_finite():
    ones = np.ones((50, 2))
    noise = fit_noise([ones], [2 * ones], frame_step=1, order=3)
    assert all(np.isfinite(x).all() for x in noise) and (noise.innovation_std > 0).all()


@pytest.mark.parametrize(
    ("predictions", "responses"),
    [
        ([], []),
        ([np.ones((9, 2))], []),
        ([np.ones((9, 2))], [np.ones((9, 3))]),
        ([np.ones((6, 2))], [np.ones((6, 2))]),
        ([np.ones((9, 2))], [np.full((9, 2), np.nan)]),
        ([np.zeros((9, 2))], [np.zeros((9, 2))]),
    ],
)
def test_faults_are_one_line(predictions, responses):
    with pytest.raises(NeuroreconError) as error:
        fit_noise(predictions, responses, frame_step=STEP)
    assert "fit_noise" in str(error.value) and "\n" not in str(error.value)


def test_simulated_responses_have_the_statistics_that_they_were_drawn_from(noise):
    prediction = np.random.default_rng(1).uniform(1, 5, (1500, 4))
    drawn = simulate_responses(noise, prediction, frame_step=STEP, seed=0, num_samples=12)
    again = fit_noise([prediction] * 12, list(drawn), frame_step=STEP, order=ORDER, floor=0.0)
    np.testing.assert_allclose(again.dispersion, noise.dispersion, rtol=0.08)
    np.testing.assert_allclose(again.predictors, noise.predictors, atol=0.04)
    np.testing.assert_allclose(again.innovation_std, noise.innovation_std, rtol=0.05)
    # From the first frame on, not only once the process has settled.
    early = simulate_responses(noise, prediction[:2], frame_step=STEP, seed=0, num_samples=4000)
    wanted = noise.dispersion * prediction[:2] * noise.innovation_std[0] ** 2
    np.testing.assert_allclose(early.var(0), wanted, rtol=0.1)


def test_simulated_responses_follow_seed_and_scale(noise):
    prediction = np.full((7, 4), 2.0)
    once, twice, other, quiet = (
        simulate_responses(noise, prediction, frame_step=STEP, seed=seed, scale=scale)
        for seed, scale in ((3, 1.0), (3, 2.0), (4, 1.0), (3, 0.0))
    )
    np.testing.assert_allclose(twice - prediction, 2 * (once - prediction), rtol=1e-5, atol=1e-6)
    assert np.abs(once - other).max() > 0.1
    np.testing.assert_array_equal(quiet[0], prediction)


@pytest.mark.parametrize(
    "changes",
    [
        {"prediction": np.ones((5, 3))},
        {"prediction": np.full((5, 4), np.inf)},
        {"frame_step": 0},
        {"num_samples": 0},
        {"scale": -1.0},
        {"scale": np.nan},
    ],
)
def test_faults_of_simulated_responses_are_one_line(noise, changes):
    arguments = {"prediction": np.ones((5, 4)), "frame_step": STEP, "seed": 0} | changes
    with pytest.raises(NeuroreconError) as error:
        simulate_responses(noise, **arguments)
    assert "simulate_responses" in str(error.value) and "\n" not in str(error.value)
