"""Response losses and their masked reduction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from neurorecon.reconstruction import losses

LOSSES = {
    "poisson": losses.poisson,
    "squared_error": losses.squared_error,
    "gaussian": losses.gaussian(jnp.asarray([0.5, 1.0, 2.0])),
    "gamma": losses.gamma,
}


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return rng.uniform(0.1, 5, (2, 4, 3)), rng.gamma(1, 2, (2, 4, 3))


def test_values_are_negative_log_likelihoods_up_to_a_constant(arrays):
    prediction, target = arrays
    counts = np.round(target)
    np.testing.assert_allclose(losses.poisson(prediction, counts), prediction - counts * np.log(prediction), rtol=1e-5)

    def differences(values):
        return np.diff(np.asarray(values, float).reshape(-1, 3), axis=0)

    # At equal targets, differences between predictions are those of -log p.
    same = np.broadcast_to(counts[:1, :1], counts.shape)
    expected = -scipy.stats.poisson.logpmf(same, prediction)
    np.testing.assert_allclose(
        differences(losses.poisson(prediction, same)), differences(expected), rtol=1e-3, atol=1e-5
    )
    same = np.broadcast_to(target[:1, :1], target.shape)
    expected = -scipy.stats.norm.logpdf(same, prediction, np.array([0.5, 1, 2]))
    np.testing.assert_allclose(
        differences(LOSSES["gaussian"](prediction, same)), differences(expected), rtol=1e-3, atol=1e-5
    )
    expected = -scipy.stats.gamma.logpdf(same, 1.0, scale=prediction + 1e-3)
    np.testing.assert_allclose(differences(losses.gamma(prediction, same)), differences(expected), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(losses.squared_error(prediction, target), (prediction - target) ** 2, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_over_extremes_and_exact(name):
    function = LOSSES[name]
    with jax.enable_x64(True):
        p, y = (x.reshape(-1, 1) * np.ones(3) for x in np.meshgrid([0.0, 1e-12, 1e-3, 1.0, 1e4], [0.0, 1e-3, 1.0, 1e4]))
        gradient = np.asarray(jax.grad(lambda x: function(x, y).sum())(p))
        assert np.isfinite(gradient).all()
        # A complex step of no size: the derivative without cancellation.
        np.testing.assert_allclose(gradient, np.imag(function(p + 1e-30j, y)) / 1e-30, rtol=1e-9, atol=1e-12)


def test_reduction(arrays):
    prediction, target = (jnp.asarray(x, jnp.float32) for x in arrays)
    weights = jnp.asarray(np.random.default_rng(1).uniform(0, 2, (2, 4, 1)), jnp.float32)
    composite = {"poisson": (0.5, losses.poisson), "squared_error": (2.0, losses.squared_error)}
    for mean in (False, True):
        total, terms = losses.combine(composite, prediction, target, weights, mean=mean)
        norm = float(weights.sum()) * 3 if mean else 1.0
        for name, (_, function) in composite.items():
            expected = float((function(prediction, target) * weights).sum()) / norm
            assert float(terms[name]) == pytest.approx(expected, rel=1e-5)
        assert float(total) == pytest.approx(
            0.5 * float(terms["poisson"]) + 2 * float(terms["squared_error"]), rel=1e-5
        )


@pytest.mark.parametrize("name", LOSSES)
def test_elements_left_out_change_nothing_whatever_they_hold(name, arrays):
    prediction, target = (jnp.asarray(x, jnp.float32) for x in arrays)
    weights = jnp.ones((2, 4, 3)).at[:, 1].set(0).at[:, :, 2].set(0)

    def value_and_gradient(prediction, target):
        return jax.value_and_grad(
            lambda p: losses.combine({"a": (1.0, LOSSES[name])}, p, target, weights, mean=True)[0]
        )(prediction)

    value, gradient = value_and_gradient(prediction, target)
    for garbage in (jnp.nan, jnp.inf, 1e30):
        changed = value_and_gradient(
            jnp.where(weights > 0, prediction, garbage), jnp.where(weights > 0, target, garbage)
        )
        assert changed[0] == value
        np.testing.assert_array_equal(changed[1], gradient)
    assert not np.asarray(gradient)[np.asarray(weights) == 0].any()
    assert np.asarray(gradient)[np.asarray(weights) > 0].all()
