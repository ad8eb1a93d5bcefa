"""Update rules."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neurorecon.reconstruction import published_recipe, updates
from tests.shared_data import SHARED, needs_shared


def published_loop(gradients, learning_rate):
    """The published rule as a plain loop in float64; position 0 is the iteration that only looks."""
    movie, momentum, steps = np.full(gradients.shape[1:], 127.5), 0.0, []
    for i, gradient in enumerate(gradients):
        gradient = np.clip(gradient, -1, 1)
        if i == 0:
            continue
        rate = learning_rate * i / 10 if i < 10 else learning_rate
        momentum = 0.9 * momentum + 0.1 * gradient
        step = rate * math.sqrt(1 - 0.999 ** (i + 1)) / (1 - 0.9 ** (i + 1))
        movie = np.clip(movie - step * momentum / (1 - 0.9 ** (i + 1)), 0, 255)
        steps.append(movie)
    return np.stack(steps)


@pytest.mark.parametrize("learning_rate", [1000.0, 250.0])
def test_published_rule(learning_rate):
    gradients = np.random.default_rng(0).normal(0, 1e-2, (31, 6))
    gradients[:, 0] = 3.0  # clipped
    expected = published_loop(gradients, learning_rate)
    recipe = published_recipe(learning_rate=learning_rate)
    rule = recipe.update(999)
    project = recipe.parametrisation((1, 1, 1), jnp.float32).project

    def step(carry, gradient):
        movie, state = carry
        change, state = rule.update(gradient, state, movie)
        movie = project(optax.apply_updates(movie, change))
        return (movie, state), movie

    start = jnp.full(6, 127.5)
    _, movies = jax.jit(lambda g: jax.lax.scan(step, (start, rule.init(start)), g))(jnp.float32(gradients[1:]))
    np.testing.assert_allclose(movies, expected, rtol=2e-6, atol=2e-4)


def test_step_sizes_in_float32():
    for i in (1, 2, 9, 10, 11, 100, 999):
        exact = min(1, i / 10) * 1000 * math.sqrt(1 - 0.999 ** (i + 1)) / (1 - 0.9 ** (i + 1)) ** 2
        assert float(updates.published_step_size(jnp.float32(i), 1000.0)) == pytest.approx(exact, rel=1e-6)


@needs_shared("reference/bauer_reconstruction.npz")
@pytest.mark.parametrize(("name", "rate"), [("single", 1000.0), ("short_fastlr", 250000.0)])
def test_step_sizes_as_published(name, rate):
    published = np.load(SHARED / "reference/bauer_reconstruction.npz")[f"{name}__step_sizes"]
    ours = updates.published_step_size(jnp.arange(1, len(published) + 1, dtype=jnp.float32), rate)
    np.testing.assert_allclose(ours, published, rtol=1e-6)


def test_adam_descends_and_slows_down():
    rule = updates.adam(0.5, num_steps=100)

    def step(carry, _):
        x, state = carry
        change, state = rule.update(x, state, x)  # the gradient of half the square
        return (optax.apply_updates(x, change), state), jnp.abs(change).max()

    start = jnp.asarray([3.0, -2.0])
    (x, _), sizes = jax.jit(lambda: jax.lax.scan(step, (start, rule.init(start)), length=100))()
    assert float(jnp.abs(x).max()) < 0.05
    assert float(sizes[0]) == pytest.approx(0.5, rel=1e-3) and float(sizes[-1]) < 0.05
