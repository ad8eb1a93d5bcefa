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


def test_folded_predicts_the_same():
    variables = jax.tree.map(lambda x: x + 0.1 if x.dtype == jnp.float32 else x, variables_of(ENCODER))
    inputs = jnp.asarray(np.random.default_rng(2).uniform(0, 255, (1, 6, 12, 16, 5)), jnp.float32)
    folded, folded_variables = fold_batch_norm(ENCODER, variables)
    np.testing.assert_allclose(
        folded.apply(folded_variables, inputs), ENCODER.apply(variables, inputs), rtol=2e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "changes, message",
    [({"canvas": (16, 16)}, "canvas: expected the screen"), ({"readout_kind": "other"}, "published or gaussian")],
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
