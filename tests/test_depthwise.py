"""Depthwise convolutions and their own gradients against automatic differentiation of XLA's grouped convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from neurorecon.encoders import depthwise
from neurorecon.encoders.depthwise import depthwise_spatial, depthwise_temporal, in_pieces

QUICK = {"xla_backend_optimization_level": 0}  # compiled once and run once

# (height, width), taps, stride: even and odd sizes, strides that don't divide them, strides beyond the taps
CASES = [
    ((6, 8), 3, 1),
    ((6, 8), 3, 2),
    ((5, 7), 3, 2),
    ((7, 4), 5, 3),
    ((5, 6), 1, 2),
    ((1, 5), 7, 2),
]


def grouped(x, kernel, strides):
    """(batch, rows, columns, channel), kernel (row, column, channel)."""
    padding = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def spatial_of_xla(x, kernel, stride):
    out = grouped(x.reshape(-1, *x.shape[2:]), kernel, (stride, stride))
    return out.reshape(*x.shape[:2], *out.shape[1:])


def temporal_of_xla(x, kernel):
    flat = x.reshape(*x.shape[:2], -1, x.shape[-1])
    return grouped(flat, kernel[:, None], (1, 1)).reshape(x.shape)


def values_and_gradients(function, x, kernel):
    def all_three(x, kernel):
        out, backward = jax.vjp(function, x, kernel)
        pull = np.random.default_rng(1).normal(size=out.shape)
        return out, *backward(jnp.asarray(pull, out.dtype))

    return jax.jit(all_three).lower(x, kernel).compile(compiler_options=QUICK)(x, kernel)


def drawn(shape, kernel_shape, dtype):
    rng = np.random.default_rng(0)
    return (jnp.asarray(rng.normal(size=size), dtype) for size in (shape, kernel_shape))


def assert_same(function, reference, shape, kernel_shape):
    for dtype, tolerance in ((jnp.float64, 1e-12), (jnp.float32, 1e-4)):
        with jax.enable_x64(dtype == jnp.float64):
            x, kernel = drawn(shape, kernel_shape, dtype)
            found = values_and_gradients(function, x, kernel)
            for ours, theirs in zip(found, values_and_gradients(reference, x, kernel)):
                assert ours.dtype == dtype and ours.shape == theirs.shape
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize(("size", "taps", "stride"), CASES)
def test_spatial(size, taps, stride, backend, monkeypatch):
    monkeypatch.setattr(depthwise.jax, "default_backend", lambda: backend)
    assert_same(
        lambda x, k: depthwise_spatial(x, k, stride),
        lambda x, k: spatial_of_xla(x, k, stride),
        (2, 3, *size, 4),
        (taps, taps, 4),
    )


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize(("frames", "taps"), [(6, 5), (2, 5), (4, 1)])
def test_temporal(frames, taps, backend, monkeypatch):
    monkeypatch.setattr(depthwise.jax, "default_backend", lambda: backend)
    assert_same(depthwise_temporal, temporal_of_xla, (2, frames, 3, 2, 4), (taps, 4))


def test_frozen_kernels_cost_nothing():
    """Inside device loops too, the compiled gradient of the input alone sums over no places of the input."""
    x, kernel = drawn((2, 3, 6, 8, 4), (3, 3, 4), jnp.float32)

    def total(x, kernel):
        return jnp.sum(depthwise_spatial(x, kernel, 2) ** 2)

    def compiled(arguments):
        def step(i, carry):
            slopes = lax.map(lambda y: jax.grad(total, arguments)(y, kernel), carry)
            slopes = slopes if isinstance(slopes, tuple) else (slopes, 0.0)
            return carry - 0.1 * slopes[0] + jnp.sum(slopes[1])

        return jax.jit(lambda x: lax.fori_loop(0, 2, step, x)).lower(x[None]).compile().as_text()

    assert " reduce(" in compiled((0, 1))  # what the next line looks for is there when it's asked for
    assert " reduce(" not in compiled(0)


def test_works_under_vmap_and_twice():
    x, kernel = drawn((2, 3, 5, 6, 4), (3, 3, 4), jnp.float32)

    def total(x, kernel):
        return jnp.sum(jnp.sin(depthwise_spatial(x, kernel, 2)))

    kernels = jnp.stack([kernel, 2 * kernel])
    batched = jax.vmap(jax.grad(total, (0, 1)), (None, 0))(x, kernels)
    for ours, alone in zip(batched, jax.grad(total, (0, 1))(x, kernels[1])):
        np.testing.assert_allclose(ours[1], alone, rtol=1e-4, atol=1e-4)

    def curvature(convolution):
        def slope(k):
            return jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(convolution(x, k))))(x) ** 2)

        return jax.grad(slope)(kernel)

    found = curvature(lambda x, k: depthwise_spatial(x, k, 2))
    np.testing.assert_allclose(found, curvature(lambda x, k: spatial_of_xla(x, k, 2)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("cached", "piece"), [(1, 1), (130, 2), (10**9, 6)])
def test_pieces(cached, piece, monkeypatch):
    """A number of frames that divides them all; the same values and gradients."""
    monkeypatch.setattr(depthwise, "_CACHED", cached)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 5, 3)))
    seen = []

    def function(frames):
        seen.append(len(frames))
        return jnp.sin(frames[:, ::2]).sum(-1)

    found, slopes = jax.value_and_grad(lambda x: (in_pieces(function, x, 60) ** 2).sum())(x)
    assert set(seen) == {piece}
    expected, theirs = jax.value_and_grad(lambda x: (jnp.sin(x[:, :, ::2]).sum(-1) ** 2).sum())(x)
    assert in_pieces(function, x, 60).shape == (2, 3, 2, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(slopes, theirs, atol=1e-5)
