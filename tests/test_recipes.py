"""Recipes: composed from anyone's parts, equal by their parts, and strict about names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import default_recipe, losses, priors, published_recipe, reconstruct_clips
from tests.toy_encoders import toy, toy_clips


def descend(encoders, *, recipe, num_steps):
    return reconstruct_clips(encoders, *toy_clips(), recipe=recipe, num_steps=num_steps, key=jax.random.key(7))


def test_a_new_loss_and_a_new_prior_without_editing_the_library():
    def absolute_error(prediction, target):
        return jnp.abs(prediction - target)

    def darkness(movie):
        return jnp.sum(movie) / 255

    plain = default_recipe()
    recipe = plain.replace(
        losses={"absolute_error": (0.1, absolute_error)}, priors={"darkness": (2.0, darkness)}, num_steps=4
    )
    result = descend([toy("linear_nonlinear")], recipe=recipe, num_steps=None)
    assert result.trace["darkness"].shape == result.trace["absolute_error"].shape == (1, 4)
    assert result.movie.mean() < descend([toy("linear_nonlinear")], recipe=plain, num_steps=4).movie.mean()


def test_recipes_refuse_what_they_do_not_know():
    with pytest.raises(NeuroreconError, match="no part 'smothing'; the nearest is 'smoothing'"):
        published_recipe(smothing=1)
    for changes, match in (
        ({"ensemble": "frames"}, "ensemble"),
        ({"ablation": "forget"}, "ablation"),
        ({"stitch": "max"}, "stitch"),
        ({"losses": {}}, "at least one response loss"),
        ({"losses": {"loss": (1.0, losses.poisson)}}, "taken"),
        ({"priors": {"poisson": (1.0, priors.total_variation)}}, "taken"),
        ({"priors": {"tv": priors.total_variation}}, "weight, function"),
        ({"losses": {"poisson": (np.nan, losses.poisson)}}, "weight, function"),
        ({"num_steps": 0}, "num_steps"),
    ):
        for make in (default_recipe, published_recipe):
            with pytest.raises(NeuroreconError, match=match) as caught:
                make(**changes)
            assert "\n" not in str(caught.value)
    with pytest.raises(NeuroreconError, match="power"):
        descend([toy("linear_nonlinear")], recipe=default_recipe(power=lambda shape: np.ones((2, 2, 2))), num_steps=1)
    with pytest.raises(NeuroreconError, match="prior_mean"):
        descend([toy("linear_nonlinear")], recipe=default_recipe(prior_mean=np.ones(3)), num_steps=1)
    assert default_recipe() == default_recipe() and hash(default_recipe()) == hash(default_recipe())
    assert default_recipe(likelihood_weight=0.2) != default_recipe()
