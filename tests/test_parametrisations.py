"""Pixel parametrisations: round trips, bounds, and the prior that each carries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.stats

from neurorecon.reconstruction import parametrisations, priors

SHAPE = (6, 4, 5)


def whitened(shape, dtype):
    return parametrisations.whitened_cosine(priors.natural_power(shape), mean=120.0, dtype=dtype)


MAKERS = {"direct": parametrisations.direct, "sigmoid": parametrisations.sigmoid, "whitened_cosine": whitened}


@pytest.mark.parametrize("name", MAKERS)
def test_round_trip(name):
    movie = np.random.default_rng(0).uniform(1, 254, SHAPE)
    for x64, tolerance in ((False, 2e-2), (True, 1e-9)):
        with jax.enable_x64(x64):
            dtype = jnp.float64 if x64 else jnp.float32
            pair = MAKERS[name](SHAPE, dtype)
            latent = pair.from_pixels(jnp.asarray(movie, dtype))
            assert latent.shape == SHAPE and latent.dtype == dtype
            back = pair.to_pixels(latent)
            assert back.dtype == dtype
            np.testing.assert_allclose(back, movie, atol=tolerance)


def test_bounds():
    extreme = jnp.asarray([[[-1e4, 0.0, 1e4]]])
    direct = parametrisations.direct((1, 1, 3))
    np.testing.assert_array_equal(direct.project(extreme), [[[0, 0, 255]]])
    sigmoid = parametrisations.sigmoid((1, 1, 3))
    np.testing.assert_allclose(sigmoid.to_pixels(extreme), [[[0, 127.5, 255]]])
    assert np.isfinite(sigmoid.from_pixels(jnp.asarray([[[0.0, 255.0]]]))).all()
    assert np.isfinite(jax.grad(lambda x: sigmoid.to_pixels(x).sum())(extreme)).all()


def test_cosine_transform_is_the_orthonormal_dct():
    movie = np.random.default_rng(1).normal(size=(7, 5, 8))
    with jax.enable_x64(True):
        ours = parametrisations.cosine_transform(jnp.asarray(movie))
        np.testing.assert_allclose(ours, scipy.fft.dctn(movie, norm="ortho"), atol=1e-12)
        np.testing.assert_allclose(parametrisations.inverse_cosine_transform(ours), movie, atol=1e-12)
        basis = parametrisations.cosine_basis(9, jnp.float64)
        np.testing.assert_allclose(basis @ basis.T, np.eye(9), atol=1e-12)


def test_penalty_is_the_gaussian_prior_of_the_movie():
    shape = (3, 2, 2)
    with jax.enable_x64(True):
        power = np.random.default_rng(2).uniform(10, 1000, shape)
        pair = parametrisations.whitened_cosine(power, mean=100.0, dtype=jnp.float64)
        columns = [np.asarray(pair.to_pixels(jnp.asarray(row.reshape(shape)))).ravel() - 100 for row in np.eye(12)]
        covariance = np.stack(columns, 1) @ np.stack(columns, 1).T
        gaussian = scipy.stats.multivariate_normal(np.full(12, 100.0), covariance)
        movies = np.random.default_rng(3).normal(110, 20, (2, *shape))
        penalties = [float(pair.penalty(pair.from_pixels(jnp.asarray(movie)))) for movie in movies]
        logs = [gaussian.logpdf(movie.ravel()) for movie in movies]
        assert penalties[0] - penalties[1] == pytest.approx(logs[1] - logs[0], rel=1e-8)
        np.testing.assert_array_equal(pair.to_pixels(jnp.zeros(shape)), np.full(shape, 100.0))


def test_white_latents_have_the_prior_variance():
    shape = (8, 6, 6)
    pair = parametrisations.whitened_cosine(priors.natural_power(shape, std=30.0), mean=0.0)
    latents = jax.random.normal(jax.random.key(0), (300, *shape))
    movies = np.asarray(jax.vmap(pair.to_pixels)(latents))
    assert movies.std() == pytest.approx(30.0, rel=0.05)
