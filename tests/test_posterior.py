"""Posterior samples, against the closed form where encoder, noise and prior are linear and Gaussian."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import default_recipe, losses, published_recipe, reconstruct, reconstruct_clips
from neurorecon.reconstruction.noise import ResponseNoise
from neurorecon.reconstruction.parametrisations import cosine_basis
from neurorecon.reconstruction.posterior import posterior_draws, sample_posterior

SCREEN, FRAMES, NEURONS = (2, 3), 5, 4
SHAPE = (FRAMES, *SCREEN)
WEIGHT, MEAN = 0.4, 120.0
AUTO, STD = 0.6, 3.0
FLOOR = 1e7  # next to it predictions vanish: the noise's variance is the same everywhere


@dataclasses.dataclass(frozen=True)
class Linear:
    """Responses linear in the present and the last frame."""

    canvas: tuple[int, int] = SCREEN
    screen: tuple[int, int] = SCREEN
    num_neurons: tuple[int, ...] = (NEURONS,)
    window_frames: int = FRAMES
    frame_step: int = 1
    warmup_frames: int = 0
    padding: float = 0.0
    time_invariant: ClassVar[bool] = True

    def apply(self, variables: Any, inputs: Any, *, readout: int = 0) -> Any:
        seen = inputs[..., 0].reshape(*inputs.shape[:2], -1)
        before = jnp.pad(seen, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        return seen @ variables["now"] + before @ variables["before"]


def encoder(seed=0):
    rng = np.random.default_rng(seed)
    kernels = {name: np.random.default_rng(9).normal(0, 0.6, (6, NEURONS)) for name in ("now", "before")}
    # Members of an ensemble differ by little: responses of one are no shock to another.
    return Linear(), {k: jnp.asarray(v + seed * rng.normal(0, 0.01, v.shape), jnp.float32) for k, v in kernels.items()}


def power(shape):
    return 300.0 / (1 + np.arange(np.prod(shape)).reshape(shape) / 10)


PREDICTORS = np.zeros((2, 1, NEURONS), np.float32)
PREDICTORS[1, 0] = AUTO
NOISE = ResponseNoise(
    np.full(NEURONS, STD**2 / FLOOR, np.float32),
    np.full(NEURONS, FLOOR, np.float32),
    PREDICTORS,
    np.stack([np.ones(NEURONS), np.full(NEURONS, np.sqrt(1 - AUTO**2))]).astype(np.float32),
)


LOSS = {"autoregressive": (WEIGHT, losses.autoregressive(NOISE))}  # one function: it compiles once


def recipe(**changes):
    arguments = {"power": power, "prior_mean": MEAN, "losses": LOSS, "learning_rate": 0.2, "num_steps": 250}
    return default_recipe(**arguments | changes)


def clip(seed=0):
    rng = np.random.default_rng(seed)
    movie = MEAN + rng.normal(0, 12, SHAPE)
    variables = encoder()[1]
    clean = np.asarray(Linear().apply(variables, jnp.asarray(movie)[None, ..., None]))[0]
    return clean + rng.normal(0, STD, clean.shape), np.zeros((FRAMES, 4))


def closed_form(responses, variables):
    """Mean and covariance of the tempered posterior over pixels, from dense matrices in float64."""
    size = np.prod(SHAPE)
    j = np.zeros((FRAMES, NEURONS, FRAMES, 6))
    for t in range(FRAMES):
        j[t, :, t] = np.asarray(variables["now"]).T
        if t:
            j[t, :, t - 1] = np.asarray(variables["before"]).T
    j = j.reshape(-1, size)
    lag = np.abs(np.subtract.outer(np.arange(FRAMES), np.arange(FRAMES)))
    covariance = np.kron(STD**2 * AUTO**lag, np.eye(NEURONS))
    bases = [np.asarray(cosine_basis(n), np.float64) for n in SHAPE]
    basis = np.einsum("at,bh,cw->abcthw", *bases).reshape(size, size)
    a = basis.T * np.sqrt(power(SHAPE).reshape(-1))
    prior = a @ a.T
    precision = np.linalg.inv(prior) + WEIGHT * j.T @ np.linalg.solve(covariance, j)
    posterior = np.linalg.inv(precision)
    news = np.asarray(responses, np.float64).reshape(-1) - j @ np.full(size, MEAN)
    return MEAN + posterior @ (WEIGHT * j.T @ np.linalg.solve(covariance, news)), posterior


def sampled(num_samples, seed=0, **changes):
    responses, behaviour = clip()
    arguments = {"recipe": recipe(), "noise": NOISE, "num_samples": num_samples, "key": jax.random.key(seed)}
    return sample_posterior([encoder()], responses, behaviour, **arguments | changes)


def test_mean_and_covariance_are_the_closed_form_posterior():
    count = 400
    found = sampled(count, parallel=True, smoothing=(0, 0, 0))
    mean, covariance = closed_form(clip()[0], encoder()[1])
    std = np.sqrt(np.diag(covariance))
    assert std.min() < 0.6 * np.sqrt(power(SHAPE).mean())  # the data say something
    np.testing.assert_allclose(found.movie.reshape(-1), mean, atol=0.5)
    np.testing.assert_allclose(found.mean.reshape(-1), mean, atol=0.5)  # pairs cancel: no Monte Carlo error
    # Pairs are one draw each: 200 of them know a variance to sqrt(2 / 200) = 10 %.
    np.testing.assert_allclose(found.std.reshape(-1), std, rtol=4 * 0.5 * np.sqrt(4 / count))
    deviation = (found.samples - found.mean).reshape(count, -1)
    empirical = deviation.T @ deviation / count
    off = (empirical - covariance) / np.outer(std, std)
    assert np.abs(off).max() < 4.5 * np.sqrt(2 * 2 / count)
    assert np.sqrt(np.mean(off**2)) < 1.3 * np.sqrt(2 / count)


def test_one_by_one_and_a_longer_series_give_the_same_samples():
    found = sampled(4, movie=np.full(SHAPE, MEAN))
    np.testing.assert_allclose(sampled(2, movie=np.full(SHAPE, MEAN)).samples, found.samples[:2], atol=1e-3)
    responses, behaviour = clip()
    member = encoder()
    prediction = member[0].apply(member[1], jnp.full((1, *SHAPE, 1), MEAN))[0]
    perturbed, displaced = posterior_draws(
        recipe(),
        NOISE,
        responses,
        np.asarray(prediction),
        frame_shape=SCREEN,
        frame_step=1,
        num_samples=4,
        key=jax.random.key(0),
    )
    for k in range(4):
        alone = reconstruct(
            [member], perturbed[k], behaviour, recipe=recipe(), key=jax.random.key(0), baseline=displaced[k]
        )
        np.testing.assert_allclose(alone.movie, found.samples[k], atol=1e-3)
    np.testing.assert_allclose(perturbed[0] + perturbed[1], 2 * responses, rtol=1e-4)
    np.testing.assert_allclose(displaced[2], -displaced[3], atol=1e-4)
    assert np.abs(displaced[0] - displaced[2]).max() > 1


def test_the_key_decides_and_an_interrupted_run_is_the_same():
    given = {"movie": np.full(SHAPE, MEAN), "steps_per_call": 100}
    saved = []
    found = sampled(4, on_call=saved.append, **given)
    assert len(saved) == 3
    resumed = sampled(4, progress=saved[0], **given)
    np.testing.assert_array_equal(resumed.samples, found.samples)
    assert np.abs(sampled(4, seed=1, **given).samples - found.samples).max() > 1


def test_each_encoder_has_its_own_movies_where_the_recipe_says_so():
    responses, behaviour = clip()
    members = [encoder(0), encoder(1)]
    common = {"noise": NOISE, "key": jax.random.key(0), "movie": np.full(SHAPE, MEAN)}
    both = sample_posterior(members, responses, behaviour, recipe=recipe(ensemble="movies"), num_samples=2, **common)
    assert both.samples.shape == (4, *SHAPE)
    # Antithetic pairs stand side by side: their mean is that encoder's own reconstruction.
    for k, member in enumerate(members):
        own = reconstruct([member], responses, behaviour, recipe=recipe(), key=jax.random.key(0))
        np.testing.assert_allclose(both.samples[2 * k : 2 * k + 2].mean(0), own.movie, atol=0.5)


def test_a_baseline_moves_all_samples_and_windows_are_counted():
    responses, behaviour = clip()
    zero = {"recipe": recipe(prior_mean=0.0), "noise": NOISE, "num_samples": 2, "key": jax.random.key(0)}
    moved = sample_posterior([encoder()], responses, behaviour, baseline=np.full(SHAPE, MEAN), **zero)
    plain = sampled(2)
    np.testing.assert_allclose(moved.samples, plain.samples, atol=0.02)
    one = reconstruct_clips([encoder()], responses[None], behaviour[None], recipe=recipe(), key=jax.random.key(0))
    assert plain.encoder_windows == pytest.approx(3 * one.encoder_windows)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_samples": 3},
        {"num_samples": 0},
        {"recipe": published_recipe(num_steps=2)},
        {"recipe": recipe(priors={"flat": (1.0, jnp.sum)})},
        {"recipe": recipe(losses={"a": (0.0, losses.poisson)})},
        {"recipe": recipe(losses={"a": (1.0, losses.poisson), "b": (1.0, losses.gamma)})},
        {"key": 3},
    ],
)
def test_faults_are_one_line(changes):
    with pytest.raises(NeuroreconError) as error:
        sampled(**{"num_samples": 2, "movie": np.full(SHAPE, MEAN)} | changes)
    assert "\n" not in str(error.value)
