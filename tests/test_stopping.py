"""Stopping by neurons that are held out: when, with which movie, and alike for clips together, alone and resumed."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from scipy.ndimage import gaussian_filter

from neurorecon.encoders import predict_ensemble
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import Progress, default_recipe, published_recipe, reconstruct_clips
from neurorecon.reconstruction.stopping import HeldOutNeurons, correlation, held_out, products
from tests.test_reconstruction import count_compilations
from tests.toy_encoders import NUM_FRAMES, NUM_NEURONS, SCREEN, toy

KEY = jax.random.key(7)
RULE = HeldOutNeurons(share=0.2, patience=4, decay=0.5)
STEPS = 60


def constant_rate(num_steps):
    del num_steps  # a descent cut short takes the same updates
    return optax.adam(0.1)


RECIPES = {
    "default": default_recipe(stop=RULE, update=constant_rate, likelihood_weight=1.0),
    "published": published_recipe(stop=RULE, learning_rate=1000.0),
}


@functools.cache
def noisy_clips(seed=1, noise=0.3, num_clips=3):
    """Responses to movies, and noise of their own: at first the others are explained better too, then worse."""
    rng = np.random.default_rng(seed)
    movies = 127.5 + 60 * gaussian_filter(rng.normal(size=(num_clips, NUM_FRAMES, *SCREEN)), (0, 2, 1, 1)) / 0.15
    behaviour = rng.normal(size=(num_clips, NUM_FRAMES, 4)).astype(np.float32)
    seen = [predict_ensemble([toy("linear_nonlinear")], m.astype(np.float32), b) for m, b in zip(movies, behaviour)]
    return np.stack([p * rng.gamma(1 / noise**2, noise**2, p.shape) for p in seen]).astype(np.float32), behaviour


def clip(place=1):
    return [values[place : place + 1] for values in noisy_clips()]


def descend(recipe, clips, *, encoders=None, **options):
    options = {"key": KEY, "num_steps": STEPS, "steps_per_call": 7} | options
    return reconstruct_clips(encoders or [toy("linear_nonlinear")], *clips, recipe=recipe, **options)


@pytest.mark.parametrize("name", RECIPES)
def test_the_movie_is_that_by_which_neurons_held_out_are_predicted_best(name):
    recipe, clips = RECIPES[name], clip()
    found = descend(recipe, clips)
    outside = found.trace["held_out_correlation"][0]
    average, averages = 0.0, []
    for step, value in enumerate(outside):
        average = 0.5 * average + 0.5 * value
        averages.append(average / (1 - 0.5 ** (step + 1)))
    best = 1 + int(np.argmax(averages[1:]))  # never the start
    assert found.num_steps == len(outside) == best + 1 + RULE.patience < STEPS and best > 1
    # Their responses are not descended to, so a descent without them, ended there, has the same movie.
    inside, left_out = held_out(RULE, np.ones(NUM_NEURONS), clips[0])
    assert (left_out > 0).sum() == 1 and not (inside * left_out).any()
    alone = descend(recipe.replace(stop=None), clips, neurons=inside > 0, num_steps=best)
    np.testing.assert_allclose(found.movie, alone.movie, atol=1e-3)
    np.testing.assert_allclose(found.trace["loss"][0, :best], alone.trace["loss"][0], rtol=1e-5)
    assert "held_out_correlation" not in alone.trace
    per_step = alone.encoder_windows / best
    assert found.encoder_windows == pytest.approx(per_step * len(outside))


def test_their_responses_do_not_matter_before_the_end():
    clips = clip()
    other = clips[0].copy()
    other[..., held_out(RULE, np.ones(NUM_NEURONS), other)[1][0] > 0] **= 2
    patient = RECIPES["default"].replace(stop=dataclasses.replace(RULE, patience=STEPS))
    found, changed = (descend(patient, (r, clips[1]), num_steps=9) for r in (clips[0], other))
    np.testing.assert_array_equal(found.trace["loss"], changed.trace["loss"])
    assert (found.trace["held_out_correlation"] != changed.trace["held_out_correlation"]).all()


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("parallel", [False, True])
def test_each_clip_and_each_movie_of_its_own_stops_by_itself(name, parallel):
    recipe, clips = RECIPES[name], noisy_clips()
    encoders = [toy("linear_nonlinear"), toy("linear_nonlinear", 1), toy("factorized")]
    together = descend(recipe, clips, encoders=encoders, parallel=parallel)
    alone = [descend(recipe, clip(k), encoders=encoders) for k in range(3)]
    assert len({one.num_steps for one in alone}) > 1
    assert together.num_steps == pytest.approx(np.mean([one.num_steps for one in alone]))
    assert together.encoder_windows == pytest.approx(np.mean([one.encoder_windows for one in alone]), rel=0.05)
    for k, one in enumerate(alone):
        np.testing.assert_allclose(together.movies[k], one.movies[0], atol=5e-3)
        made = one.trace["loss"].shape[1]
        np.testing.assert_allclose(together.trace["loss"][k, :made], one.trace["loss"][0], rtol=1e-4)
        assert (together.trace["loss"][k, made:] == together.trace["loss"][k, made - 1]).all()


@pytest.mark.parametrize("name", RECIPES)
def test_resumed_is_uninterrupted(name):
    recipe, clips = RECIPES[name], [values[1:] for values in noisy_clips()]
    stored: list[Progress] = []
    whole = descend(recipe, clips, on_call=stored.append)
    assert len(stored) > 1 and stored[-1].step < STEPS
    for progress in stored:
        arrays = {key: np.array(values) for key, values in progress.to_arrays().items()}
        again = descend(recipe, clips, progress=Progress.from_arrays(arrays))
        np.testing.assert_array_equal(again.movies, whole.movies)
        for key, values in whole.trace.items():
            np.testing.assert_array_equal(again.trace[key], values)


def test_with_more_patience_than_updates_it_ends_at_the_last():
    recipe = RECIPES["default"].replace(stop=dataclasses.replace(RULE, patience=STEPS))
    found = descend(recipe, clip(), num_steps=5)
    assert found.num_steps == 5 and found.trace["held_out_correlation"].shape == (1, 5)


def test_a_second_call_compiles_nothing():
    first, second = noisy_clips(), noisy_clips(2)
    descend(RECIPES["default"], first)
    assert count_compilations(lambda: descend(RECIPES["default"], second)) == 0


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 0.6}, {"patience": 0}, {"decay": 1.0}])
def test_a_rule_that_makes_no_sense(wrong):
    with pytest.raises(NeuroreconError, match="held-out neurons: expected"):
        HeldOutNeurons(**wrong)


def test_one_neuron_cannot_be_held_out():
    only = np.arange(NUM_NEURONS) == 2
    with pytest.raises(NeuroreconError, match="at least 2 neurons in use, found 1"):
        descend(RECIPES["default"], clip(), neurons=only)


@pytest.mark.parametrize("used", [2, 3, 7, 20, 101])
@pytest.mark.parametrize("share", [0.1, 0.34, 0.5])
def test_which_are_held_out(used, share):
    rng = np.random.default_rng(0)
    weights = np.zeros(130)
    weights[rng.permutation(130)[:used]] = 1
    responses = rng.gamma(1.0, np.arange(1, 131), (2, 40, 130))
    inside, outside = held_out(HeldOutNeurons(share), weights, responses)
    assert outside.shape == (2, 130)
    chosen = outside[0] > 0
    assert chosen.sum() == max(1, round(share * used)) and inside.sum() + chosen.sum() == used
    np.testing.assert_array_equal((inside > 0) | chosen, weights > 0)
    np.testing.assert_allclose(outside[:, chosen], 1 / responses[..., chosen].var(1))
    longer = np.pad(responses, [(0, 0), (0, 9), (0, 0)])  # clips filled up to a common length
    np.testing.assert_allclose(held_out(HeldOutNeurons(share), weights, longer)[1], outside)
    silent = np.where(chosen, 0.0, responses)
    assert not held_out(HeldOutNeurons(share), weights, silent)[1].any()


def test_the_measure_is_a_correlation():
    rng = np.random.default_rng(0)
    predicted, recorded = rng.gamma(2.0, 1.0, (2, 1, 50, 4))
    valid = np.ones((1, 50), bool)
    valid[0, 40:] = False
    weights = np.array([0.0, 2.0, 1.0, 0.5])
    found = correlation(products(predicted, recorded, weights, valid))
    a, b = ((x - x.mean(0)) * np.sqrt(weights) for x in (predicted[0, :40], recorded[0, :40]))
    assert float(found) == pytest.approx((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()), rel=1e-5)
    louder = correlation(products(3 * predicted + 1, recorded, weights, valid))
    assert float(louder) == pytest.approx(float(found), rel=1e-5)  # contrast alone changes nothing
    assert float(correlation(products(0 * predicted, recorded, weights, valid))) == 0
