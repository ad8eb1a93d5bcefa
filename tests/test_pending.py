"""Values worked out piece by piece, and their statistics, against working them out at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neurorecon.encoders import DwiseNeuro, depthwise
from neurorecon.encoders.depthwise import depthwise_spatial, depthwise_temporal
from neurorecon.encoders.pending import (
    Pending,
    covariance_of,
    known,
    moments_of,
    with_covariance,
    with_moments,
)

QUICK = {"xla_backend_optimization_level": 0}  # compiled once and run once


def function(constants, parts):
    """Two channels in, five out; the second part is the same for all places of an item."""
    kernel, (offset, spatial) = constants
    seen, more = parts
    return depthwise_spatial(jnp.sin(seen @ kernel + offset) + more, spatial, 2)


def over_time(kernel, x):
    return depthwise_temporal(jnp.tanh(x), kernel)


def drawn(dtype, *shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(1.0, 1.0, size), dtype) for size in shapes]


def by_hand(values, of_covariance):
    flat = values.reshape(-1, values.shape[-1])
    apart = flat - flat.mean(0)
    return flat.mean(0), apart.T @ apart / len(flat) if of_covariance else (apart**2).mean(0)


def compare(found, expected, arguments, tolerance):
    """Values and gradients; every output pulls with weights of its own."""

    def total(function, arguments):
        outputs = [out for out in jax.tree.leaves(function(arguments)) if out is not None]
        weights = [np.random.default_rng(k).normal(size=out.shape) for k, out in enumerate(outputs)]
        return sum(jnp.vdot(jnp.asarray(w, out.dtype), out) for w, out in zip(weights, outputs)), outputs

    results = [
        jax.jit(jax.value_and_grad(lambda a, f=f: total(f, a), has_aux=True), compiler_options=QUICK)(arguments)
        for f in (found, expected)
    ]
    for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(1.0, float(jnp.abs(theirs).max())))


# One item a piece, or three; all of them are treated by automatic differentiation.
@pytest.mark.parametrize(
    ("taken", "of_covariance", "cached", "wide"),
    [
        (with_covariance, True, 1, True),
        (with_covariance, True, 10**9, True),
        (covariance_of, True, 100, True),
        (with_moments, False, 100, True),
        (with_moments, False, 100, False),
        (moments_of, False, 1, True),
    ],
)
def test_statistics_and_gradients(taken, of_covariance, cached, wide, monkeypatch):
    monkeypatch.setattr(depthwise, "_CACHED", cached)

    def expected(arguments):
        values = function(*arguments)
        statistics = by_hand(values, of_covariance)
        return (values, statistics) if taken in (with_covariance, with_moments) else statistics

    shapes = ((2, 5), (5,), (3, 3, 5), (6, 4, 5, 2), (6, 1, 1, 5))
    with jax.enable_x64(wide):
        kernel, offset, spatial, seen, more = drawn(np.float64 if wide else np.float32, *shapes)
        arguments = ((kernel, (offset, spatial)), (seen, more))
        compare(lambda a: taken(Pending(function, *a), 30), expected, arguments, 1e-12 if wide else 3e-6)


@pytest.mark.parametrize(("cached", "pieces"), [(1, 18), (60, 6), (120, 3)])
def test_rows_by_themselves(cached, pieces, monkeypatch):
    """Windows of 120 numbers, in six rows."""
    monkeypatch.setattr(depthwise, "_CACHED", cached)
    seen = []

    def traced(kernel, x):
        seen.append(x.shape[0] * x.shape[2])
        return over_time(kernel, x)

    with jax.enable_x64(True):
        arguments = tuple(drawn(np.float64, (3, 2), (3, 5, 6, 2, 2)))

        def expected(arguments):
            values = over_time(*arguments)
            return values, by_hand(values, False)

        compare(lambda a: with_moments(Pending(traced, *a), 120, rows_alone=True), expected, arguments, 1e-12)
    assert {18 // rows for rows in seen} == {pieces}


def test_half_precision(monkeypatch):
    """Values in bfloat16, statistics in float32."""
    monkeypatch.setattr(depthwise, "_CACHED", 100)
    (x,) = drawn(jnp.bfloat16, (6, 4, 5, 3))
    values, (mean, variance) = with_moments(Pending(lambda factor, x: factor * x, jnp.bfloat16(2.0), x), 60)
    assert values.dtype == jnp.bfloat16 and mean.dtype == variance.dtype == jnp.float32
    exact = 2.0 * np.asarray(x, np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(variance, exact.var((0, 1, 2)), rtol=1e-5)


def test_values_that_are_not_kept_take_no_memory(monkeypatch):
    monkeypatch.setattr(depthwise, "_CACHED", 1)
    x, kernel = drawn(np.float32, (256, 8, 8, 2), (2, 32))

    def needed(taken):
        def loss(x, kernel):
            out = taken(Pending(lambda kernel, x: jnp.sin(x @ kernel), kernel, x), 1)
            return sum(jnp.sum(y**2) for y in jax.tree.leaves(out))

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = 4 * 256 * 8 * 8 * 32
    assert needed(covariance_of) < whole / 4 and needed(moments_of) < whole / 4
    assert needed(with_moments) > whole


def test_settled(monkeypatch):
    """Off the CPU values are there at once, so that nothing is worked out twice."""
    pending = Pending(lambda factor, x: factor * x, jnp.float32(2.0), jnp.ones((2, 3)))
    assert pending.settled() is pending
    monkeypatch.setattr(depthwise.jax, "default_backend", lambda: "gpu")
    np.testing.assert_array_equal(pending.settled().parts, 2 * np.ones((2, 3)))
    np.testing.assert_array_equal(known(jnp.arange(3.0)).values(), np.arange(3.0))


def test_a_training_step_of_the_encoder(monkeypatch):
    """In many pieces and as on an accelerator: the same outputs, statistics and gradients."""
    encoder = DwiseNeuro(
        num_neurons=(3,),
        canvas=(6, 7),
        window_frames=4,
        core_features=(3, 4),
        spatial_strides=(2, 1),
        expansion_ratio=2,
        se_reduce_ratio=2,
        cortex_features=(4,),
        drop_rate=0.0,
        drop_path_rate=0.6,
    )
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        inputs = jnp.asarray(rng.uniform(0, 255, (4, 4, 6, 7, 5)))
        variables = jax.eval_shape(encoder.init, jax.random.key(0), inputs)
        variables = jax.tree.map(
            lambda x: jnp.asarray(rng.uniform(0.5, 1.5, x.shape), np.float64 if x.dtype == np.float32 else x.dtype),
            variables,
        )

        def results():
            def loss(inputs, params):
                options = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(1)}}
                out, changed = encoder.apply({**variables, "params": params}, inputs, **options)
                return jnp.sum(jnp.sin(out)), changed

            step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), compiler_options=QUICK)
            return jax.tree.leaves(step(inputs, variables["params"]))

        monkeypatch.setattr(depthwise, "_CACHED", 100)
        pieces = results()
        monkeypatch.setattr(depthwise.jax, "default_backend", lambda: "gpu")
        for ours, theirs in zip(pieces, results(), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * max(1e-3, float(np.abs(theirs).max())))
