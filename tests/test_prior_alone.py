"""The prior alone: a movie that knows nothing of the responses, with the prior's mean and spectrum."""

import functools

import jax
import numpy as np
import pytest
import scipy.fft
from scipy.ndimage import gaussian_filter

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation import movie_correlation
from neurorecon.reconstruction import (
    default_recipe,
    posterior_draws,
    prior_alone,
    priors,
    published_recipe,
    reconstruct,
)
from neurorecon.reconstruction.noise import fit_noise
from neurorecon.reconstruction.parametrisations import cosine_transform
from tests.toy_encoders import NUM_FRAMES, NUM_NEURONS, SCREEN, toy, toy_clips

SHAPE = (NUM_FRAMES, *SCREEN)
MEAN = 110.0


def power(shape):
    return priors.natural_power(shape, std=8.0)  # a draw stays within 0..255


def recipe(**changes):
    return default_recipe(**{"power": power, "prior_mean": MEAN} | changes)


@functools.cache
def drawn(count, **changes):
    return np.stack([prior_alone(recipe(**changes), SHAPE, key=jax.random.key(k)) for k in range(count)])


def test_draws_have_the_mean_and_the_spectrum_of_the_prior():
    count = 200
    whitened = np.asarray(cosine_transform(drawn(count) - MEAN)) / np.sqrt(power(SHAPE))
    # Of the prior: independent with unit variance, each coefficient to sqrt(2 / 200) = 10 %.
    assert np.abs(whitened.mean(0)).max() < 5 / np.sqrt(count)
    assert np.abs((whitened**2).mean(0) - 1).max() < 5 * np.sqrt(2 / count)
    assert (whitened**2).mean() == pytest.approx(1, abs=5 * np.sqrt(2 / whitened.size))
    np.testing.assert_allclose(drawn(2, penalty_weight=4.0) - MEAN, (drawn(2) - MEAN) / 2, atol=1e-4)


def test_any_movie_is_met_by_chance_alone():
    movies = drawn(200)
    rng = np.random.default_rng(0)
    shown = MEAN + scipy.fft.idctn(np.sqrt(power(SHAPE)) * rng.normal(size=SHAPE), norm="ortho")
    everywhere = np.ones(SCREEN, bool)
    for truth in (shown, rng.uniform(0, 255, SHAPE)):
        found = np.array([movie_correlation(truth, movie, everywhere) for movie in movies])
        assert found.std() > 0.01
        assert abs(found.mean()) < 4 * found.std() / np.sqrt(len(found))
    assert movie_correlation(movies[0], movies[0], everywhere) == pytest.approx(1)


def test_it_is_the_sample_of_a_likelihood_that_says_nothing():
    responses, behaviour = (x[0] for x in toy_clips())
    prediction = np.full(responses.shape, responses.mean(), np.float32)
    noise = fit_noise([prediction], [responses], frame_step=1)
    mute = recipe(likelihood_weight=1e-30)
    key = jax.random.key(5)
    arguments = {"frame_shape": SCREEN, "frame_step": 1, "num_samples": 2, "key": key}
    _, displaced = posterior_draws(mute, noise, responses, prediction, **arguments)
    encoders = [toy("linear_nonlinear")]
    assert encoders[0][0].num_neurons == (NUM_NEURONS,)
    sampled = reconstruct(
        encoders, responses, behaviour, recipe=mute, num_steps=2, key=key, baseline=displaced[0]
    ).movie
    np.testing.assert_allclose(prior_alone(mute, SHAPE, key=key), sampled, atol=0.05)
    assert np.abs(prior_alone(mute, SHAPE, key=jax.random.key(6)) - sampled).max() > 1


def test_it_is_finished_as_a_reconstruction_is():
    key = jax.random.key(0)
    wide = prior_alone(recipe(power=lambda shape: priors.natural_power(shape, std=200.0)), SHAPE, key=key)
    assert wide.dtype == np.float32 and wide.min() == 0 and wide.max() == 255
    plain = prior_alone(recipe(), SHAPE, key=key)
    np.testing.assert_allclose(
        prior_alone(recipe(smoothing=1.0), SHAPE, key=key), gaussian_filter(plain, 1.0), atol=1e-3
    )
    for baseline in (MEAN, np.full(SHAPE, MEAN)):
        np.testing.assert_allclose(prior_alone(recipe(prior_mean=0.0), SHAPE, key=key, baseline=baseline), plain)


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"penalty_weight": 0.0}, jax.random.key(0)),
        ({"priors": {"smooth": (1.0, priors.temporal_smoothness)}}, jax.random.key(0)),
        ({}, 3),
    ],
)
def test_faults_are_one_line(changes, key):
    with pytest.raises(NeuroreconError) as error:
        prior_alone(recipe(**changes), SHAPE, key=key)
    assert "\n" not in str(error.value)


def test_the_published_recipe_has_no_prior_to_draw_from():
    with pytest.raises(NeuroreconError, match="expected a Gaussian prior"):
        prior_alone(published_recipe(), SHAPE, key=jax.random.key(0))
