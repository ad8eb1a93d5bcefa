"""Distillation: targets and weights as published, and nothing else that changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neurorecon.encoders import DwiseNeuro, Factorized
from neurorecon.errors import NeuroreconError
from neurorecon.training.distillation import PUBLISHED_RATIO, distilled_loss, make_teachers, taught
from neurorecon.training.trainer import initial_state, train
from tests.test_training import SETTINGS, SHAPE, animal, same
from tests.tiny_run import random_variables

NAMES = ["five", "three"]
ENCODER = DwiseNeuro(
    num_neurons=(5, 3), canvas=(8, 8), screen=SHAPE, window_frames=4, core_features=(2,), spatial_strides=(2,),
    temporal_kernel=3, expansion_ratio=1, se_reduce_ratio=1, cortex_features=(4,), drop_rate=0.0, drop_path_rate=0.0,
)  # fmt: skip
MEMBERS = [(ENCODER, random_variables(ENCODER, seed)) for seed in (0, 1)]
TEACHERS = make_teachers(MEMBERS, NAMES, ENCODER, NAMES, PUBLISHED_RATIO)


def drawn(*shape):
    return np.random.default_rng(0).gamma(1.0, 2.0, shape).astype(np.float32)


def test_targets_are_the_mean_of_the_teachers_predictions():
    inputs = drawn(2, 4, 8, 8, 5)
    found = taught(TEACHERS, jnp.asarray(inputs))
    for animal_index, number in enumerate(ENCODER.num_neurons):
        each = [np.asarray(e.apply(v, inputs, readout=animal_index)) for e, v in MEMBERS]
        assert found[animal_index].shape == (2, 4, number) and np.abs(each[0] - each[1]).max() > 1e-3
        np.testing.assert_allclose(found[animal_index], np.mean(each, 0), rtol=1e-5)


def test_weights_are_those_of_the_published_loss():
    """A mixed batch: its weights as the published step fills them in, then normalised to 1."""
    windows, number, ratio = 2, 3, PUBLISHED_RATIO
    rng = np.random.default_rng(1)
    predicted = [[rng.gamma(1.0, 2.0, (windows, 4, 5)) for _ in range(number)] for _ in range(number)]
    targets = [[rng.gamma(1.0, 2.0, (windows, 4, 5)) for _ in range(number)] for _ in range(number)]
    weights = [np.ones(5)] * number
    with jax.enable_x64(True):
        ours = np.mean(
            [
                distilled_loss(predicted[a], jnp.asarray(targets[a][a]), [jnp.asarray(t) for t in targets[a]], a, ratio,
                               weights)
                for a in range(number)
            ]
        )  # fmt: skip
    mice = np.repeat(np.eye(number), windows, 0)  # (window, readout): 1 for the animal that saw it
    missing = mice == 0
    filled = np.where(missing, ratio / (1 - ratio) * mice.sum() / missing.sum(), mice)
    filled = filled / filled.sum()
    expected = 0.0
    for row, (seen_by, window) in enumerate((a, w) for a in range(number) for w in range(windows)):
        for readout in range(number):
            p, y = predicted[seen_by][readout][window], targets[seen_by][readout][window]
            expected += filled[row, readout] * (p - y * np.log(p + 1e-8)).sum()
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    np.testing.assert_allclose(filled[missing].sum(), ratio)


def test_training_under_teachers_resumes_bit_for_bit(tmp_path):
    animals = [animal(tmp_path, name, n, k) for k, (name, n) in enumerate(zip(NAMES, ENCODER.num_neurons))]
    settings = dataclasses.replace(SETTINGS, num_steps=3, batch_size=2, validation_every=3)
    states = {}

    def run(teachers, state=None):
        losses = []

        def on_step(state, record):
            losses.append(record["loss"])
            states[record["step"]] = jax.tree.map(np.array, state)

        start = initial_state(ENCODER, animals, settings, num_models=1, key=jax.random.key(0))
        end = train(
            ENCODER, animals, settings, num_models=1, seed=0, state=state or start, teachers=teachers, on_step=on_step
        )
        return jax.tree.map(np.asarray, end), losses

    whole, losses = run(TEACHERS)
    again, later = run(TEACHERS, jax.tree.map(jnp.asarray, states[1]))
    assert same(whole, again) and losses[1:] == later
    alone, other = run(None)
    assert not same(alone.variables, whole.variables) and not np.isclose(other[0], losses[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratio": 1.0}, "distil_ratio"),
        ({"members": []}, "at least one"),
        ({"animals": NAMES[:1], "student_animals": NAMES[:1]}, "two or more recordings"),
        ({"animals": NAMES[::-1]}, "in this order"),
        ({"student": ENCODER.clone(window_frames=6)}, "window_frames = 6"),
        ({"student": Factorized(num_neurons=(5, 3), canvas=SHAPE)}, "dwiseneuro"),
    ],
)
def test_teachers_that_do_not_fit_are_one_line(change, message):
    given = {"members": MEMBERS, "animals": NAMES, "student": ENCODER, "student_animals": NAMES, "ratio": 0.36}
    with pytest.raises(NeuroreconError, match=message) as caught:
        make_teachers(**{**given, **change})
    assert "\n" not in str(caught.value)
