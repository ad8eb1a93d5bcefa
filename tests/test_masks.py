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


@pytest.fixture(scope="module")
def reference():
    with np.load(SHARED / "reference/alpha_mask_training.npz") as stored:
        return dict(stored)


def published_trials(reference):
    """For each trial (stimulus, behaviour, responses), float32."""
    return [
        (
            reference[f"trial{k}_video"].transpose(2, 0, 1).astype(np.float32),
            np.concatenate([reference[f"trial{k}_behavior"], reference[f"trial{k}_pupil_center"]]).T,
            reference[f"trial{k}_responses"].T,
        )
        for k in range(3)
    ]


def near(found, expected, tolerance):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


# Of losses, gradient norms, masks and smoothed gradients: ten times the distance between the published code's float32
# and float64 runs (README 12) for our float32; that distance itself (with its two digits' rounding) for our float64.
FLOAT32 = {"a": (2e-6, 2e-3, 8e-5, 2e-3), "b": (4e-6, 2e-3, 4e-6, 2e-3)}
FLOAT64 = {"a": (1.8e-7, 1.3e-4, 7.4e-6, 1.5e-4), "b": (3.9e-7, 1.6e-4, 3.6e-7, 1.6e-4)}


@needs_shared("reference/alpha_mask_training.npz")
@pytest.mark.parametrize("bits", [32, 64])
def test_training_as_published(reference, bits):
    allowed = FLOAT32 if bits == 32 else {k: tuple(1.1 * x for x in v) for k, v in FLOAT64.items()}
    with jax.enable_x64(bits == 64):
        encoder, variables = load_published(SHARED / "reference/dwiseneuro_tiny.pth")
        dtype = np.dtype(f"float{bits}")
        variables = jax.tree.map(lambda x: jnp.asarray(x, dtype) if x.dtype.kind == "f" else x, variables)
        for name, (losses, norms, trained, smoothed) in allowed.items():
            start = reference[f"initial_mask_{name}"].reshape(-1, 64, 64)
            result = masks.alpha_training(
                encoder,
                variables,
                *zip(*published_trials(reference)),
                key=KEY,
                readout=int(reference["mouse_index"]),
                pairs=reference["pairs"],
                initial=start if len(start) > 1 else start[0],
            )
            assert result.alpha.dtype == dtype
            near(result.losses, reference[f"losses_{name}"], losses)
            near(result.gradient_norms, reference[f"gradnorms_{name}"], norms)
            near(result.steps, reference[f"masks_first_frame_{name}"], trained)
            frames = reference[f"mask_final_all_frames_{name}"]
            near(result.frames[: len(frames)], frames, trained)
            np.testing.assert_array_equal(result.alpha, result.steps[-1])
            gradients = np.diff(np.concatenate([start[:1], result.steps]), axis=0) / -10
            near(gradients, reference[f"mask_grad_smoothed_{name}"], smoothed)
            np.testing.assert_array_equal(result.steps[2], result.steps[1])  # a trial before itself


@needs_shared("reference/alpha_mask_training.npz")
def test_gradient_before_the_blur_and_its_kernel(reference):
    encoder, variables = load_published(SHARED / "reference/dwiseneuro_tiny.pth")
    window = slice(masks.MASK_SKIP, masks.MASK_SKIP + 32)
    trials = [[series[window] for series in one] for one in published_trials(reference)]
    gradient = jax.jit(lambda *arrays: masks.mask_gradient((encoder, 0), variables, *arrays)[0])
    for name in ("a", "b"):
        start = np.broadcast_to(reference[f"initial_mask_{name}"].reshape(-1, 64, 64), (32, 64, 64))
        first = reference[f"masks_first_frame_{name}"]
        for step, (one, other) in enumerate(reference["pairs"]):
            # All frames move alike: each is its start plus what the first has moved.
            mask = start + (first[step - 1] - start[0] if step else 0)
            found = gradient(jnp.asarray(mask, jnp.float32), *trials[one], trials[other][0])
            expected = reference[f"mask_grad_mean_{name}"][step]
            scale = np.abs(reference[f"mask_grad_mean_{name}"]).max()
            assert np.abs(np.asarray(found) - expected).max() <= 2e-3 * scale
    spike = np.zeros((31, 31))
    spike[15, 15] = 1
    with jax.enable_x64(True):
        spread = np.asarray(masks.blur(jnp.asarray(spike)))
    np.testing.assert_allclose(spread.sum(0)[8:23], reference["blur_kernel_1d"], atol=1e-12)


@needs_shared("reference/alpha_mask_training.npz")
def test_responses_to_the_blended_movie(reference):
    encoder, variables = load_published(SHARED / "reference/dwiseneuro_tiny.pth")
    trials = published_trials(reference)
    (one, behaviour, _), (other, _, _) = (trials[k] for k in reference["pairs"][0])
    frames = masks.MASK_SKIP + np.arange(32).reshape(16, 2).T  # two stacks, of even and odd frames
    shown = [np.pad(movie, ((0, 0), (14, 14), (0, 0)))[frames] for movie in (one, other)]
    for name, tolerance in (("a", 2e-5), ("b", 8e-6)):
        alpha = np.clip(reference[f"initial_mask_{name}"].reshape(-1, 64, 64), 0, 1)
        alpha = np.broadcast_to(alpha, (32, 64, 64))[frames - masks.MASK_SKIP]
        movie = shown[0] * alpha + shown[1] * (1 - alpha)
        found = jax.jit(encoder.apply)(variables, make_inputs(movie, behaviour[frames], encoder.canvas))
        found = np.asarray(found).swapaxes(0, 1).reshape(32, -1).T
        near(found, reference[f"responses_masked_step0_{name}"], tolerance)


def test_named_masks_are_thresholds_of_the_unclipped_alpha():
    alpha = np.array([[-0.2, 0.0, 0.49], [0.5, 0.99, 1.0], [1.3, 0.2, -0.01]], np.float32)
    for variant, expected in (
        ("published", [[0, 0, 0], [1, 1, 1], [1, 0, 0]]),
        ("strict", [[0, 0, 0], [0, 0, 1], [1, 0, 0]]),
        ("published_none", [[0, 1, 1], [1, 1, 1], [1, 1, 0]]),
    ):
        np.testing.assert_array_equal(masks.update_mask(alpha, variant), np.array(expected, bool))
    np.testing.assert_array_equal(masks.update_mask(alpha), masks.update_mask(alpha, "published"))
    np.testing.assert_array_equal(masks.evaluation_mask(alpha), masks.update_mask(alpha, "strict"))
    # On the screen, which lies in the middle of the canvas.
    np.testing.assert_array_equal(masks.evaluation_mask(alpha, (1, 3)), [[False, False, True]])
    for match, call in (
        ("variant: expected one of published", lambda: masks.update_mask(alpha, "loose")),
        ("alpha: expected finite", lambda: masks.update_mask(alpha[0])),
        ("alpha: expected finite", lambda: masks.update_mask(alpha > 0)),
        ("alpha: expected finite", lambda: masks.evaluation_mask(alpha * np.nan)),
        ("alpha: expected at least the screen", lambda: masks.evaluation_mask(alpha, (4, 3))),
        ("threshold: expected at most", lambda: masks.update_mask(alpha - 2)),
        ("threshold: expected at most", lambda: masks.evaluation_mask(alpha.T[:, ::-1], (1, 1))),
    ):
        with pytest.raises(NeuroreconError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)


@needs_shared("reference/bauer_reconstruction.npz")
def test_named_masks_have_the_published_sizes():
    with np.load(SHARED / "reference/bauer_reconstruction.npz") as stored:
        alpha = stored["mask"]
    assert masks.update_mask(alpha).sum() == 484 and masks.update_mask(alpha, "strict").sum() == 100


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
