"""DwiseNeuro against independent computations; another file compares it with the published code."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from neurorecon.encoders import dwiseneuro as d
from neurorecon.encoders.depthwise import depthwise_spatial, depthwise_temporal
from neurorecon.encoders.dwiseneuro import DwiseNeuro
from neurorecon.encoders.dwiseneuro_block import subsample_nearest, tile_channels
from neurorecon.encoders.folding import fold_batch_norm
from neurorecon.encoders.position import inverse_frequencies, position_code
from neurorecon.errors import NeuroreconError

QUICK = {"xla_backend_optimization_level": 0}
SMALL = DwiseNeuro(
    num_neurons=(7, 4),
    canvas=(9, 11),
    window_frames=5,
    core_features=(5, 8, 6),
    spatial_strides=(2, 1, 3),
    spatial_kernel=5,
    temporal_kernel=3,
    expansion_ratio=2,
    se_reduce_ratio=3,
    cortex_features=(8, 12),
    groups=2,
    softplus_beta=0.5,
    drop_rate=0.0,
    drop_path_rate=0.0,
)
TINY = SMALL.clone(
    canvas=(5, 6),
    window_frames=3,
    core_features=(4, 6),
    spatial_strides=(2, 1),
    spatial_kernel=3,
    cortex_features=(8,),
)


def quick(function, *arguments):
    """Runs a function compiled with little optimisation: these tests compile once and run once."""
    return jax.jit(function).lower(*arguments).compile(compiler_options=QUICK)(*arguments)


def random_variables(encoder: DwiseNeuro, seed: int, dtype=np.float32):
    """Variables with no value left at its neutral initial one."""
    rng = np.random.default_rng(seed)
    inputs = jax.ShapeDtypeStruct((1, encoder.window_frames, *encoder.canvas, encoder.in_channels), jnp.float32)
    shapes = traverse_util.flatten_dict(jax.eval_shape(encoder.init, jax.random.key(0), inputs))
    flat = {}
    for path, shape in shapes.items():
        value = rng.normal(0, 0.4, shape.shape)
        if path[-1] in ("var", "scale"):
            value = rng.uniform(0.5, 1.5, shape.shape)
        if path[-1] == "inv_freq":
            value = inverse_frequencies(encoder.core_features[int(path[1].removeprefix("block"))])
        flat[path] = np.zeros((), np.int32) if path[-1] == "count" else np.asarray(value, dtype)
    return jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(flat))


def random_inputs(encoder: DwiseNeuro, num_windows: int, seed: int, dtype=np.float32):
    shape = (num_windows, encoder.window_frames, *encoder.canvas, encoder.in_channels)
    return np.random.default_rng(seed).normal(0, 2, shape).astype(dtype)


@pytest.mark.parametrize(("size", "stride", "shape"), [(3, 1, (7, 9)), (5, 2, (9, 8)), (1, 3, (7, 7))])
def test_spatial_convolution_is_a_depthwise_convolution(size, stride, shape):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 3, *shape, 4)), rng.normal(size=(size, size, 4))
    with jax.enable_x64(True):
        ours = depthwise_spatial(jnp.asarray(x), jnp.asarray(kernel), stride)
        xla = jax.lax.conv_general_dilated(
            jnp.asarray(x).reshape(6, *shape, 4),
            jnp.asarray(kernel)[:, :, None],
            (stride, stride),
            [(size // 2, size // 2)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4,
        )
    assert ours.shape[2:4] == tuple(math.ceil(n / stride) for n in shape)
    np.testing.assert_allclose(ours.reshape(xla.shape), xla, atol=1e-13)


def test_temporal_convolution_is_not_causal_and_pads_with_zeros():
    x, kernel = np.zeros((1, 6, 1, 1, 2)), np.arange(1.0, 11.0).reshape(5, 2)
    x[0, 4] = 1.0
    out = depthwise_temporal(jnp.asarray(x), jnp.asarray(kernel))[0, :, 0, 0]
    np.testing.assert_array_equal(out[:, 0], [0, 0, 9, 7, 5, 3])


def test_groups_see_their_own_channels():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 3, 12)), rng.normal(size=(3, 4, 5))
    out = d.grouped_pointwise(jnp.asarray(x), jnp.asarray(kernel))
    expected = np.concatenate([x[..., 4 * g : 4 * g + 4] @ kernel[g] for g in range(3)], axis=-1)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_shortcut_takes_the_published_rows_and_channels():
    x = jnp.arange(9.0)[:, None, None] * jnp.ones((1, 8, 1)) + 100 * jnp.arange(8.0)[None, :, None]
    out = subsample_nearest(x, 2)
    # 9 rows to 5: floor(i * 1.8); 8 columns to 4: every second.
    np.testing.assert_array_equal(out[:, 0, 0], [0, 1, 3, 5, 7])
    np.testing.assert_array_equal(out[0, :, 0], [0, 200, 400, 600])
    np.testing.assert_array_equal(tile_channels(jnp.arange(3.0), 7), [0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(tile_channels(jnp.arange(3.0), 2), [0, 1])


def test_position_code_by_its_formula():
    channels, shape = 8, (3, 4, 5)
    frequencies = inverse_frequencies(channels)
    per_axis = 2 * math.ceil(channels / 6)
    assert len(frequencies) == per_axis // 2
    code = np.asarray(position_code(jnp.asarray(frequencies), (*shape, channels)))
    expected = np.zeros((*shape, 3 * per_axis))
    for place in np.ndindex(*shape):
        for axis in range(3):
            for i in range(per_axis // 2):
                phase = place[axis] * 10000 ** (-2 * i / per_axis)
                expected[(*place, axis * per_axis + i)] = math.sin(phase)
                expected[(*place, axis * per_axis + per_axis // 2 + i)] = math.cos(phase)
    np.testing.assert_allclose(code, expected[..., :channels], atol=1e-6)


@pytest.mark.parametrize("beta", [0.07, 1.0, 30.0])
def test_softplus_at_every_magnitude(beta):
    x = np.concatenate([-np.logspace(-6, 6, 49), [0.0], np.logspace(-6, 6, 49)])
    with jax.enable_x64(True):
        values, slopes = jax.vmap(jax.value_and_grad(lambda v: d.softplus(v, beta)))(jnp.asarray(x))
    expected = np.where(beta * x > 20, x, np.logaddexp(0, beta * x) / beta)
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    assert np.isfinite(slopes).all() and (slopes >= 0).all() and (slopes <= 1).all()
    slopes32 = jax.vmap(jax.grad(lambda v: d.softplus(v, beta)))(jnp.asarray(x, jnp.float32))
    assert np.isfinite(slopes32).all()


def test_batch_norm_statistics_by_hand():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (4, 5, 3))
    norm = d.BatchNorm()
    with jax.enable_x64(True):
        variables = {
            "params": {"scale": jnp.asarray([1.0, -2.0, 0.5]), "bias": jnp.asarray([0.0, 1.0, 2.0])},
            "batch_stats": {
                "mean": jnp.asarray([1.0, 2, 3]),
                "var": jnp.asarray([4.0, 5, 6]),
                "count": jnp.asarray(7, jnp.int32),
            },
        }
        out, updated = norm.apply(variables, jnp.asarray(x), True, mutable=["batch_stats"])
        evaluated = norm.apply(variables, jnp.asarray(x), False)
    flat = x.reshape(-1, 3)
    mean, biased = flat.mean(0), flat.var(0)
    scale, bias = np.array([1, -2, 0.5]), np.array([0, 1, 2])
    np.testing.assert_allclose(out, (x - mean) / np.sqrt(biased + 1e-5) * scale + bias, atol=1e-12)
    np.testing.assert_allclose(evaluated, (x - [1, 2, 3]) / np.sqrt([4 + 1e-5, 5 + 1e-5, 6 + 1e-5]) * scale + bias)
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.9 * np.array([1, 2, 3]) + 0.1 * mean)
    np.testing.assert_allclose(stats["var"], 0.9 * np.array([4, 5, 6]) + 0.1 * flat.var(0, ddof=1))
    assert int(stats["count"]) == 8


def test_one_value_per_channel_is_refused_in_training():
    with pytest.raises(NeuroreconError, match="more than one value"):
        d.BatchNorm().init_with_output(jax.random.key(0), jnp.ones((1, 3)), True)


def test_shapes_of_odd_sizes_and_all_readouts():
    inputs = random_inputs(TINY, 2, 0)
    variables = jax.jit(TINY.init)(jax.random.key(0), inputs)
    outputs = quick(lambda v, x: TINY.apply(v, x, readout=None), variables, inputs)
    assert [o.shape for o in outputs] == [(2, 3, 7), (2, 3, 4)]
    second = quick(lambda v, x: TINY.apply(v, x, readout=1), variables, inputs)
    np.testing.assert_allclose(second, outputs[1], rtol=1e-5)
    assert int(variables["batch_stats"]["stem"]["norm"]["count"]) == 0
    kernel = variables["params"]["readout0"]["conv"]
    assert kernel.shape == (2, 4, 4) and abs(float(kernel.std()) - math.sqrt(2 / 4)) < 0.25


def test_gradients_agree_with_finite_differences_in_float64():
    with jax.enable_x64(True):
        variables = random_variables(TINY, 1, np.float64)
        inputs = random_inputs(TINY, 2, 2, np.float64)

        def loss(inputs, params, train):
            out, _ = TINY.apply(
                {**variables, "params": params}, inputs, readout=None, train=train, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(out[0])) + jnp.sum(out[1] ** 2)

        for train in (False, True):
            lowered = jax.jit(jax.value_and_grad(lambda x, p, t=train: loss(x, p, t), argnums=(0, 1))).lower(
                inputs, variables["params"]
            )
            function = lowered.compile(compiler_options=QUICK)
            value, gradient = function(inputs, variables["params"])
            assert value.dtype == np.float64
            rng = np.random.default_rng(3)
            for argument in (0, 1):
                point = (inputs, variables["params"])
                leaves, tree = jax.tree.flatten(point[argument])
                step = tree.unflatten([rng.normal(size=leaf.shape) for leaf in leaves])
                slope = sum(jax.tree.leaves(jax.tree.map(lambda g, s: jnp.vdot(g, s), gradient[argument], step)))
                ends = []
                for sign in (-1, 1):
                    moved = list(point)
                    moved[argument] = jax.tree.map(lambda a, s, sign=sign: a + sign * 1e-6 * s, point[argument], step)
                    ends.append(function(*moved)[0])
                np.testing.assert_allclose((ends[1] - ends[0]) / 2e-6, slope, rtol=1e-5)


def test_gradients_stay_finite_at_extreme_inputs():
    variables = random_variables(SMALL, 1)
    gradient = jax.jit(jax.grad(lambda x: SMALL.apply(variables, x).sum()))
    for magnitude in (0.0, 1e-6, 1e2, 1e6):
        assert np.isfinite(gradient(jnp.asarray(magnitude * random_inputs(SMALL, 1, 4)))).all()


def test_folded_encoder_gives_the_same_outputs():
    variables = random_variables(SMALL, 5)
    inputs = random_inputs(SMALL, 2, 6)
    folded, folded_variables = fold_batch_norm(SMALL, variables)
    expected = quick(lambda v, x: SMALL.apply(v, x, readout=None), variables, inputs)
    found = quick(lambda v, x: folded.apply(v, x, readout=None), folded_variables, inputs)
    for ours, theirs in zip(found, expected):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * float(jnp.abs(theirs).max()))
    initial = jax.eval_shape(folded.init, jax.random.key(0), inputs)
    assert jax.tree.map(jnp.shape, initial) == jax.tree.map(jnp.shape, folded_variables)
    with pytest.raises(NeuroreconError, match="folded encoder can't be trained"):
        folded.apply(folded_variables, inputs, train=True)
    with pytest.raises(NeuroreconError, match="unfolded"):
        fold_batch_norm(folded, folded_variables)


def test_recomputed_activations_change_no_gradient():
    small = SMALL.clone(core_features=(5, 6), spatial_strides=(2, 1), drop_rate=0.0, drop_path_rate=0.0)
    variables = random_variables(small, 5)
    inputs = jnp.asarray(random_inputs(small, 1, 6))

    def gradient(encoder):
        def loss(params):
            out, _ = encoder.apply({**variables, "params": params}, inputs, train=True, mutable=["batch_stats"])
            return out.sum()

        return jax.tree.leaves(quick(jax.grad(loss), variables["params"]))

    kept = gradient(small)
    largest = max(float(jnp.abs(x).max()) for x in kept)
    for again, expected in zip(gradient(small.clone(remat=True)), kept):
        np.testing.assert_allclose(again, expected, rtol=1e-4, atol=1e-5 * largest)


def test_stochastic_depth_drops_whole_windows_and_keeps_the_mean():
    layer = d.CortexLayer(6, 2, drop_path_rate=0.25)
    inputs = np.random.default_rng(0).normal(size=(4000, 1, 6)).astype(np.float32)
    variables = layer.init(jax.random.key(0), inputs[:2], False)

    def branch(rate):
        module = d.CortexLayer(6, 2, drop_path_rate=rate)
        out, _ = module.apply(variables, inputs, True, rngs={"dropout": jax.random.key(1)}, mutable=["batch_stats"])
        return np.asarray(out)

    full, dropped = branch(0.0), branch(0.25)
    alone, _ = d.BatchNorm().apply(
        {c: variables[c]["shortcut_norm"] for c in variables}, inputs, True, mutable=["batch_stats"]
    )
    ratio = (dropped - alone) / (full - alone)
    gone = np.abs(dropped - alone).max(axis=(1, 2)) < 1e-6
    assert abs(gone.mean() - 0.25) < 0.03
    np.testing.assert_allclose(np.median(ratio[~gone]), 1 / 0.75, rtol=1e-3)


def test_channel_dropout_is_the_same_at_all_times_and_needs_a_key():
    readout = d.Readout(8, 1, 1.0, drop_rate=0.5)
    inputs = jnp.ones((3, 6, 40))
    variables = readout.init(jax.random.key(0), inputs, False)
    out = readout.apply(variables, inputs, True, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_allclose(out, jnp.broadcast_to(out[:, :1], out.shape), rtol=1e-5)
    assert float(jnp.abs(out[0] - out[1]).max()) > 1e-3
    with pytest.raises(Exception, match="dropout"):
        readout.apply(variables, inputs, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_neurons": ()}, "num_neurons"),
        ({"spatial_strides": (1, 2)}, "one stride per core feature"),
        ({"spatial_kernel": 4}, "odd"),
        ({"temporal_kernel": 2}, "odd"),
        ({"se_reduce_ratio": 11}, "se_reduce_ratio"),
        ({"groups": 5}, "divisor"),
        ({"drop_rate": 1.0}, "drop_rate"),
        ({"softplus_beta": 0.0}, "softplus_beta"),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes, message):
    with pytest.raises(NeuroreconError, match=message) as caught:
        SMALL.clone(**changes).init(jax.random.key(0), random_inputs(SMALL, 1, 0))
    assert "\n" not in str(caught.value)


def test_wrong_inputs_are_named():
    variables = random_variables(SMALL, 0)
    with pytest.raises(NeuroreconError, match=r"inputs: expected \(window, time, height, width, 5\)"):
        SMALL.apply(variables, random_inputs(SMALL, 1, 0)[..., :3])
    with pytest.raises(NeuroreconError, match="readout: expected 0 to 1"):
        SMALL.apply(variables, random_inputs(SMALL, 1, 0), readout=2)
