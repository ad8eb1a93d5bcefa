"""Masks: the published training against its numbers, the sensitivity map against exact derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from neurorecon.encoders import load_published
from neurorecon.encoders.canvas import make_inputs
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import masks
from tests.shared_data import SHARED, needs_shared
from tests.toy_encoders import NUM_NEURONS, SCREEN, TOYS, toy

KEY = jax.random.key(0)


def toy_trials(num_trials=3, num_frames=30, seed=0):
    rng = np.random.default_rng(seed)
    stimuli = [rng.uniform(0, 255, (num_frames + t, *SCREEN)).astype(np.float32) for t in range(num_trials)]
    behaviours = [rng.normal(size=(len(s), 4)).astype(np.float32) for s in stimuli]
    responses = [rng.gamma(1, 2, (len(s), NUM_NEURONS)).astype(np.float32) for s in stimuli]
    return stimuli, behaviours, responses


@needs_shared("reference/alpha_mask_training.npz")
def test_training_as_published():
    encoder, variables = load_published(SHARED / "reference/dwiseneuro_tiny.pth")
    with np.load(SHARED / "reference/alpha_mask_training.npz") as stored:
        reference = dict(stored)
    trials = [
        (
            reference[f"trial{k}_video"].transpose(2, 0, 1),
            np.concatenate([reference[f"trial{k}_behavior"], reference[f"trial{k}_pupil_center"]]).T,
            reference[f"trial{k}_responses"].T,
        )
        for k in range(3)
    ]

    def near(found, expected, tolerance):
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()

    for name, losses, trained in (("a", 2e-6, 8e-5), ("b", 4e-6, 4e-6)):
        start = reference[f"initial_mask_{name}"].reshape(-1, 64, 64)
        result = masks.alpha_training(
            encoder,
            variables,
            *zip(*trials),
            key=KEY,
            pairs=reference["pairs"],
            initial=start if len(start) > 1 else start[0],
        )
        near(result.losses, reference[f"losses_{name}"], losses)
        near(result.gradient_norms, reference[f"gradnorms_{name}"], 2e-3)
        near(result.steps, reference[f"masks_first_frame_{name}"], trained)
        frames = reference[f"mask_final_all_frames_{name}"]
        near(result.frames[: len(frames)], frames, trained)
        np.testing.assert_array_equal(result.alpha, result.steps[-1])
        gradients = np.diff(np.concatenate([start[:1], result.steps]), axis=0) / -10
        near(gradients, reference[f"mask_grad_smoothed_{name}"], 2e-3)
        np.testing.assert_array_equal(result.steps[2], result.steps[1])  # a trial before itself


def test_blur_is_a_gaussian_mirrored_at_the_borders():
    image = np.random.default_rng(0).normal(size=(20, 31))
    with jax.enable_x64(True):
        ours = masks.blur(jnp.asarray(image))
    np.testing.assert_allclose(ours, gaussian_filter(image, 5, mode="mirror", radius=7), atol=1e-12)


def test_clip_passes_the_gradient_on_its_closed_interval():
    encoder, variables = toy("linear_nonlinear")
    stimuli, behaviours, responses = toy_trials(2)
    mask = np.zeros((8, *SCREEN), np.float32) + np.array([0, 1, -0.01, 1.01, 0.5, 2], np.float32)
    clip = (jnp.asarray(x[0][:8]) for x in (stimuli, behaviours, responses))
    gradient, _, _ = masks.mask_gradient((encoder, 0), variables, jnp.asarray(mask), *clip, stimuli[1][:8])
    assert (np.asarray(gradient != 0) == np.array([True, True, False, False, True, False])).all()


def test_published_draws_never_take_the_last_trial():
    pairs = masks.published_pairs(KEY, 5, 2000)
    assert pairs.shape == (2000, 2) and set(pairs.ravel()) == {0, 1, 2, 3}
    assert (pairs[:, 0] == pairs[:, 1]).any()


@pytest.mark.parametrize("name", TOYS)
def test_training_of_every_encoder(name):
    encoder, variables = toy(name)
    found = [
        masks.train_alpha_mask(encoder, variables, *toy_trials(), key=jax.random.key(k), num_steps=3, skip_frames=5)
        for k in (0, 0, 1)
    ]
    assert found[0].shape == tuple(encoder.canvas) and np.isfinite(found[0]).all()
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


def test_errors():
    encoder, variables = toy("linear_nonlinear")
    stimuli, behaviours, responses = toy_trials()

    def refused(match, *trials, **options):
        with pytest.raises(NeuroreconError, match=match) as caught:
            masks.train_alpha_mask(
                encoder, variables, *trials, **{"key": KEY, "num_steps": 1, "skip_frames": 0} | options
            )
        assert "\n" not in str(caught.value)

    refused("as many of each", stimuli, behaviours, responses[:2])
    refused("28 frames or more|60 frames or more", stimuli, behaviours, responses, skip_frames=52)
    refused("stimuli: expected", [s[:, :3] for s in stimuli], behaviours, responses)
    refused("responses: expected", stimuli, behaviours, [r[:, :3] for r in responses])
    refused("responses: expected", stimuli, behaviours, [r * np.nan for r in responses])
    refused("at least 2 trials", stimuli[:1], behaviours[:1], responses[:1])
    refused("pairs", stimuli, behaviours, responses, pairs=np.array([[0, 3]]))
    refused("initial", stimuli, behaviours, responses, initial=np.zeros((3, 3)))
    refused("key", stimuli, behaviours, responses, key=0)
    with pytest.raises(NeuroreconError, match="as many of both"):
        masks.sensitivity_map([(encoder, variables)], stimuli, behaviours[:1], key=KEY)
    with pytest.raises(NeuroreconError, match="frames or more"):
        masks.sensitivity_map([(encoder, variables)], [s[:5] for s in stimuli], [b[:5] for b in behaviours], key=KEY)


@pytest.mark.parametrize("name", TOYS)
def test_sensitivity_is_the_root_mean_square_derivative(name):
    encoder, variables = toy(name)
    span = (encoder.window_frames - 1) * encoder.frame_step + 1
    stimuli, behaviours, _ = toy_trials(1)
    stimulus, behaviour = stimuli[0][:span], behaviours[0][:span]  # one place for the window
    found = masks.sensitivity_map(
        [(encoder, variables)], [stimulus], [behaviour], key=KEY, windows_per_trial=300, smoothing=0
    )

    def predict(movie):
        inputs = make_inputs(movie, behaviour[:: encoder.frame_step], encoder.canvas, encoder.padding)
        first = encoder.warmup_frames if encoder.time_invariant else 0
        return encoder.apply(variables, inputs[None])[0, first:]

    jacobian = np.asarray(jax.jit(jax.jacrev(predict))(stimulus[:: encoder.frame_step]))
    exact = np.sqrt((jacobian**2).mean((0, 1, 2)))
    assert found.shape == SCREEN and found.max() == 1
    np.testing.assert_allclose(found, exact / exact.max(), atol=0.1)
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.95


def test_sensitivity_finds_where_neurons_look():
    encoder, variables = toy("linear_nonlinear")
    space = np.zeros(variables["params"]["readout0"]["space"].shape, np.float32)
    space[1 * SCREEN[1] + 4] = 0.5  # row 1, column 4
    variables["params"]["readout0"]["space"] = jnp.asarray(space)
    stimuli, behaviours, _ = toy_trials()
    found = masks.sensitivity_map([(encoder, variables)], stimuli, behaviours, key=KEY, smoothing=0)
    expected = np.zeros(SCREEN)
    expected[1, 4] = 1
    np.testing.assert_array_equal(found, expected)
    smooth = masks.sensitivity_map([(encoder, variables)] * 2, stimuli, behaviours, key=KEY, smoothing=1.0)
    assert smooth.max() == smooth[1, 4] == 1 and 0 < smooth[1, 2] < smooth[1, 3] < 1
    np.testing.assert_array_equal(masks.population_mask(found, 0.5), expected == 1)
    with pytest.raises(NeuroreconError, match="threshold"):
        masks.population_mask(found, 1.5)
    blind = jax.tree.map(jnp.zeros_like, variables)
    with pytest.raises(NeuroreconError, match="no pixel"):
        masks.sensitivity_map([(encoder, blind)], stimuli, behaviours, key=KEY)
