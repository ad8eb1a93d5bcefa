"""The factorised encoder: shapes, causality, gradients, readouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neurorecon.encoders import Factorized
from neurorecon.encoders.gaussian_readout import GaussianReadout, mean_pool, space_to_depth
from neurorecon.errors import NeuroreconError
from tests.tiny_run import random_variables

ENCODER = Factorized(
    num_neurons=(4, 3),
    canvas=(7, 10),
    window_frames=8,
    frame_step=1,
    warmup_frames=4,
    features=(3, 4),
    spatial_kernels=(3, 2),
    temporal_kernels=(3, 2),
    strides=(2, 1),
    behaviour_std=(2.0, 2.0, 2.0, 2.0),
)


@pytest.fixture(scope="module")
def variables():
    return random_variables(ENCODER, 0)


def inputs(windows=2, time=8, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    movie = rng.uniform(0, 255, (windows, time, 7, 10, 1))
    behaviour = np.broadcast_to(rng.normal(size=(windows, time, 1, 1, 4)), (windows, time, 7, 10, 4))
    return jnp.asarray(np.concatenate([movie, behaviour], axis=-1), dtype)


apply = jax.jit(ENCODER.apply, static_argnames=("readout",))


def depth_to_space(x, patch, height, width):
    *lead, rows, columns, channels = x.shape
    x = x.reshape(*lead, rows, columns, patch, patch, channels // patch**2)
    x = np.moveaxis(x, -3, -4)
    return x.reshape(*lead, rows * patch, columns * patch, -1)[..., :height, :width, :]


@pytest.mark.parametrize("height, width, patch", [(4, 6, 2), (5, 7, 2), (7, 10, 3), (3, 3, 1)])
def test_space_to_depth_loses_nothing(height, width, patch):
    x = np.random.default_rng(0).normal(size=(2, 3, height, width, 2)).astype(np.float32)
    deep = np.asarray(space_to_depth(jnp.asarray(x), patch))
    assert deep.shape == (2, 3, -(-height // patch), -(-width // patch), 2 * patch**2)
    np.testing.assert_array_equal(depth_to_space(deep, patch, height, width), x)
    assert np.count_nonzero(deep) == x.size  # what is added is zero


def test_shape_sign_and_readouts(variables):
    first, second = apply(variables, inputs()), apply(variables, inputs(), readout=1)
    assert first.shape == (2, 8, 4) and second.shape == (2, 8, 3)
    assert (first > 0).all() and (second > 0).all() and np.isfinite(first).all()
    assert ENCODER.screen == (7, 10)
    changed = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 1.0 if path[1].key in ("readout1", "behaviour1", "log_scale1") else x, variables
    )
    np.testing.assert_array_equal(apply(changed, inputs()), first)
    assert not np.allclose(apply(changed, inputs(), readout=1), second)


def test_no_frame_sees_the_future_and_each_sees_warmup_frames_of_the_past(variables):
    before = apply(variables, inputs())
    changed = inputs().at[:, 4].set(inputs(seed=1)[:, 4])
    after = apply(variables, changed)
    np.testing.assert_array_equal(after[:, :4], before[:, :4])
    assert all(not np.allclose(after[:, t], before[:, t]) for t in range(4, 8))
    # History: (3 - 1) + (2 - 1) frames; behind it, nothing.
    shifted = apply(variables, inputs()[:, 3:])
    np.testing.assert_allclose(shifted[:, 3:], before[:, 6:], rtol=1e-5)
    assert not np.allclose(shifted[:, :3], before[:, 3:6], rtol=1e-3)


def test_any_window_length_and_windows_apart(variables):
    given = inputs(windows=3, time=13)
    whole = apply(variables, given)
    assert whole.shape == (3, 13, 4)
    np.testing.assert_allclose(apply(variables, given[1:2]), whole[1:2], rtol=1e-5)
    np.testing.assert_allclose(apply(variables, given[:, :5]), whole[:, :5], rtol=1e-5)


def test_every_input_and_every_parameter_of_the_readout_in_use_has_a_gradient(variables):
    def loss(params, given, readout):
        return (ENCODER.apply({**variables, "params": params}, given, readout=readout) ** 2).sum()

    slopes, pixels = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)(variables["params"], inputs(), 0)
    for path, slope in jax.tree_util.tree_leaves_with_path(slopes):
        name = jax.tree_util.keystr(path)
        other = path[0].key in ("readout1", "behaviour1", "log_scale1")
        assert np.isfinite(slope).all() and bool(np.abs(slope).max() > 0) != other, name
    assert np.abs(slopes["readout0"]["position"]).min() > 0  # every neuron, both directions
    assert (np.abs(pixels[..., 0]).max((0, 1)) > 0).all()  # every pixel, at some time
    assert np.abs(pixels[:, -1, ..., 1:]).max() > 0


def test_gradients_are_those_of_finite_differences():
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), random_variables(ENCODER, 1))
        given = inputs(windows=1, dtype=np.float64)
        rng = np.random.default_rng(3)
        draw = lambda x: jnp.asarray(rng.normal(size=x.shape))  # noqa: E731
        along = jax.tree.map(draw, variables["params"]), draw(given) * 50

        @jax.jit
        def loss(params, given):
            return jnp.log(ENCODER.apply({**variables, "params": params}, given)).sum()

        slopes = jax.jit(jax.grad(loss, argnums=(0, 1)))(variables["params"], given)
        for index in (0, 1):
            here = [variables["params"], given]
            move = lambda s: jax.tree.map(lambda x, a: x + s * a, here[index], along[index])  # noqa: B023, E731
            up, down = ([move(s) if i == index else x for i, x in enumerate(here)] for s in (1e-6, -1e-6))
            difference = float(loss(*up) - loss(*down)) / 2e-6
            dot = sum(
                float((s * a).sum()) for s, a in zip(jax.tree.leaves(slopes[index]), jax.tree.leaves(along[index]))
            )
            assert dot == pytest.approx(difference, rel=1e-5)


def test_readout_looks_where_its_position_says():
    readout = GaussianReadout(2)
    features = np.zeros((1, 1, 9, 15, 1), np.float32)
    features[0, 0, 1, 12] = 1.0
    params = {
        "position": jnp.array([[(1 - 4) / 4.5, (12 - 7) / 4.5], [0.0, 0.0]]),  # half the height is the unit
        "log_sigma": jnp.full(2, -3.0),
        "weights": jnp.ones((2, 1)),
        "bias": jnp.zeros(2),
    }
    there, elsewhere = readout.apply({"params": params}, jnp.asarray(features))[0, 0]
    assert there > 0.3 and elsewhere < 1e-6


def test_position_finds_a_spot_from_afar():
    """The expectation under the Gaussian has a gradient several pixels off."""
    features = np.zeros((1, 1, 9, 15, 1), np.float32)
    features[0, 0, 4, 10] = 1.0
    params = {"log_sigma": jnp.full(1, -2.0), "weights": jnp.ones((1, 1)), "bias": jnp.zeros(1)}

    def response(position):
        return GaussianReadout(1).apply({"params": {**params, "position": position}}, jnp.asarray(features)).sum()

    slope = jax.grad(response)(jnp.array([[0.0, 0.2]]))
    assert float(slope[0, 1]) > 0 and abs(float(slope[0, 0])) < 1e-3 * float(slope[0, 1])


def test_behaviour_counts_and_batch_statistics_move_only_in_training(variables):
    given = inputs()
    louder = given.at[..., 2].add(3.0)
    assert not np.allclose(apply(variables, louder), apply(variables, given))
    train = jax.jit(lambda v, x: ENCODER.apply(v, x, train=True, mutable=["batch_stats"]))
    out, changed = train(variables, given)
    assert not np.allclose(out, apply(variables, given))
    for new, old in zip(jax.tree.leaves(changed["batch_stats"]), jax.tree.leaves(variables["batch_stats"])):
        assert not np.array_equal(new, old)


def test_second_apply_compiles_nothing(variables):
    apply(variables, inputs())
    size = apply._cache_size()
    apply(variables, inputs(seed=5))
    assert apply._cache_size() == size
    # An equal encoder built again shares the code.
    assert ENCODER.clone() == ENCODER and hash(ENCODER.clone()) == hash(ENCODER)


def test_layers_of_unequal_number_are_an_error():
    encoder = ENCODER.clone(features=(3, 4, 5))
    with pytest.raises(NeuroreconError, match="one value for each layer"):
        jax.eval_shape(encoder.init, jax.random.key(0), inputs(windows=1))


def test_mean_pool_is_the_mean_of_the_pixels_that_exist_and_knows_its_centres():
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype(np.float32)
    pooled, rows, columns = mean_pool(jnp.asarray(x), 2)
    assert pooled.shape == (2, 3, 4, 3)
    np.testing.assert_allclose(pooled[:, 1, 2], x[:, 2:4, 4:6].mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(pooled[:, 2, 3], x[:, 4, 6], rtol=1e-5)
    np.testing.assert_allclose(rows, [0.5, 2.5, 4.0])
    np.testing.assert_allclose(columns, [0.5, 2.5, 4.5, 6.0])
    same, rows, columns = mean_pool(jnp.asarray(x), 1)
    np.testing.assert_array_equal(same, x)
    np.testing.assert_array_equal(rows, range(5))


def test_pooled_readout_looks_at_the_same_place():
    """A blob in the features moves the neuron most that looks where the blob is, pooled or not."""
    half = 6.0
    places = np.array([[-0.5, -0.5], [0.5, 0.8]], np.float32)
    features = np.zeros((1, 1, 12, 18, 1), np.float32)
    features[0, 0, 7:10, 11:14] = 1.0  # around row 8 = 5.5 + 0.5 * 6, column 12 to 13 = 8.5 + 0.8 * 6 = 13.3
    answers = []
    for pool in (1, 2):
        readout = GaussianReadout(2, pool)
        variables = readout.init(jax.random.key(0), jnp.asarray(features))
        params = {**variables["params"], "position": jnp.asarray(places), "weights": jnp.ones((2, 1))}
        params["log_sigma"] = jnp.full((2,), np.log(2.5 / half))
        answers.append(np.asarray(readout.apply({"params": params}, jnp.asarray(features)))[0, 0])
    assert all(a[1] > 20 * a[0] for a in answers)
    np.testing.assert_allclose(answers[0][1], answers[1][1], rtol=0.2)
