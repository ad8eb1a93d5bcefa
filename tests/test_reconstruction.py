"""The descent: what it must not change, what it must refuse, and its gradient."""

import inspect
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neurorecon.encoders import DwiseNeuro
from neurorecon.encoders.checkpoints import architecture_from_json, architecture_to_json
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import (
    Progress,
    Recipe,
    default_recipe,
    losses,
    parametrisations,
    priors,
    published_recipe,
    reconstruct,
    reconstruct_clips,
    windows,
)
from neurorecon.reconstruction.noise import fit_noise
from neurorecon.reconstruction.recipes import economical_windows, published_windows
from tests.toy_encoders import NUM_FRAMES, NUM_NEURONS, SCREEN, TOYS, toy, toy_clips

KEY = jax.random.key(7)
STEPS = 6


def descend(encoders, clips=None, *, recipe=None, **options):
    responses, behaviour = toy_clips() if clips is None else clips
    options = {"key": KEY, "num_steps": STEPS, "steps_per_call": 3} | options
    return reconstruct_clips(encoders, responses, behaviour, recipe=recipe or default_recipe(), **options)


def same(found, expected):
    np.testing.assert_array_equal(found.movie, expected.movie)
    np.testing.assert_array_equal(found.movies, expected.movies)
    assert found.trace.keys() == expected.trace.keys()
    for name in expected.trace:
        np.testing.assert_array_equal(found.trace[name], expected.trace[name])


def close(found, expected, atol=2e-3):
    np.testing.assert_allclose(found.movies, expected.movies, atol=atol)
    np.testing.assert_allclose(found.trace["loss"], expected.trace["loss"], rtol=1e-4)


@pytest.mark.parametrize("name", TOYS)
def test_the_loss_falls_and_results_have_their_shapes(name):
    result = descend([toy(name)], num_steps=40, steps_per_call=20)
    assert result.movie.shape == (1, NUM_FRAMES, *SCREEN) and result.movie.dtype == np.float32
    assert result.movies.shape == (1, 1, NUM_FRAMES, *SCREEN)
    assert result.movie.min() >= 0 and result.movie.max() <= 255 and result.movie.std() > 1
    posterior = 0.1 * result.trace["loss"] + result.trace["penalty"]
    assert posterior[0, -5:].mean() < posterior[0, :5].mean()
    assert result.trace["loss"].shape == result.trace["poisson"].shape == (1, 40)
    assert result.trace["window_loss"].shape[:3] == (1, 40, 1)


def test_resumed_is_uninterrupted_bit_for_bit():
    for encoders, recipe in (
        ([toy("linear_nonlinear"), toy("factorized")], default_recipe(ensemble="movies")),
        ([toy("linear_nonlinear")], published_recipe()),
    ):
        options = {"recipe": recipe, "steps_per_call": 4, "num_steps": 7}
        whole = descend(encoders, **options)
        stored = []
        again = descend(encoders, on_call=lambda progress: stored.append(progress), **options)  # noqa: B023
        same(again, whole)
        assert [p.step for p in stored[-2:]][-1] == 7
        for progress in stored:  # each as arrays, as a work folder keeps it, and as it is
            arrays = {name: np.array(values) for name, values in progress.to_arrays().items()}
            same(descend(encoders, progress=Progress.from_arrays(arrays), **options), whole)
            same(descend(encoders, progress=progress, **options), whole)
    # Cut at any step: the number of steps of a call is not compiled in.
    cut = []
    descend(encoders, **(options | {"steps_per_call": 3, "on_call": cut.append}))
    first = cut[0]
    assert first.step == 3
    same(descend(encoders, progress=first, **options), whole)
    with pytest.raises(NeuroreconError, match="progress"):
        descend(encoders, toy_clips(2), progress=first, **options)
    with pytest.raises(NeuroreconError, match="progress"):
        Progress.from_arrays({"something": np.zeros(3)})


def count_compilations(function):
    seen = []

    def listener(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        function()
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    return len(seen)


def test_the_second_call_compiles_nothing():
    encoders = [toy("linear_nonlinear")]
    for make in (default_recipe, published_recipe, lambda: default_recipe(prior_mean=np.full(SCREEN, 120.0))):
        assert count_compilations(lambda make=make: descend(encoders, recipe=make(), num_steps=5)) > 0
        other = toy_clips(seed=1)
        again = lambda make=make, other=other: descend(  # noqa: E731
            [toy("linear_nonlinear", seed=3)], other, recipe=make(), num_steps=5, key=jax.random.key(1)
        )
        toy("linear_nonlinear", seed=3), jax.random.key(1)
        assert count_compilations(again) == 0


def measured_recipe(seed, learning_rate=0.3):
    """As the experiments make it for an animal: with noise and a prior of its own."""
    rng = np.random.default_rng(seed)
    predictions, responses = rng.uniform(0.5, 2.0, (2, 2, NUM_FRAMES, NUM_NEURONS))
    noise = fit_noise(list(predictions), list(responses), frame_step=1)
    std = rng.uniform(30.0, 60.0)
    return default_recipe(
        power=lambda shape: priors.natural_power(shape, std=std),
        prior_mean=rng.uniform(100, 150, SCREEN),
        losses={"autoregressive": (0.1, losses.autoregressive(noise))},
        learning_rate=learning_rate,
        num_steps=5,
    )


def test_a_second_animal_of_equal_shape_compiles_nothing():
    encoders = [toy("linear_nonlinear")]
    first, second = measured_recipe(0), measured_recipe(1)
    one = descend(encoders, recipe=first)
    results = []
    assert count_compilations(lambda: results.append(descend(encoders, recipe=second))) == 0
    assert np.abs(results[0].movie - one.movie).max() > 1  # its own prior and noise count
    same(descend(encoders, recipe=measured_recipe(0)), one)
    assert count_compilations(lambda: descend(encoders, recipe=measured_recipe(0, learning_rate=0.2))) > 0


def test_batches_equal_one_by_one():
    encoders = [toy("factorized"), toy("factorized", seed=1)]
    responses, behaviour = toy_clips(3)
    for recipe in (default_recipe(), published_recipe()):
        batch = descend(encoders, (responses, behaviour), recipe=recipe)
        close(descend(encoders, (responses, behaviour), recipe=recipe, parallel=True), batch)
        alone = reconstruct(
            encoders, responses[1], behaviour[1], recipe=recipe, key=KEY, num_steps=STEPS, steps_per_call=3
        )
        np.testing.assert_allclose(alone.movie, batch.movie[1], atol=2e-3)
        np.testing.assert_allclose(alone.trace["window_loss"], batch.trace["window_loss"][1], rtol=1e-4)


@pytest.mark.parametrize("name", ["factorized", "dwiseneuro"])
def test_windows_at_once_change_nothing(name):
    encoders = [toy(name)]
    one = descend(encoders, recipe=published_recipe(), window_chunk=1)
    for chunk in (2, 100):
        many = descend(encoders, recipe=published_recipe(), window_chunk=chunk)
        close(many, one)
        np.testing.assert_allclose(many.trace["window_loss"], one.trace["window_loss"], rtol=1e-5)


def test_ensembles():
    members = [toy("linear_nonlinear"), toy("factorized"), toy("linear_nonlinear", seed=1)]
    movies = descend(members, recipe=published_recipe(smoothing=0))
    assert movies.movies.shape[1] == 3
    np.testing.assert_allclose(movies.movie, movies.movies.mean(1), atol=1e-4)
    for place, member in enumerate(members):  # in the caller's order, whatever is stacked
        alone = descend([member], recipe=published_recipe(smoothing=0))
        np.testing.assert_allclose(movies.movies[:, place], alone.movies[:, 0], atol=2e-3)
        np.testing.assert_allclose(
            movies.trace["window_loss"][:, :, place].mean(-1), alone.trace["window_loss"].mean((-1, -2)), rtol=1e-5
        )
    gradients = descend(members, recipe=published_recipe(ensemble="gradients"))
    assert gradients.movies.shape[1] == 1
    np.testing.assert_allclose(gradients.trace["window_loss"][:, 0], movies.trace["window_loss"][:, 0], rtol=1e-5)
    # Windows in units of each encoder's own, over all members.
    assert movies.encoder_windows == gradients.encoder_windows == STEPS * (3 + 3 * 2 + 3)


def permuted(variables, order):
    """A linear-nonlinear encoder with its neurons in another order."""
    params = dict(variables["params"])
    readout, behaviour = dict(params["readout0"]), dict(params["behaviour0"])
    for name in ("space", "time"):
        readout[name] = readout[name][:, order]
    readout["bias"] = readout["bias"][order]
    for name in ("gain", "offset"):
        behaviour[name] = {"kernel": behaviour[name]["kernel"][:, order]}
    params |= {"readout0": readout, "behaviour0": behaviour, "log_scale0": params["log_scale0"][order]}
    return {"params": params}


def test_the_order_of_neurons_changes_nothing():
    encoder, variables = toy("linear_nonlinear")
    responses, behaviour = toy_clips()
    order = np.array([3, 0, 4, 1, 2])
    for recipe in (default_recipe(), published_recipe()):
        expected = descend([(encoder, variables)], recipe=recipe)
        found = descend([(encoder, permuted(variables, order))], (responses[..., order], behaviour), recipe=recipe)
        close(found, expected)
        shuffled = descend([(encoder, variables)], (responses[..., order], behaviour), recipe=recipe)
        assert np.abs(shuffled.movies - expected.movies).max() > 1e-2  # the responses do matter


@pytest.mark.parametrize("name", TOYS)
def test_neurons_left_out(name):
    encoders, (responses, behaviour) = [toy(name)], toy_clips()
    kept = np.array([True, False, True, True, False])
    garbage = np.where(kept, responses, np.nan)
    zeroed = np.where(kept, responses, 0)
    exclude, zero = (published_recipe(ablation=how) for how in ("exclude", "zero_target"))
    excluded = descend(encoders, recipe=exclude, neurons=kept)
    same(descend(encoders, (garbage, behaviour), recipe=exclude, neurons=kept), excluded)
    silent = descend(encoders, recipe=zero, neurons=kept)
    same(descend(encoders, (garbage, behaviour), recipe=zero, neurons=kept), silent)
    close(silent, descend(encoders, (zeroed, behaviour), recipe=zero))
    assert np.abs(silent.movies - excluded.movies).max() > 1e-3
    close(descend(encoders, recipe=exclude, neurons=np.ones(NUM_NEURONS, bool)), descend(encoders, recipe=exclude))


def sum_of_squares(movie):
    return jnp.sum((movie / 255) ** 3)


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("basis", ["direct", "sigmoid", "whitened"])
def test_gradients_match_finite_differences(name, basis):
    """Of the whole objective: losses, priors and the parametrisation's own penalty."""
    with jax.enable_x64(True):
        encoder, variables = toy(name, dtype=np.float64)
        shape = (NUM_FRAMES, *SCREEN)
        make = {
            "direct": lambda shape, dtype: parametrisations.Parametrisation(lambda x: x, lambda x: x),
            "sigmoid": parametrisations.sigmoid,
            "whitened": lambda shape, dtype: parametrisations.whitened_cosine(
                priors.natural_power(shape, std=20.0), dtype=dtype
            ),
        }[basis]
        recipe = Recipe(
            name="test",
            losses={"poisson": (0.7, losses.poisson), "squared": (0.1, losses.squared_error)},
            priors={"smooth": (0.3, priors.temporal_smoothness), "cubes": (0.2, sum_of_squares)},
            parametrisation=make,
            update=lambda num_steps: optax.sgd(1.0),
            num_steps=1,
            # Windows within the movie: border frames repeated beyond it get no gradient, on purpose.
            plan=economical_windows if encoder.time_invariant else published_windows,
            penalty_weight=0.5,
        )
        rng = np.random.default_rng(0)
        movie = 127.5 + 20 * rng.normal(size=shape)
        pair = make(shape, jnp.float64)
        latent = np.asarray(pair.from_pixels(jnp.asarray(movie)))
        progress = []
        descend([(encoder, variables)], recipe=recipe, num_steps=1, on_call=progress.append)

        def look(latent):
            """The objective at a latent, and the latent after one step of plain descent."""
            start = progress[0].states[0]._replace(step=np.int32(0), latent=latent[None, None])
            after = []
            result = descend(
                [(encoder, variables)],
                recipe=recipe,
                num_steps=1,
                progress=Progress((start,), ({},)),
                on_call=after.append,
            )
            term = {name: values[0, 0] for name, values in result.trace.items() if not name.startswith("window")}
            assert term["loss"] == pytest.approx(0.7 * term["poisson"] + 0.1 * term["squared"])
            value = term["loss"] + 0.3 * term["smooth"] + 0.2 * term["cubes"] + 0.5 * term["penalty"]
            return value, np.asarray(after[0].states[0].latent)[0, 0]

        _, stepped = look(latent)
        gradient = latent - stepped
        scale = {"direct": 1e-2, "sigmoid": 1e-4, "whitened": 1e-4}[basis]
        for _ in range(3):
            direction = rng.normal(size=shape) * scale
            slope = (look(latent + direction)[0] - look(latent - direction)[0]) / 2
            assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", TOYS)
def test_extremes_stay_finite(name):
    behaviour = toy_clips()[1]
    for level in (0.0, 1e4):
        responses = np.full((1, NUM_FRAMES, NUM_NEURONS), level, np.float32)
        for start in (0.0, 255.0):
            recipe = published_recipe(start=start, update=published_recipe(learning_rate=1e7).update)
            result = descend([toy(name)], (responses, behaviour), recipe=recipe)
            assert np.isfinite(result.movie).all() and all(np.isfinite(v).all() for v in result.trace.values())
            assert (result.trace["window_gradient_norm"] > 0).any()


def test_update_mask():
    mask = np.zeros(SCREEN, bool)
    mask[1:3, 2:5] = True
    direct = default_recipe(parametrisation=parametrisations.direct, learning_rate=1.0)
    result = descend([toy("factorized")], recipe=direct, update_mask=mask)
    moved = (result.movies[0, 0] != 127.5).any(0)
    assert (moved == mask).all()
    # A mask of the canvas is cropped where the screen is descended.
    canvas = np.pad(mask, ((1, 1), (0, 0)))
    encoders = [toy("dwiseneuro")]
    same(descend(encoders, recipe=direct, update_mask=canvas), descend(encoders, recipe=direct, update_mask=mask))


def test_frames_beyond_the_movie_are_not_learnt_from():
    """Frame 7 stands in for one beyond the movie: its response counts, but it gets no gradient."""

    def plan(encoder, num_frames, key):
        frames = jnp.asarray([[[0, 2, 4, 7]]])
        return windows.WindowPlan(frames, frames >= 0, frames != 7)

    for recipe in (default_recipe(parametrisation=parametrisations.direct), published_recipe()):
        result = descend([toy("dwiseneuro")], recipe=recipe.replace(plan=plan), num_steps=3)
        moved = (result.movies[0, 0] != 127.5).any((1, 2))
        assert np.flatnonzero(moved).tolist() == [0, 2, 4]


def test_bad_input_gets_one_line():
    encoders, (responses, behaviour) = [toy("factorized")], toy_clips()

    def refused(match, encoders=encoders, responses=responses, behaviour=behaviour, **options):
        with pytest.raises(NeuroreconError, match=match) as caught:
            descend(encoders, (responses, behaviour), **options)
        assert "\n" not in str(caught.value)

    refused("at least one", encoders=[])
    refused("clip, time, neuron", responses=responses[0])
    refused("clip, time, neuron", responses=responses[:, :0], behaviour=behaviour[:, :0])
    refused("5 neurons", responses=responses[..., :4])
    refused("behaviour", behaviour=behaviour[:, :-1])
    refused("responses: expected numbers", responses=responses.astype(str))
    bad = responses.copy()
    bad[0, 3, 2] = np.nan
    refused("nan in clip 0, frame 3, column 2", responses=bad)
    refused("inf", behaviour=np.where(np.arange(4) == 1, np.inf, behaviour))
    refused("readout", readout=1)
    refused("num_steps", num_steps=0)
    refused("window_chunk", window_chunk=0)
    refused("update_mask: expected shape", update_mask=np.ones((3, 3)))
    refused("at least one pixel", update_mask=np.zeros(SCREEN))
    refused("neurons", neurons=np.zeros(NUM_NEURONS, bool))
    refused("neurons", neurons=np.ones(NUM_NEURONS))
    refused("key", key=0)
    encoder, variables = toy("dwiseneuro")
    refused("encoder.screen", encoders=[(encoder.clone(screen=(7, 6)), variables)])
    refused("one screen size", encoders=[(encoder, variables), (encoder.clone(screen=(2, 6)), variables)])
    refused("one canvas size", encoders=[*encoders, (encoder, variables)], recipe=published_recipe())
    refused("at least 12 frames", responses=responses[:, :9], behaviour=behaviour[:, :9], recipe=published_recipe())


def test_a_descent_that_explodes_stops_and_says_where():
    def explode(num_steps):
        return optax.chain(optax.scale_by_schedule(lambda count: jnp.where(count == 4, jnp.inf, 1.0)))

    with pytest.raises(NeuroreconError, match=r"not finite at step 5; lower") as caught:
        descend([toy("linear_nonlinear")], recipe=default_recipe(update=explode))
    assert "clip 0, movie 0" in str(caught.value)
    with pytest.raises(NeuroreconError, match="the movie of clip 0 is not finite"):
        descend([toy("linear_nonlinear")], recipe=default_recipe(update=explode), num_steps=5)


def test_the_true_movie_is_not_among_the_arguments():
    names = {n for f in (reconstruct, reconstruct_clips) for n in inspect.signature(f).parameters}
    assert names == {
        *("encoders", "responses", "behaviour", "recipe", "key", "update_mask", "neurons", "readout", "num_steps"),
        *("steps_per_call", "window_chunk", "parallel", "memory_gib", "precision", "shard", "progress", "on_call"),
        "options",
        *("baseline", "prior_scale"),  # the prior's mean and its strength, both made from responses
    }


def test_the_screen_of_dwiseneuro():
    assert DwiseNeuro(num_neurons=(3,)).screen == (36, 64)
    assert DwiseNeuro(num_neurons=(3,), canvas=(24, 80)).screen == (24, 64)
    encoder = DwiseNeuro(num_neurons=(3,), canvas=(24, 24), screen=(12, 20))
    stored = json.loads(json.dumps(architecture_to_json(encoder)))
    assert architecture_from_json(stored, "test") == encoder and encoder.clone(canvas=(32, 32)).screen == (12, 20)
    del stored["fields"]["screen"]  # as stored before there was a screen
    assert architecture_from_json(stored, "test").screen == (24, 24)


def test_nothing_is_warned_of(caplog, recwarn):
    with caplog.at_level(logging.WARNING):
        descend([toy("linear_nonlinear")])
    assert not caplog.records and not list(recwarn)
