"""DwiseNeuro's core with Gaussian readouts, and what lets either readout learn from little."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neurorecon.encoders import predict_trial
from neurorecon.encoders.dwiseneuro import DwiseNeuro
from neurorecon.encoders.folding import fold_batch_norm
from neurorecon.encoders.published import export_published
from neurorecon.encoders.stem import Stem
from neurorecon.errors import NeuroreconError
from neurorecon.training.initialise import start_from_data
from neurorecon.training.optimiser import make_optimiser
from neurorecon.training.settings import TrainingSettings

ENCODER = DwiseNeuro(
    num_neurons=(3, 4),
    canvas=(12, 16),
    screen=(12, 16),
    window_frames=6,
    frame_step=2,
    core_features=(4, 6),
    spatial_strides=(2, 1),
    expansion_ratio=2,
    se_reduce_ratio=4,
    cortex_features=(8,),
    readout_kind="gaussian",
)
SMALL = ENCODER.clone(
    stem_patch=2,
    stem_kernel=3,
    spatial_strides=(1, 1),
    behaviour_at="readout",
    readout_lag=2,
    stimulus_mean=120.0,
    stimulus_std=60.0,
    behaviour_mean=(1.0, 2.0, 3.0, 4.0),
    behaviour_std=(2.0, 2.0, 4.0, 4.0),
)


@dataclasses.dataclass
class Shown:
    """As much of a prepared recording as a start from data asks for."""

    responses: np.ndarray
    frame_shape: tuple[int, int] = (12, 16)

    @property
    def num_neurons(self):
        return self.responses.shape[1]

    def trial_ids(self, tier):
        del tier
        return ["0"]

    def target(self, trial_id):
        del trial_id
        return self


def variables_of(encoder):
    inputs = jnp.zeros((1, encoder.window_frames, *encoder.canvas, 5))
    return encoder.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, inputs)


def test_each_neuron_sees_its_own_place():
    variables = variables_of(ENCODER)
    positions = variables["params"]["readout0"]["position"]
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.uniform(0, 255, (2, 6, 12, 16, 5)), jnp.float32)
    moved = jax.tree.map(lambda x: x, variables)
    moved["params"]["readout0"]["position"] = positions.at[1].add(0.7)
    one, other = (np.asarray(ENCODER.apply(v, inputs, readout=0)) for v in (variables, moved))
    assert one.shape == (2, 6, 3) and (one > 0).all()
    changed = np.abs(one - other).max((0, 1)) > 1e-6
    np.testing.assert_array_equal(changed, [False, True, False])


def test_all_readouts_share_one_pass():
    variables = variables_of(ENCODER)
    inputs = jnp.asarray(np.random.default_rng(1).uniform(0, 255, (1, 6, 12, 16, 5)), jnp.float32)
    together = ENCODER.apply(variables, inputs, readout=None)
    assert [x.shape[-1] for x in together] == [3, 4]
    for readout, values in enumerate(together):
        np.testing.assert_array_equal(values, ENCODER.apply(variables, inputs, readout=readout))


@pytest.mark.parametrize("encoder", [ENCODER, SMALL], ids=["plain", "small"])
def test_folded_predicts_the_same(encoder):
    variables = jax.tree.map(lambda x: x + 0.1 if x.dtype == jnp.float32 else x, variables_of(encoder))
    inputs = jnp.asarray(np.random.default_rng(2).uniform(0, 255, (1, 6, 12, 16, 5)), jnp.float32)
    folded, folded_variables = fold_batch_norm(encoder, variables)
    np.testing.assert_allclose(
        folded.apply(folded_variables, inputs), encoder.apply(variables, inputs), rtol=2e-5, atol=1e-6
    )


def test_the_stem_sees_neighbouring_patches():
    stem = Stem(3, patch=2, kernel_size=3)
    x = jnp.asarray(np.random.default_rng(4).normal(size=(1, 2, 6, 8, 1)), jnp.float32)
    variables = stem.init(jax.random.key(0), x, False)
    out = np.asarray(stem.apply(variables, x, False))
    assert out.shape == (1, 2, 3, 4, 3)
    # Row and column 1 of the cells, taps row by row, pixels of a cell row by row.
    seen = np.asarray(x)[0, 1, 0:6, 0:6, 0].reshape(3, 2, 3, 2).transpose(0, 2, 1, 3).reshape(-1)
    kernel = np.asarray(variables["params"]["conv"]).reshape(-1, 3)
    np.testing.assert_allclose(out[0, 1, 1, 1], seen @ kernel / np.sqrt(1 + 1e-5), rtol=1e-5)


def test_behaviour_at_the_readout_changes_gain_and_baseline_alone():
    variables = variables_of(SMALL)
    inputs = jnp.asarray(np.random.default_rng(5).uniform(0, 255, (1, 6, 12, 16, 5)), jnp.float32)
    other = inputs.at[..., 2].add(3.0)
    np.testing.assert_array_equal(SMALL.apply(variables, inputs), SMALL.apply(variables, other))  # starts without
    params = variables["params"]
    gain = params["behaviour0"]["gain"]["kernel"].at[:, 1].set(0.7)
    moved = {**variables, "params": {**params, "behaviour0": {**params["behaviour0"], "gain": {"kernel": gain}}}}
    ratio = np.asarray(SMALL.apply(moved, inputs) / SMALL.apply(variables, inputs))
    np.testing.assert_allclose(ratio[..., [0, 2]], 1, rtol=1e-6)
    assert (np.abs(np.log(ratio)) <= 1 + 1e-6).all() and not np.allclose(ratio[..., 1], 1)


def test_a_lag_shows_the_readout_earlier_features():
    behaviour_free = SMALL.clone(behaviour_at="inputs")
    now, later = (behaviour_free.clone(readout_lag=lag) for lag in (0, 2))
    variables = variables_of(now)
    inputs = jnp.asarray(np.random.default_rng(6).uniform(0, 255, (1, 6, 12, 16, 5)), jnp.float32)
    a, b = (np.asarray(e.apply(variables, inputs)) for e in (now, later))
    np.testing.assert_allclose(b[:, 2:], a[:, :-2], rtol=1e-6)
    np.testing.assert_allclose(b[:, :2], np.repeat(a[:, :1], 2, axis=1), rtol=1e-6)


def test_statistics_of_the_training_trials_come_off_the_inputs():
    raw = jnp.asarray(np.random.default_rng(7).uniform(0, 255, (1, 6, 12, 16, 5)), jnp.float32)
    mean = jnp.asarray([SMALL.stimulus_mean, *SMALL.behaviour_mean])
    std = jnp.asarray([SMALL.stimulus_std, *SMALL.behaviour_std])
    plain = SMALL.clone(
        stimulus_mean=0.0, stimulus_std=1.0, behaviour_mean=(0.0,) * 4, behaviour_std=(1.0,) * 4, behaviour_at="inputs"
    )
    given = SMALL.clone(behaviour_at="inputs")
    variables = variables_of(given)
    np.testing.assert_allclose(
        given.apply(variables, raw), plain.apply(variables, (raw - mean) / std), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"canvas": (16, 16)}, "canvas: expected the screen"),
        ({"readout_kind": "other"}, "published or gaussian"),
        ({"readout_kind": "published", "stem_patch": 2}, "stem_patch: expected 1, as published"),
        ({"readout_lag": 6}, "readout_lag: expected 0 to 5 frames"),
        ({"behaviour_at": "core"}, "behaviour_at: expected inputs or readout"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(changes, message):
    encoder = ENCODER.clone(**changes)
    with pytest.raises(NeuroreconError, match=message) as told:
        variables_of(encoder)
    assert "\n" not in str(told.value)


def test_the_published_code_knows_no_gaussian_readout(tmp_path):
    with pytest.raises(NeuroreconError, match="readout_kind"):
        export_published(ENCODER, variables_of(ENCODER), tmp_path / "x.pth")


def test_the_published_readout_starts_at_the_mean_response():
    encoder = ENCODER.clone(readout_kind="published", num_neurons=(3,))
    means = np.asarray([0.2, 3.0, 90.0], np.float32)
    recording = Shown(np.tile(means, (5, 1)))
    variables = start_from_data(variables_of(encoder), [recording], encoder=encoder)
    readout = variables["params"]["readout0"]
    silent = {**variables["params"], "readout0": {**readout, "conv": jnp.zeros_like(readout["conv"])}}
    inputs = jnp.zeros((1, 6, 12, 16, 5))
    predicted = encoder.apply({**variables, "params": silent}, inputs, readout=0)
    np.testing.assert_allclose(np.asarray(predicted)[0, 0], means, rtol=1e-4)


def test_muon_moves_what_mixes_channels_and_the_readout_has_its_own_rate():
    encoder = ENCODER.clone(readout_kind="published", num_neurons=(3,))
    params = variables_of(encoder)["params"]
    settings = TrainingSettings(
        optimiser="muon", learning_rate=1e-3, kernel_rate=0.5, warmup_steps=0, readout_rate=8.0, weight_decay=0.0
    )
    gradient = jax.tree.map(jnp.ones_like, params)
    rule = make_optimiser(settings)
    updates, _ = rule.update(gradient, rule.init(params), params)

    def largest(*path):
        x = updates
        for name in path:
            x = x[name]
        return float(np.abs(x).max())

    adam = largest("block0", "spatial")
    for path in (("block0", "expand"), ("block0", "project"), ("stem", "conv"), ("cortex0", "conv")):
        assert largest(*path) > 20 * adam, path
    for path in (("block0", "squeeze_bias"), ("block0", "temporal"), ("stem", "norm", "scale")):
        assert largest(*path) == pytest.approx(adam, rel=1e-3), path
    for name in ("conv", "bias"):
        assert largest("readout0", name) == pytest.approx(8 * adam, rel=1e-3)


def test_fewer_windows_reach_every_frame_that_all_of_them_reach():
    encoder = ENCODER.clone(num_neurons=(3,))
    variables = variables_of(encoder)
    rng = np.random.default_rng(3)
    stimulus, behaviour = rng.uniform(0, 255, (37, 12, 16)), rng.normal(size=(37, 4))
    full, fewer = (predict_trial(encoder, variables, stimulus, behaviour, every=every) for every in (1, 7))
    np.testing.assert_array_equal((full > 0).all(1), (fewer > 0).all(1))
    assert (full > 0).all()
    np.testing.assert_array_equal(fewer[:2], full[:2])  # one window alone reaches them
    np.testing.assert_array_equal(predict_trial(encoder, variables, stimulus, behaviour, every=2), full)
    with pytest.raises(NeuroreconError, match="every: expected at least 1"):
        predict_trial(encoder, variables, stimulus, behaviour, every=0)
