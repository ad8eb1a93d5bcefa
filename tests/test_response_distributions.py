"""Response distributions fitted to held-out trials, and the losses that know them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import losses
from neurorecon.reconstruction.likelihoods import LIKELIHOODS, fit_likelihood
from neurorecon.reconstruction.noise import ResponseNoise
from neurorecon.reconstruction.response_distributions import (
    GammaWithZeros,
    NegativeBinomial,
    SharedGain,
    fit_gamma_with_zeros,
    fit_negative_binomial,
    fit_shared_gain,
    moderated,
)

NEURONS, FRAMES, TRIALS = 40, 240, 8
COUNTS = NegativeBinomial(np.array([0.5, 2.0, 1.0]), np.array([0.3, 1.0, 2.0]), np.array([0.1, 0.2, 0.1]))
ZEROS = GammaWithZeros(
    np.array([1.0, 3.0, 0.5]), np.array([0.6, 1.0, 0.3]), np.array([0.8, 2.0, 1.0]), np.full(3, 0.1), np.full(3, 0.01)
)
NOISE = ResponseNoise(
    np.array([0.5, 2.0, 1.0]),
    np.array([0.1, 0.2, 0.1]),
    np.array([[[0.0] * 3], [[0.6, 0.2, -0.3]]]),
    np.array([[1.0] * 3, [0.8, 0.98, 0.95]]),
)
GAIN = (np.array([1.0, 0.5, 1.5]), np.array(0.2), np.array(0.9))


def means(seed):
    return np.random.default_rng(seed).gamma(2.0, 1.0, (TRIALS, FRAMES, NEURONS))


@pytest.mark.parametrize(
    "loss",
    [losses.negative_binomial(COUNTS), losses.gamma_with_zeros(ZEROS)],
    ids=["negative_binomial", "gamma_with_zeros"],
)
def test_gradients_are_finite_differences_and_finite_at_extremes(loss):
    with jax.enable_x64(True):
        values = np.array([0.0, 1e-6, 1e-3, 0.3, 2.0, 1e2, 1e4])
        p, y = (np.repeat(x.reshape(-1, 1), 3, 1) for x in np.meshgrid(values, values))
        gradient = np.asarray(jax.grad(lambda x: loss(x, jnp.asarray(y)).sum())(jnp.asarray(p)))
        assert np.isfinite(gradient).all() and np.isfinite(loss(p, y)).all()
        step = 1e-5 * (p + 0.05)
        difference = (loss(p + step, y) - loss(p - step, y)) / (2 * step)
        # What is lost by subtracting two large values.
        np.testing.assert_allclose(gradient, difference, rtol=1e-5, atol=1e-5 * (1 + np.abs(loss(p, y)).max() / 1e5))
    single = jax.grad(lambda x: loss(x, jnp.float32(y)).sum())(jnp.float32(p))
    assert np.isfinite(single).all()


def test_negative_binomial_is_one_over_the_variance_and_a_distribution_of_counts():
    loss = losses.negative_binomial(COUNTS)
    p, y = np.full((1, 3), 1.7), np.array([[0.0, 3.0, 9.0]])
    m = p + COUNTS.floor
    with jax.enable_x64(True):
        gradient = jax.grad(lambda x: loss(x, y).sum())(jnp.asarray(p))
        np.testing.assert_allclose(gradient, (p - y) / (COUNTS.dispersion * m + COUNTS.curvature * m**2), rtol=1e-10)
        unit = NegativeBinomial(np.ones(3), COUNTS.curvature, np.zeros(3))
        size = 1 / COUNTS.curvature
        a, b = np.full((1, 3), 0.4), np.full((1, 3), 2.5)
        found = losses.negative_binomial(unit)(a, y) - losses.negative_binomial(unit)(b, y)
        wanted = [scipy.stats.nbinom.logpmf(y, size, size / (size + x)) for x in (b, a)]
        np.testing.assert_allclose(found, wanted[0] - wanted[1], rtol=1e-9)


def test_gamma_with_zeros_is_a_distribution_whose_mean_is_the_prediction():
    plain = ZEROS._replace(floor=np.zeros(3), threshold=np.zeros(3))
    loss = losses.gamma_with_zeros(plain)
    y = np.array([[0.0, 0.0, 0.0], [0.4, 2.0, 6.0]])
    with jax.enable_x64(True):
        logs, both = [], []
        for mean in (0.3, 4.0):
            p = np.full(y.shape, mean)
            rate = (mean / plain.scale) ** plain.exponent
            above = mean / (1 - np.exp(-rate))
            density = scipy.stats.gamma.logpdf(y[1], plain.shape, scale=above / plain.shape)
            logs.append(np.stack([-rate, np.log1p(-np.exp(-rate)) + density]))
            assert np.allclose((1 - np.exp(-rate)) * above, mean)
            found = -np.asarray(loss(p, y))
            np.testing.assert_allclose(found[0], logs[-1][0], rtol=1e-9)
            both.append(found)
        # Constants of the responses alone cancel between two predictions.
        np.testing.assert_allclose(both[1][1] - both[0][1], logs[1][1] - logs[0][1], rtol=1e-9)


@pytest.mark.parametrize("counted", [slice(None), slice(0, 2)])
def test_gain_is_marginalised_exactly(counted):
    """Against J^T (D + L K L^T)^-1 (p - y) with dense matrices; every frequency of the gain allowed."""
    frames = 7
    rng = np.random.default_rng(0)
    p, y = rng.uniform(0.5, 4, (frames, 3)), rng.gamma(1, 2, (frames, 3))
    weights = np.zeros((frames, 3))
    weights[:, counted] = 1
    loss = losses.autoregressive_gain(NOISE, SharedGain(*GAIN, period=2))
    with jax.enable_x64(True):

        def total(x, y=y):
            return losses.combine({"a": (1.0, loss)}, x, jnp.asarray(y), jnp.asarray(weights), mean=False)[0]

        found = np.asarray(jax.grad(total)(jnp.asarray(p)))
        value = float(total(jnp.asarray(p)))
        garbage = np.asarray(jax.grad(total)(jnp.where(weights > 0, p, jnp.inf)))
    np.testing.assert_array_equal(found, garbage)
    assert not found[weights == 0].any()
    neurons = np.arange(3)[counted]
    covariance = np.zeros((len(neurons), frames, len(neurons), frames))
    lags = np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))
    gain = 0.2 * 0.9**lags
    for i, n in enumerate(neurons):
        std = np.sqrt(NOISE.dispersion[n] * (p[:, n] + NOISE.floor[n]))
        unmix = np.eye(frames)
        scale = np.append(NOISE.innovation_std[0, n], np.full(frames - 1, NOISE.innovation_std[1, n]))
        unmix -= np.diag(np.full(frames - 1, NOISE.predictors[1, 0, n]), -1)
        unmix = unmix / scale[:, None] / std
        covariance[i, :, i] += np.linalg.inv(unmix.T @ unmix)
        for j, m in enumerate(neurons):
            covariance[i, :, j] += np.outer(p[:, n] * GAIN[0][n], p[:, m] * GAIN[0][m]) * gain
    size = frames * len(neurons)
    residual = (p - y)[:, neurons].T.reshape(-1)
    wanted = np.linalg.solve(covariance.reshape(size, size), residual)
    np.testing.assert_allclose(found[:, neurons], wanted.reshape(-1, frames).T, rtol=1e-7, atol=1e-10)
    assert value == pytest.approx(0.5 * residual @ wanted, rel=1e-9)


def test_a_common_gain_moves_the_movie_less_than_the_same_residual_in_single_neurons():
    many = 30
    noise = ResponseNoise(np.ones(many), np.full(many, 0.1), np.zeros((1, 0, many)), np.ones((1, many)))
    p = jnp.full((40, many), 2.0)
    signs = jnp.where(jnp.arange(many) % 2, 1.0, -1.0)
    gain = losses.autoregressive_gain(noise, SharedGain(np.ones(many), np.float32(0.3), np.float32(0.98), 20))
    plain = losses.autoregressive(noise)

    def pull(loss, target):
        return float(jnp.abs(jax.grad(lambda x: loss(x, target).sum())(p)).sum())

    assert pull(gain, 1.4 * p) < 0.3 * pull(plain, 1.4 * p)
    assert pull(gain, p + 0.8 * signs) == pytest.approx(pull(plain, p + 0.8 * signs), rel=1e-4)
    quick = p * (1 + 0.4 * jnp.where(jnp.arange(40) % 2, 1.0, -1.0)[:, None])  # faster than a gain may be
    assert pull(gain, quick) > 0.95 * pull(plain, quick)


def test_negative_binomial_finds_what_responses_were_drawn_from():
    rng = np.random.default_rng(1)
    dispersion = np.exp(rng.normal(0, 0.5, NEURONS))
    p = means(0)
    shape = 1 / 0.8
    y = dispersion * rng.poisson(p / dispersion * rng.gamma(shape, 1 / shape, p.shape))
    found = fit_negative_binomial(list(p), list(y), floor=0.01)
    assert np.median(found.curvature) == pytest.approx(0.8, rel=0.25)
    assert np.corrcoef(np.log(found.dispersion), np.log(dispersion))[0, 1] > 0.8


def test_gamma_with_zeros_finds_what_responses_were_drawn_from():
    rng = np.random.default_rng(2)
    p = means(1)
    scale = np.exp(rng.normal(0.7, 0.5, NEURONS))
    some = 1 - np.exp(-((p / scale) ** 0.6))
    y = (rng.random(p.shape) < some) * rng.gamma(1.5, p / some / 1.5)
    found = fit_gamma_with_zeros(list(p), list(y), floor=0.01)
    assert found.exponent[0] == pytest.approx(0.6)
    assert np.corrcoef(np.log(found.scale), np.log(scale))[0, 1] > 0.9
    assert np.median(found.shape) == pytest.approx(1.5, rel=0.15)


def test_shared_gain_is_found_and_private_noise_is_none():
    rng = np.random.default_rng(3)
    p = means(2)[:, :, :NEURONS]
    course = np.zeros((TRIALS, FRAMES))
    keep = np.exp(-1 / 300)
    course[:, 0] = rng.normal(0, 0.4, TRIALS)
    for t in range(1, FRAMES):
        course[:, t] = keep * course[:, t - 1] + 0.4 * np.sqrt(1 - keep**2) * rng.normal(size=TRIALS)
    private = p + np.sqrt(p) * rng.normal(size=p.shape)
    _, none = fit_shared_gain(list(p), list(private), frame_step=3)
    noise, found = fit_shared_gain(list(p), list(private + p * course[:, :, None]), frame_step=3)
    assert none.variance < 0.01 < 0.04 < found.variance < 0.5
    assert found.decay > 0.9 and found.loading.std() < 0.4
    np.testing.assert_allclose(np.median(noise.dispersion), 1.0, rtol=0.3)


def test_moderation_keeps_neurons_apart_where_trials_agree_and_joins_them_where_they_do_not():
    rng = np.random.default_rng(4)
    own = rng.normal(0, 1, 200)
    usable = np.ones(200, bool)
    precise = own + 0.01 * rng.normal(size=(8, 1, 200))
    np.testing.assert_allclose(moderated(lambda s: s[0] / 8, precise, usable)[:5], own[:5], atol=0.1)
    noisy = 20 * rng.normal(size=(8, 1, 200))
    raw = noisy[:, 0].mean(0)

    def average(total):
        return total[0] / 8

    assert moderated(average, noisy, usable).std() < 0.5 * raw.std()


@pytest.mark.parametrize("fit", [fit_negative_binomial, fit_gamma_with_zeros])
@pytest.mark.parametrize(
    ("predictions", "responses"),
    [([], []), ([np.ones((9, 2))], [np.ones((9, 3))]), ([np.ones((9, 2))], [np.full((9, 2), np.nan)])],
)
def test_faults_are_one_line(fit, predictions, responses):
    with pytest.raises(NeuroreconError) as error:
        fit(predictions, responses)
    assert fit.__name__ in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood_by_name_survives_silent_neurons_and_serves_another_animal(name):
    rng = np.random.default_rng(5)
    traced = 0

    @jax.jit
    def gradient(loss, p, y):
        nonlocal traced
        traced += 1
        return jax.grad(lambda x: loss(x, y).sum())(p)

    for _ in range(2):
        p = rng.gamma(2.0, 1.0, (3, 90, 5))
        y = rng.gamma(1.0, 1.0, p.shape) * p * (rng.random(p.shape) < 0.6)
        p[:, :, 2] = y[:, :, 2] = 0.0
        loss = fit_likelihood(name, list(p), list(y), frame_step=2)
        if name == "poisson":
            continue
        pull = gradient(loss, jnp.float32(p[0]), jnp.float32(y[0]))
        assert np.isfinite(pull).all() and np.abs(pull[:, [0, 1, 3, 4]]).max() > 0
        assert np.isfinite(gradient(loss, jnp.float32([[0.0] * 5] * 90), jnp.float32([[1e4] * 5] * 90))).all()
    assert traced <= 1
    with pytest.raises(NeuroreconError, match="likelihood"):
        fit_likelihood("laplace", list(p), list(y), frame_step=2)
