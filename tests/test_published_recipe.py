"""The published recipe against the numbers of the published code (Bauer et al. 2026)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from neurorecon.encoders import load_published
from neurorecon.reconstruction import published_recipe, reconstruct
from neurorecon.reconstruction.loop import Recorded, Settings, pixel_gradient
from tests.shared_data import SHARED, needs_shared

pytestmark = needs_shared("reference/bauer_reconstruction.npz")
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def reference():
    with np.load(SHARED / "reference/bauer_reconstruction.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def models():
    return [load_published(SHARED / f"reference/dwiseneuro_tiny{suffix}.pth") for suffix in ("", "2")]


def trial(reference, short=False):
    behaviour = np.concatenate([reference["behavior"], reference["pupil_center"]]).T
    if short:
        return reference["short__responses"].T, behaviour[: int(reference["short__T"])]
    return reference["responses"].T, behaviour


def update_mask(reference):
    return reference["mask"] >= 0.5


def run(encoders, clip, **options):
    """The result and the canvas after every update."""
    movies = {}

    def on_call(progress):
        movies[progress.step] = np.asarray(progress.states[0].latent)[0, 0]

    result = reconstruct(encoders, *clip, key=KEY, steps_per_call=1, on_call=on_call, **options)
    return result, movies


@pytest.fixture(scope="module")
def single(reference, models):
    return run(
        models[:1], trial(reference), recipe=published_recipe(), update_mask=update_mask(reference), num_steps=20
    )


def assert_near(found, expected, tolerance, ulp=0.0):
    """The reference's measure: largest difference over the largest value."""
    assert found.shape == expected.shape
    distance, allowed = np.abs(found - expected).max(), tolerance * np.abs(expected).max() + ulp
    assert distance <= allowed


def assert_traces(trace, reference, name, num_steps, tolerance):
    """The published iteration 0 and ours before the first update look at the same movie, and so does iteration 1."""
    steps = [0, 0, 1][: num_steps + 1]
    assert_near(trace["window_loss"][steps], reference[f"{name}__losses"], tolerance)
    assert_near(trace["window_gradient_norm"][steps], reference[f"{name}__gradnorms"], 1e-3)
    np.testing.assert_allclose(trace["loss"], trace["window_loss"].mean((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(trace["poisson"], trace["loss"])


def test_one_model(single, reference):
    result, movies = single
    for k, tolerance in ((1, 1e-6), (2, 1e-6), (3, 1e-6), (5, 3e-6), (10, 6e-6), (20, 2e-5)):
        assert_near(movies[k], reference[f"single__video_i{k}"], tolerance)
        assert_near(movies[k] - 127.5, reference[f"single__video_i{k}"] - 127.5, 1e-4, ulp=2e-5)
    assert_traces(result.trace, reference, "single", 20, 6e-6)
    assert result.encoder_windows == 20 * 6 * 2
    # The outcome: the canvas, smoothed, then cropped to the screen.
    np.testing.assert_array_equal(result.movies[0], movies[20])
    smooth = gaussian_filter(movies[20].astype(np.float64), 0.5)[:, 14:50]
    np.testing.assert_allclose(result.movie, smooth, rtol=1e-6)
    assert result.movie.shape == (64, 36, 64) and result.movie.dtype == np.float32
    # Outside the update mask nothing has moved.
    assert (movies[20][:, ~update_mask(reference)] == 127.5).all()


def test_averaged_gradient(models, reference):
    """Before mask and clip, at the grey movie of iterations 0 and 1."""
    responses, behaviour = trial(reference)
    settings = Settings(
        recipe=published_recipe(ensemble="gradients"),
        encoders=(models[0][0],),
        readout=0,
        shape=(64, 64, 64),
        num_steps=1,
        steps_per_call=1,
        window_chunk=1,
        parallel=False,
    )
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *[variables for _, variables in models])
    movie = jnp.full((64, 64, 64), 127.5)
    clip = Recorded(
        responses=jnp.asarray(responses),
        behaviour=jnp.asarray(behaviour),
        baseline=jnp.zeros_like(movie),
        neuron_weights=jnp.ones(responses.shape[1]),
    )
    compiled = jax.jit(lambda v: pixel_gradient(settings, (v,), movie, clip, KEY)[0])
    assert_near(np.asarray(compiled(stacked)), reference["gradens__avg_grad_i1"], 2e-4)


def test_ensembled_gradients(models, reference):
    recipe = published_recipe(ensemble="gradients")
    result, movies = run(models, trial(reference), recipe=recipe, update_mask=update_mask(reference), num_steps=5)
    for k, tolerance in ((1, 1e-6), (2, 1e-6), (3, 1e-6), (5, 2e-6)):
        assert_near(movies[k], reference[f"gradens__video_i{k}"], tolerance)
    assert_traces(result.trace, reference, "gradens", 5, 6e-6)
    assert result.movies.shape == (1, 64, 64, 64)


def test_ensembled_movies_are_averaged_then_smoothed(models, reference):
    clip, options = trial(reference, short=True), {"update_mask": update_mask(reference), "num_steps": 3, "readout": 1}
    both = reconstruct(models, *clip, recipe=published_recipe(), key=KEY, **options)
    assert both.movies.shape == (2, 45, 64, 64)
    smooth = gaussian_filter(both.movies.astype(np.float64).mean(0), 0.5)[:, 14:50]
    np.testing.assert_allclose(both.movie, smooth, rtol=1e-6)
    for place in range(2):  # each its own descent, as if alone
        alone = reconstruct(models[place : place + 1], *clip, recipe=published_recipe(), key=KEY, **options)
        np.testing.assert_allclose(both.movies[place], alone.movies[0], atol=1e-4)
        np.testing.assert_allclose(both.trace["window_loss"][:, place], alone.trace["window_loss"][:, 0], rtol=1e-5)


def test_large_steps(models, reference):
    """The non-linear part and the clip to 0..255 act."""
    recipe = published_recipe(learning_rate=float(reference["short__lr"]))
    clip = trial(reference, short=True)
    options = {"recipe": recipe, "update_mask": update_mask(reference), "num_steps": 6, "readout": 1}
    result, movies = run(models[:1], clip, **options)
    assert_near(movies[1], reference["short_fastlr__video_i1"], 2e-5)
    assert_near(movies[3], reference["short_fastlr__video_i3"], 9e-5)
    expected = reference["short_fastlr__video_i6"]
    assert np.linalg.norm(movies[6] - expected) <= 1e-4 * np.linalg.norm(expected)
    assert movies[6].min() == 0 and movies[6].max() == 255
    assert_traces(result.trace, reference, "short_fastlr", 6, 1e-5)


def test_population_reduction(models, reference):
    kept = reference["short__population_mask"]
    recipe = published_recipe(ablation="zero_target")
    options = {"recipe": recipe, "update_mask": update_mask(reference), "num_steps": 3, "readout": 1}
    result, movies = run(models[:1], trial(reference, short=True), neurons=kept, **options)
    for k in (1, 3):
        assert_near(movies[k], reference[f"short_popmask__video_i{k}"], 1e-6)
    assert_traces(result.trace, reference, "short_popmask", 3, 4e-6)


def test_screen_masks_and_the_strict_mask_in_place_of_canvas_ones(models, reference):
    clip, recipe = trial(reference, short=True), published_recipe()
    canvas = np.zeros((64, 64), bool)
    canvas[14:50] = reference["mask"][14:50] >= 1
    options = {"recipe": recipe, "num_steps": 3, "readout": 1, "key": KEY}
    of_canvas = reconstruct(models[:1], *clip, update_mask=canvas, **options)
    of_screen = reconstruct(models[:1], *clip, update_mask=canvas[14:50], **options)
    np.testing.assert_array_equal(of_canvas.movies, of_screen.movies)
    everywhere = reconstruct(models[:1], *clip, **options)
    moved = everywhere.movies[0] != 127.5
    assert moved[:, :14].any() and moved[:, 50:].any()  # the padding rows move too, as published
    assert (of_canvas.movies[0][:, ~canvas] == 127.5).all() and (of_canvas.movies[0][:, canvas] != 127.5).any()


def test_float64(single, models, reference):
    """The float64 trajectory is as far from the float32 ones as the published float64 one is."""
    with jax.enable_x64(True):
        encoder, variables = models[0]
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64 if x.dtype == jnp.float32 else x.dtype), variables)
        result, movies = run(
            [(encoder, wide)],
            [x.astype(np.float64) for x in trial(reference)],
            recipe=published_recipe(),
            update_mask=update_mask(reference),
            num_steps=3,
        )
    assert result.movies.dtype == np.float64
    # Distances between the published code's float32 and float64, in grey values; twice that, for two roundings.
    for k, distance in ((1, 4.4e-6), (2, 8.8e-6), (3, 1.3e-5)):
        assert np.abs(movies[k] - reference[f"single__video_i{k}"]).max() < 2 * distance
        assert np.abs(movies[k] - single[1][k]).max() < 2 * distance
    expected = reference["single__losses"]
    assert np.abs(result.trace["window_loss"][[0, 0, 1]] - expected).max() < 2 * 4.1e-6
    assert np.abs(result.trace["window_gradient_norm"][[0, 0, 1]] / reference["single__gradnorms"] - 1).max() < 5e-5


def test_recipe_is_the_published_one():
    recipe = published_recipe()
    assert recipe == published_recipe() and recipe is not published_recipe()
    assert recipe != published_recipe(learning_rate=999.0)
    parts = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    assert parts["num_steps"] == 999 and parts["smoothing"] == 0.5 and parts["start"] == 127.5
    assert parts["ensemble"] == "movies" and parts["canvas"] and parts["mean_loss"] and parts["normalise_windows"]
    assert not parts["priors"] and list(parts["losses"]) == ["poisson"]
