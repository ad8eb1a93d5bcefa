"""The score of contrast: the derivative that it claims to be, without what neurons share of slow gain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neurorecon.encoders import predict_ensemble
from neurorecon.encoders.canvas import make_inputs
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction.contrast_score import movie_gradient, weighted_residuals
from neurorecon.reconstruction.noise import ResponseNoise, fit_noise
from tests.toy_encoders import NUM_FRAMES, NUM_NEURONS, SCREEN, toy, toy_clips

STEP = 2  # the factorized toy looks at every second frame


def noise(seed=0, frame_step=STEP):
    rng = np.random.default_rng(seed)
    means = [rng.uniform(0.5, 2, (40, NUM_NEURONS)) for _ in range(3)]
    return fit_noise(means, [rng.gamma(2.0, m / 2) for m in means], frame_step=frame_step, order=2)


def log_likelihood(noise: ResponseNoise, fixed, predicted, responses, frame_step):
    """By its definition, neuron by neuron and frame by frame; the variance is that of the `fixed` prediction."""
    standard = (responses - predicted) / np.sqrt(noise.dispersion * (fixed + noise.floor))
    total, order = 0.0, noise.predictors.shape[1]
    for t in range(len(predicted)):
        known = min(t // frame_step, order)
        news = standard[t].copy()
        for lag in range(1, known + 1):
            news -= noise.predictors[known, lag - 1] * standard[t - lag * frame_step]
        total -= 0.5 * np.sum((news / noise.innovation_std[known]) ** 2)
    return total


def test_score_is_the_derivative_of_the_log_likelihood_by_local_gain():
    with jax.enable_x64(True):
        encoders = [toy("factorized", seed, np.float64) for seed in (0, 1)]
        # Without a warm-up every response counts.
        encoders = [(encoder.clone(warmup_frames=0), variables) for encoder, variables in encoders]
        responses, behaviour = (x[0].astype(np.float64) for x in toy_clips())
        rng = np.random.default_rng(3)
        movie = rng.uniform(0, 255, (NUM_FRAMES, *SCREEN))
        contrast, window = movie - movie.mean(), rng.uniform(0, 1, movie.shape)
        fitted = ResponseNoise(*(np.asarray(x, np.float64) for x in noise()))
        predicted = predict_ensemble(encoders, movie, behaviour)
        weighted = weighted_residuals(fitted, predicted, responses[None], frame_step=STEP)
        gradient = movie_gradient(encoders, movie, behaviour, weighted)[0]

        def at(gain):
            changed = predict_ensemble(encoders, movie + gain * window * contrast, behaviour)
            return log_likelihood(fitted, predicted, changed, responses, STEP)

        slope = (at(1e-5) - at(-1e-5)) / 2e-5
    assert abs(slope) > 1e-3
    assert np.sum(window * contrast * gradient) == pytest.approx(slope, rel=1e-6)


def test_encoders_of_a_fixed_window_see_every_frame_once():
    with jax.enable_x64(True):
        encoder, variables = toy("dwiseneuro", 0, np.float64)
        span = encoder.window_frames * encoder.frame_step
        rng = np.random.default_rng(0)
        movie = rng.uniform(0, 255, (2 * span, *SCREEN))
        behaviour, weighted = rng.normal(size=(2 * span, 4)), rng.normal(size=(3, 2 * span, NUM_NEURONS))

        def total(movie, weighted):
            value = 0.0
            for start in range(0, 2 * span, span):
                for stream in range(encoder.frame_step):
                    at = slice(start + stream, start + span, encoder.frame_step)
                    inputs = make_inputs(movie[None, at], behaviour[None, at], tuple(encoder.canvas), encoder.padding)
                    value += jnp.sum(encoder.apply(variables, inputs, readout=0)[0] * weighted[at])
            return value

        gradient = movie_gradient([(encoder, variables)], movie, behaviour, weighted)
        expected = jax.jit(jax.vmap(jax.grad(total), (None, 0)))(movie, weighted)
        np.testing.assert_allclose(gradient, expected, rtol=1e-8, atol=1e-12)


def test_a_slow_gain_that_neurons_share_has_no_weight():
    rng = np.random.default_rng(1)
    predicted = rng.uniform(0.5, 2, (60, NUM_NEURONS)).astype(np.float32)
    shared = predicted * (1 + 0.5 * np.cos(np.pi * (np.arange(60) + 0.5) / 60))[:, None].astype(np.float32)
    own = predicted.copy()
    own[:, 0] *= 1.5
    before, after = (
        weighted_residuals(noise(), predicted, np.stack([shared, own]), frame_step=STEP, shortest_gain=period)
        for period in (0, 30)
    )
    assert np.abs(after[0]).max() < 1e-3 * np.abs(before[0]).max()
    assert np.linalg.norm(after[1]) > 0.7 * np.linalg.norm(before[1])


def test_faults_are_one_line():
    encoders, fitted = [toy("factorized")], noise()
    (responses, behaviour), movie = toy_clips(), np.zeros((NUM_FRAMES, *SCREEN), np.float32)
    for call in (
        lambda: weighted_residuals(fitted, responses[0][:, 1:], responses, frame_step=STEP),
        lambda: weighted_residuals(fitted, responses[0], responses[0], frame_step=STEP),
        lambda: weighted_residuals(fitted, np.full_like(responses[0], np.nan), responses, frame_step=STEP),
        lambda: weighted_residuals(fitted, responses[0], responses, frame_step=0),
        lambda: weighted_residuals(fitted, responses[0], responses, frame_step=STEP, shortest_gain=-1),
        lambda: movie_gradient([], movie, behaviour[0], responses),
        lambda: movie_gradient(encoders, movie[:, 1:], behaviour[0], responses),
        lambda: movie_gradient(encoders, movie, behaviour[0], responses[:, 1:]),
        lambda: movie_gradient(encoders, movie + np.inf, behaviour[0], responses),
        lambda: movie_gradient(encoders, movie, behaviour[0], responses, readout=1),
    ):
        with pytest.raises(NeuroreconError) as error:
            call()
        assert "\n" not in str(error.value)
