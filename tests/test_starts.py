"""Starting a descent elsewhere, and smoothing its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.ndimage import gaussian_filter

from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import default_recipe, priors, published_recipe, reconstruct_clips, updates
from neurorecon.reconstruction.parametrisations import whitened_cosine
from neurorecon.reconstruction.starts import start_at
from tests.toy_encoders import NUM_FRAMES, SCREEN, toy, toy_clips

SHAPE = (NUM_FRAMES, *SCREEN)


@pytest.mark.parametrize("recipe", [default_recipe(num_steps=3), published_recipe(canvas=False, num_steps=3)])
def test_the_recipes_own_start_changes_nothing_and_another_does(recipe):
    encoders = [toy("dwiseneuro", seed) for seed in (0, 1)]
    arguments = {"recipe": recipe, "key": jax.random.key(0)}
    responses, behaviour = toy_clips(2)
    plain = reconstruct_clips(encoders, responses, behaviour, **arguments)
    grey = start_at(encoders, np.full((2, *SHAPE), 127.5), recipe=recipe)
    same = reconstruct_clips(encoders, responses, behaviour, progress=grey, **arguments)
    np.testing.assert_allclose(same.movie, plain.movie, atol=2e-3)
    shown = np.random.default_rng(0).uniform(80, 170, (2, *SHAPE))
    elsewhere = start_at(encoders, shown, recipe=recipe)
    to_pixels = recipe.parametrisation(SHAPE, jnp.float32).to_pixels
    np.testing.assert_allclose(to_pixels(elsewhere.states[0].latent[0, 1]), shown[1], atol=0.05)
    other = reconstruct_clips(encoders, responses, behaviour, progress=elsewhere, **arguments)
    assert np.abs(other.movie - plain.movie).max() > 1
    with pytest.raises(NeuroreconError, match="movies"):
        start_at(encoders, shown[0], recipe=recipe)


def test_smoothed_gradient_is_a_gaussian_and_off_by_default():
    gradient = np.random.default_rng(0).normal(size=(40, 24, 32))
    rule = updates.smoothed_gradient((2.0, 1.0, 1.5))
    found, _ = rule.update(jnp.asarray(gradient), rule.init(gradient))
    np.testing.assert_allclose(found, gaussian_filter(gradient, (2.0, 1.0, 1.5), truncate=8), atol=3e-3)
    chain = optax.chain(updates.smoothed_gradient(0.0), updates.published_momentum())
    plain = updates.published_momentum()
    first, second = (r.update(jnp.asarray(gradient), r.init(jnp.asarray(gradient)))[0] for r in (chain, plain))
    np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-4)


def test_smoothing_the_gradient_is_a_prior_of_smoothed_power():
    """Fixed points of both, for a linear response with Gaussian noise, in closed form."""
    shape, sigma = (3, 4, 2), (0.5, 0.8, 0.3)
    size = int(np.prod(shape))
    rng = np.random.default_rng(1)
    jacobian, target = rng.normal(size=(9, size)), rng.normal(size=9)
    power = rng.uniform(0.5, 2.0, shape)

    def basis(variance):
        coloured = whitened_cosine(jnp.asarray(variance), mean=0.0).to_pixels
        return np.stack([np.asarray(coloured(x.reshape(shape))).reshape(-1) for x in np.eye(size, dtype=np.float32)], 1)

    transfer = priors.smoothing_transfer(shape, sigma)
    smooth = basis(np.ones(shape)) @ np.diag(transfer.reshape(-1)) @ basis(np.ones(shape)).T
    a = basis(power)
    z = np.linalg.solve(np.eye(size) + a.T @ smooth @ jacobian.T @ jacobian @ a, a.T @ smooth @ jacobian.T @ target)
    b = basis(priors.smoothed_power(lambda _: power, sigma)(shape))
    w = np.linalg.solve(np.eye(size) + b.T @ jacobian.T @ jacobian @ b, b.T @ jacobian.T @ target)
    np.testing.assert_allclose(a @ z, b @ w, rtol=1e-3, atol=1e-4)
