"""The spectrum of one clip from its first reconstruction, and descents under it."""

import jax
import numpy as np
import pytest
import scipy.fft

from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import default_recipe, posterior_draws, reconstruct, reconstruct_clips
from neurorecon.reconstruction.adaptation import BINS, SHRINK, fit_adaptation, whitened_std
from neurorecon.reconstruction.noise import ResponseNoise
from neurorecon.reconstruction.padding import padded, unpadded
from neurorecon.reconstruction.priors import frequency_bands, natural_power
from neurorecon.reconstruction.recipes import Whitened
from tests.toy_encoders import SCREEN, toy, toy_clips

SHAPE = (40, 18, 24)
BANDS = frequency_bands(SHAPE, BINS)
POWER = natural_power(SHAPE)
KEY = jax.random.key(0)
# Smooth over frequency, as clips differ: fast ones, slow ones.
TEMPORAL, SPATIAL = np.divmod(BANDS, BINS + 1)


def power(shape):
    return natural_power(shape)


def drawn(rng, log_variance=0.0):
    return scipy.fft.idctn(rng.normal(size=SHAPE) * np.sqrt(POWER * np.exp(log_variance)), norm="ortho")


def seen(rng, movie, share):
    """A linear Gaussian reconstruction under the prior: share * z, and noise of variance share * (1 - share)."""
    z = scipy.fft.dctn(movie, norm="ortho") / np.sqrt(POWER)
    found = share * z + np.sqrt(share * (1 - share)) * rng.normal(size=SHAPE)
    return scipy.fft.idctn(found * np.sqrt(POWER), norm="ortho")


def slopes(rng):
    """The log variance of a movie, over the bands: level and slopes."""
    level, slow, coarse = rng.normal(size=3)
    return level + slow * (TEMPORAL - 2.5) / BINS * 2 + coarse * (SPATIAL - 2.5) / BINS * 2


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    share = np.clip(0.9 - 0.15 * TEMPORAL, 0.1, 1)
    true = [drawn(rng, slopes(rng)) for _ in range(8)]
    training = [drawn(rng, slopes(rng)) for _ in range(30)]
    return fit_adaptation(true, [seen(rng, movie, share) for movie in true], training, power), share


def test_finds_what_a_clip_is_like(fitted):
    adaptation, share = fitted
    rng = np.random.default_rng(1)
    inside = (TEMPORAL > 0) & (SPATIAL > 0)
    for x in (1.5, -1.5):  # a clip of more contrast than the prior's, and one of less
        scale = adaptation.relative_std(seen(rng, drawn(rng, x), share))
        assert scale.shape == SHAPE and scale.dtype == np.float32
        np.testing.assert_array_equal(scale[~inside], 1)
        well = inside & (share > 0.5)
        # The share within a band is even here, so that HETEROGENEITY makes x too small, not too large.
        found = np.sign(x) * 2 * np.log(scale[well])
        assert found.min() > 0.1 and 0.3 * SHRINK * 1.5 < found.mean() < 1.2 * SHRINK * 1.5
    flat = adaptation.relative_std(seen(rng, drawn(rng), share))
    assert np.abs(np.log(flat)).max() < 0.35


def test_a_fast_clip_has_a_wider_prior_at_high_frequencies_only(fitted):
    adaptation, share = fitted
    rng = np.random.default_rng(2)
    fast = adaptation.relative_std(seen(rng, drawn(rng, 1.2 * (TEMPORAL - 2.5)), share))
    assert fast[1, 0, 3] < 0.8 and fast[25, 0, 3] > 1.25


def test_stays_within_bounds_whatever_it_is_given(fitted):
    adaptation, _ = fitted
    rng = np.random.default_rng(3)
    for movie in (np.zeros(SHAPE), 1e4 * rng.normal(size=SHAPE), 1e-9 * rng.normal(size=SHAPE)):
        scale = adaptation.relative_std(movie)
        assert np.isfinite(scale).all() and scale.min() >= np.exp(-0.5 * 4) and scale.max() <= np.exp(0.5 * 4)


def test_clips_of_other_lengths(fitted):
    adaptation, share = fitted
    rng = np.random.default_rng(4)
    movie = seen(rng, drawn(rng, 1.5), share)
    whole = adaptation.relative_std(movie)
    for length in (20, 55):
        piece = np.concatenate([movie, movie[::-1]])[:length]
        scale = adaptation.relative_std(piece)
        assert scale.shape == (length, *SHAPE[1:])
        # The same frequency, the same scale, about.
        assert abs(np.log(scale[length // 2, 0, 3] / whole[20, 0, 3])) < 0.3
    assert adaptation.relative_std(movie[:2]).shape == (2, *SHAPE[1:])  # most bands are empty


def test_faults():
    rng = np.random.default_rng(0)
    movies = [drawn(rng) for _ in range(3)]
    for true, other, training in ((movies[:1], movies[:1], movies), (movies, movies[:2], movies), (movies, movies, [])):
        with pytest.raises(NeuroreconError, match="expected at least 2 validation clips"):
            fit_adaptation(true, other, training, power)
    with pytest.raises(
        NeuroreconError, match=r"expected a reconstruction of shape \(40, 18, 24\), found \(30, 18, 24\)"
    ):
        fit_adaptation(movies, [m[:30] for m in movies], movies, power)
    with pytest.raises(NeuroreconError, match="expected 2 training movies of 40 frames, found 0"):
        fit_adaptation(movies, movies, [m[:30] for m in movies], power)
    with pytest.raises(NeuroreconError, match="true: expected finite"):
        fit_adaptation([np.full(SHAPE, np.nan), *movies[1:]], movies, movies, power)
    with pytest.raises(NeuroreconError, match="deviation: expected finite"):
        fit_adaptation(movies, movies, movies, power).relative_std(np.full(SHAPE, np.inf))


def scales_for(number, length=20):
    rng = np.random.default_rng(5)
    return np.exp(rng.normal(0, 0.5, (number, length, *SCREEN))).astype(np.float32)


def test_a_scaled_latent_is_a_prior_of_that_spectrum():
    responses, behaviour = toy_clips(1)
    (scale,) = scales_for(1)
    encoders = [toy("factorized", seed) for seed in (0, 1)]
    given = {"key": KEY, "num_steps": 12}
    scaled = reconstruct(encoders, responses[0], behaviour[0], recipe=default_recipe(), prior_scale=scale, **given)
    own = default_recipe(power=lambda shape: natural_power(shape) * scale.astype(np.float64) ** 2)
    other = reconstruct(encoders, responses[0], behaviour[0], recipe=own, **given)
    plain = reconstruct(encoders, responses[0], behaviour[0], recipe=default_recipe(), **given)
    np.testing.assert_allclose(scaled.movie, other.movie, atol=2e-2)
    assert np.abs(scaled.movie - plain.movie).max() > 1


def test_clips_with_scales_of_their_own_together_as_one_by_one():
    responses, behaviour = toy_clips(3)
    scales = scales_for(3)
    given = {"recipe": default_recipe(), "key": KEY, "num_steps": 8}
    encoders = [toy("factorized")]
    together = reconstruct_clips(encoders, responses, behaviour, prior_scale=scales, parallel=True, **given)
    for k in range(3):
        alone = reconstruct(encoders, responses[k], behaviour[k], prior_scale=scales[k], **given)
        np.testing.assert_allclose(together.movie[k], alone.movie, atol=2e-2)


def test_a_scale_of_ones_changes_nothing():
    responses, behaviour = toy_clips(1)
    given = {"recipe": default_recipe(), "key": KEY, "num_steps": 8}
    ones = np.ones((20, *SCREEN))
    first = reconstruct([toy("factorized")], responses[0], behaviour[0], prior_scale=ones, **given)
    second = reconstruct([toy("factorized")], responses[0], behaviour[0], **given)
    np.testing.assert_allclose(first.movie, second.movie, atol=1e-4)


def test_longer_arrays_change_nothing():
    responses, behaviour = toy_clips(2, num_frames=17)
    scales = scales_for(2, 17)
    recipe, encoders = default_recipe(), [toy("factorized")]
    plain = reconstruct_clips(encoders, responses, behaviour, recipe=recipe, key=KEY, num_steps=8, prior_scale=scales)
    longer = padded(recipe, responses, behaviour, None, 24)
    filled = np.pad(scales, [(0, 0), (0, 7), (0, 0), (0, 0)], constant_values=1.0)
    made = reconstruct_clips(encoders, *longer[1:3], recipe=longer.recipe, key=KEY, num_steps=8, prior_scale=filled)
    np.testing.assert_allclose(unpadded(made, encoders, recipe, 17).movie, plain.movie, atol=2e-2)


@pytest.mark.parametrize(
    "scale", [np.ones((2, 20, *SCREEN)), np.zeros((1, 20, *SCREEN)), np.full((1, 20, *SCREEN), np.nan)]
)
def test_scales_that_do_not_fit(scale):
    responses, behaviour = toy_clips(1)
    with pytest.raises(NeuroreconError, match=r"prior_scale: expected finite numbers above 0 of shape \(1, 20, 4, 6\)"):
        reconstruct_clips(
            [toy("factorized")], responses, behaviour, recipe=default_recipe(), key=KEY, prior_scale=scale
        )


def test_samples_are_drawn_from_the_clips_own_prior():
    responses, _ = toy_clips(1)
    (scale,) = scales_for(1)
    neurons = responses.shape[2]
    noise = ResponseNoise(np.ones(neurons), np.full(neurons, 0.1), np.zeros((2, 1, neurons)), np.ones((2, neurons)))
    recipe = default_recipe()
    assert isinstance(recipe.parametrisation, Whitened)
    given = {"frame_shape": SCREEN, "frame_step": 1, "num_samples": 2, "key": KEY}
    prediction = np.abs(responses[0])
    plain = posterior_draws(recipe, noise, responses[0], prediction, **given)[1][0]
    scaled = posterior_draws(recipe, noise, responses[0], prediction, prior_scale=scale, **given)[1][0]
    ratio = scipy.fft.dctn(scaled, norm="ortho") / scipy.fft.dctn(plain, norm="ortho")
    np.testing.assert_allclose(ratio, scale, rtol=2e-2)


def test_a_whiter_prior_has_the_same_variance():
    for exponent in (0.0, 0.3, 0.6, 1.0):
        variance = whitened_std(POWER, exponent).astype(np.float64) ** 2 * POWER
        assert variance.sum() == pytest.approx(POWER.sum(), rel=1e-6)
        slope = np.polyfit(np.log(POWER).ravel(), np.log(variance).ravel(), 1)[0]
        assert slope == pytest.approx(exponent, abs=1e-6)
    np.testing.assert_array_equal(whitened_std(POWER, 1.0), 1)


@pytest.mark.parametrize(
    "power, exponent", [(POWER, 1.1), (POWER, -0.1), (POWER, np.nan), (0 * POWER, 0.6), (np.inf * POWER, 0.6)]
)
def test_a_whiter_prior_of_nothing(power, exponent):
    with pytest.raises(NeuroreconError, match=r"^(exponent|power): expected"):
        whitened_std(power, exponent)
