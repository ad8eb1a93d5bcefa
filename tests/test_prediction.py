"""The encoder's inputs and the prediction of a trial."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neurorecon.encoders import prediction
from neurorecon.encoders.canvas import crop_from_canvas, make_inputs, place_on_canvas
from neurorecon.encoders.prediction import predict_ensemble, predict_trial
from neurorecon.encoders.published import load_published
from neurorecon.errors import NeuroreconError
from tests.shared_data import SHARED, needs_shared


class Toy(nn.Module):
    """Output (window, time, 2): the mean of the window, and the running difference of the movie's mean."""

    num_neurons: tuple[int, ...] = (2,)
    canvas: tuple[int, int] = (6, 8)
    window_frames: int = 3
    frame_step: int = 2
    padding: float = 0.0
    time_invariant: bool = False

    @nn.compact
    def __call__(self, inputs, readout=0, train=False):
        gain = self.param("gain", nn.initializers.ones, ())
        level = inputs[..., 0].sum(axis=(2, 3)) * gain
        change = jnp.diff(level, axis=1, prepend=level[:, :1])
        mean = jnp.broadcast_to(level.mean(axis=1, keepdims=True), level.shape)
        return jnp.stack([mean, change], axis=-1)


VARIABLES = {"params": {"gain": jnp.asarray(1.0)}}


def trial(num_frames, seed=0):
    rng = np.random.default_rng(seed)
    stimulus = rng.uniform(0, 255, (num_frames, 4, 6)).astype(np.float32)
    return stimulus, rng.normal(size=(num_frames, 4)).astype(np.float32)


def test_inputs_hold_movie_and_behaviour():
    stimulus, behaviour = trial(5)
    inputs = np.asarray(make_inputs(stimulus, behaviour, (7, 9), padding=3.0))
    assert inputs.shape == (5, 7, 9, 5)
    # An odd rest goes below and to the right.
    np.testing.assert_array_equal(inputs[:, 1:5, 1:7, 0], stimulus)
    assert (inputs[..., 0] == 3.0).sum() == 5 * (7 * 9 - 4 * 6)
    for channel in range(4):
        expected = np.broadcast_to(behaviour[:, None, None, channel], (5, 7, 9))
        np.testing.assert_array_equal(inputs[..., channel + 1], expected)
    batched = make_inputs(stimulus[None, None], behaviour[None, None], (7, 9), padding=3.0)
    np.testing.assert_array_equal(batched[0, 0], inputs)


@pytest.mark.parametrize("screen", [(4, 6), (5, 6), (4, 9), (7, 9)])
def test_crop_inverts_place(screen):
    movie = np.random.default_rng(0).normal(size=(2, *screen)).astype(np.float32)
    placed = place_on_canvas(movie, (7, 9), 1.5)
    assert placed.shape == (2, 7, 9)
    np.testing.assert_array_equal(crop_from_canvas(placed, screen), movie)


def test_windows_are_averaged_by_how_many_contain_a_frame():
    stimulus, behaviour = trial(9)
    level = stimulus.sum(axis=(1, 2))
    total, count = np.zeros((9, 2)), np.zeros(9)
    for start in range(9 - 4):
        frames = start + np.array([0, 2, 4])
        window = level[frames]
        total[frames, 0] += window.mean()
        total[frames, 1] += np.diff(window, prepend=window[0])
        count[frames] += 1
    for chunk in (1, 2, 5, 64):
        found = predict_trial(Toy(), VARIABLES, stimulus, behaviour, chunk=chunk)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, total / count[:, None], rtol=1e-5, atol=1e-2)


def test_a_time_invariant_encoder_sees_each_frame_once_in_interleaved_streams():
    for num_frames in (1, 2, 7, 8):
        stimulus, behaviour = trial(num_frames)
        level = stimulus.sum(axis=(1, 2))
        change = np.concatenate([np.zeros(min(2, num_frames)), level[2:] - level[:-2]])
        found = predict_trial(Toy(time_invariant=True), VARIABLES, stimulus, behaviour)
        np.testing.assert_allclose(found[:, 1], change, atol=1e-2)


def test_a_trial_shorter_than_the_window_is_zero():
    stimulus, behaviour = trial(4)
    found = predict_trial(Toy(), VARIABLES, stimulus, behaviour)
    assert found.shape == (4, 2) and found.dtype == np.float32 and not found.any()
    stimulus, behaviour = trial(5)
    found = predict_trial(Toy(), VARIABLES, stimulus, behaviour)
    assert found[[0, 2, 4], 0].all() and not found[[1, 3]].any()


def test_a_second_call_compiles_nothing():
    stimulus, behaviour = trial(12)
    toy = Toy(canvas=(5, 7))
    predict_trial(toy, VARIABLES, stimulus, behaviour, chunk=4)
    compiled = prediction._apply._cache_size()
    predict_trial(Toy(canvas=(5, 7)), VARIABLES, stimulus + 1, behaviour, chunk=4)
    predict_trial(toy, VARIABLES, *trial(21), chunk=4)  # another length shares the window's program
    assert prediction._apply._cache_size() == compiled
    predict_trial(Toy(canvas=(5, 9)), VARIABLES, stimulus, behaviour, chunk=4)
    assert prediction._apply._cache_size() > compiled


def test_float64_is_kept():
    stimulus, behaviour = trial(7)
    with jax.enable_x64(True):
        variables = {"params": {"gain": jnp.asarray(1.0, jnp.float64)}}
        found = predict_trial(Toy(), variables, stimulus, behaviour)
        short = predict_trial(Toy(), variables, stimulus[:3], behaviour[:3])
    assert found.dtype == short.dtype == np.float64


def test_ensemble_is_the_mean():
    stimulus, behaviour = trial(8)
    double = {"params": {"gain": jnp.asarray(2.0)}}
    one, two = (predict_trial(Toy(), v, stimulus, behaviour) for v in (VARIABLES, double))
    found = predict_ensemble([(Toy(), VARIABLES), (Toy(), double)], stimulus, behaviour)
    np.testing.assert_allclose(found, (one + two) / 2, rtol=1e-6)
    with pytest.raises(NeuroreconError, match="at least one"):
        predict_ensemble([], stimulus, behaviour)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, b: (s[0], b), r"stimulus: expected \(time, height, width\)"),
        (lambda s, b: (s[:0], b[:0]), "not empty"),
        (lambda s, b: (s, b[:-1]), r"behaviour: expected \(time, 4\) = \(6, 4\)"),
        (lambda s, b: (s, b.T), "behaviour: expected"),
        (lambda s, b: (np.repeat(s, 3, axis=1), b), "at most"),
        (lambda s, b: (np.where(s == s[3, 0, 0], np.nan, s), b), "stimulus: .* frame 3"),
        (lambda s, b: (s, np.where(b == b[2, 1], np.inf, b)), "behaviour: .* frame 2"),
        (lambda s, b: (s.astype(str), b), "stimulus: expected numbers"),
    ],
)
def test_what_cannot_be_a_trial_is_named(change, message):
    stimulus, behaviour = change(*trial(6))
    with pytest.raises(NeuroreconError, match=message) as caught:
        predict_trial(Toy(), VARIABLES, stimulus, behaviour)
    assert "\n" not in str(caught.value)


def test_an_unknown_readout_is_named():
    with pytest.raises(NeuroreconError, match="readout: expected 0 to 0"):
        predict_trial(Toy(), VARIABLES, *trial(6), readout=1)
    with pytest.raises(NeuroreconError, match="chunk"):
        predict_trial(Toy(), VARIABLES, *trial(6), chunk=0)


@needs_shared("reference/predict_trial.npz")
def test_published_predictions_of_a_trial():
    with np.load(SHARED / "reference/predict_trial.npz") as arrays:
        reference = dict(arrays)
    stimulus = np.moveaxis(reference["video"], -1, 0)
    behaviour = np.concatenate([reference["behavior"], reference["pupil_center"]]).T
    inputs = make_inputs(stimulus, behaviour, (64, 64))
    np.testing.assert_array_equal(np.moveaxis(np.asarray(inputs), -1, 0), reference["inputs"])
    encoders = [load_published(SHARED / f"reference/dwiseneuro_{name}.pth") for name in ("tiny", "tiny2")]
    # Relative tolerances of the reference README, section 12.
    allowed = {("1", 0): 7e-6, ("1", 1): 5e-6, ("2", 0): 6e-6, ("2", 1): 8e-6}
    for readout in (0, 1):
        found = {str(k): predict_trial(e, v, stimulus, behaviour, readout) for k, (e, v) in enumerate(encoders, 1)}
        for name, responses in found.items():
            expected = reference[f"responses_model{name}_mouse{readout}"].T
            tolerance = allowed[name, readout] * np.abs(expected).max()
            np.testing.assert_allclose(responses, expected, rtol=0, atol=tolerance)
        expected = reference[f"responses_ensemble_mouse{readout}"].T
        together = predict_ensemble(encoders, stimulus, behaviour, readout)
        np.testing.assert_allclose(together, expected, rtol=0, atol=5e-6 * np.abs(expected).max())
