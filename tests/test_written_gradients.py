"""Gradients that are written out, against automatic differentiation of the same function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neurorecon.encoders import DwiseNeuro, dwiseneuro_block
from neurorecon.encoders.written_gradients import gated_projection, projected, silu

QUICK = {"xla_backend_optimization_level": 0}  # compiled once and run once


def plain_projection(x, gate, kernel):
    return jnp.einsum("nthwi,ni,io->nthwo", x, gate, kernel)


def values_and_gradients(function, *args):
    def all_of_it(*args):
        out, backward = jax.vjp(function, *args)
        pull = np.random.default_rng(1).normal(size=out.shape)
        return out, *backward(jnp.asarray(pull, out.dtype))

    return jax.jit(all_of_it).lower(*args).compile(compiler_options=QUICK)(*args)


@pytest.mark.parametrize(("wide", "tolerance"), [(True, 1e-12), (False, 1e-5)])
def test_the_gradients_of_autodiff(wide, tolerance):
    dtype = np.float64 if wide else np.float32
    rng = np.random.default_rng(0)
    with jax.enable_x64(wide):
        drawn = [jnp.asarray(rng.normal(size=size), dtype) for size in ((2, 3, 4, 5, 6), (2, 6), (6, 4))]
        steps = jnp.asarray(np.r_[np.linspace(-30, 30, 201), -1e4, 1e4], dtype)
        kernels = [jnp.asarray(rng.normal(size=size), dtype) for size in ((6, 4), (2, 6, 4))]
        for ours, plain, args in (
            (gated_projection, plain_projection, drawn),
            (silu, jax.nn.silu, [steps]),
            (projected, lambda x, k: jnp.einsum("nthwi,io->nthwo", x, k), [drawn[0], kernels[0]]),
            (projected, lambda x, k: jnp.einsum("nthwi,nio->nthwo", x, k), [drawn[0], kernels[1]]),
        ):
            for found, expected in zip(values_and_gradients(ours, *args), values_and_gradients(plain, *args)):
                assert found.dtype == dtype and found.shape == expected.shape
                np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_half_precision_stays_near():
    rng = np.random.default_rng(0)
    drawn = [jnp.asarray(rng.normal(size=size), jnp.bfloat16) for size in ((1, 4, 9, 9, 6), (1, 6), (6, 4))]
    exact = values_and_gradients(plain_projection, *(x.astype(jnp.float32) for x in drawn))
    for found, expected in zip(values_and_gradients(gated_projection, *drawn), exact):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found, expected, atol=0.02 * float(jnp.abs(expected).max()))


def test_in_the_encoder(monkeypatch):
    """Gradients of inputs and weights of the encoder, with these functions and without."""
    encoder = DwiseNeuro(
        num_neurons=(3,),
        canvas=(6, 6),
        window_frames=4,
        core_features=(4, 6),
        spatial_strides=(2, 1),
        expansion_ratio=2,
        se_reduce_ratio=2,
        cortex_features=(8,),
    )
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6, 6, 5)), jnp.float32)
    variables = encoder.init(jax.random.key(0), inputs)

    def gradients():
        def loss(inputs, params):
            return jnp.sum(encoder.apply({**variables, "params": params}, inputs) ** 2)

        return jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1)), compiler_options=QUICK)(inputs, variables["params"]))

    found = gradients()
    monkeypatch.setattr(dwiseneuro_block, "silu", jax.nn.silu)
    monkeypatch.setattr(dwiseneuro_block, "gated_projection", plain_projection)
    for ours, autodiff in zip(found, gradients()):
        np.testing.assert_allclose(ours, autodiff, rtol=0, atol=1e-5 * max(1, float(jnp.abs(autodiff).max())))
