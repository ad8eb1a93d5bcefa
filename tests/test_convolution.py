"""The convolution with gradients of its own against automatic differentiation of XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from neurorecon.encoders import convolution
from neurorecon.encoders.convolution import _convolve_cpu, convolve

CASES = [
    # x (batch, rows, columns, channel), kernel taps, features, padding
    ((3, 5, 6, 2), (3, 3), 4, ((1, 1), (1, 1))),
    ((2, 6, 5, 1), (4, 2), 3, ((1, 2), (0, 1))),  # even kernels, asymmetric padding
    ((2, 7, 4, 3), (3, 1), 2, ((2, 0), (0, 0))),  # causal in time
    ((1, 4, 4, 2), (1, 1), 2, ((0, 0), (0, 0))),
    ((5, 4, 5, 2), (3, 2), 2, ((0, 0), (0, 0))),  # valid
]


def reference(x, kernel, padding):
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def drawn(shape, taps, features):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=shape)), jnp.asarray(rng.normal(size=(*taps, shape[-1], features)))


def gradients(function, x, kernel, padding):
    weights = jnp.asarray(np.random.default_rng(1).normal(size=reference(x, kernel, padding).shape))
    return jax.grad(lambda x, k: (function(x, k, padding) * weights).sum(), argnums=(0, 1))(x, kernel)


@pytest.mark.parametrize("shape, taps, features, padding", CASES)
@pytest.mark.parametrize("piece", [1, 200, 1 << 20])
def test_values_and_gradients_are_those_of_xla(shape, taps, features, padding, piece, monkeypatch):
    # Pieces of one clip, of a number that doesn't divide the batch, and of everything.
    monkeypatch.setattr(convolution, "_PIECE", piece)
    with jax.enable_x64(True):
        x, kernel = drawn(shape, taps, features)
        np.testing.assert_allclose(_convolve_cpu(x, kernel, padding), reference(x, kernel, padding), atol=1e-12)
        for mine, expected in zip(
            gradients(_convolve_cpu, x, kernel, padding), gradients(reference, x, kernel, padding)
        ):
            np.testing.assert_allclose(mine, expected, atol=1e-11)


def test_pieces_that_do_not_divide_the_batch_are_used(monkeypatch):
    seen = []
    scan = lax.scan
    monkeypatch.setattr(convolution.lax, "scan", lambda f, init, xs: (seen.append(xs[0].shape), scan(f, init, xs))[1])
    monkeypatch.setattr(convolution, "_PIECE", 2 * 5 * 6 * 2 * 9)
    x, kernel = drawn((3, 5, 6, 2), (3, 3), 4)
    jax.grad(lambda k: _convolve_cpu(x, k, ((1, 1), (1, 1))).sum())(kernel)
    assert seen[0][:2] == (2, 2)  # two pieces of two for a batch of three


def test_gradients_are_those_of_finite_differences():
    with jax.enable_x64(True):
        shape, taps, features, padding = CASES[1]
        x, kernel = drawn(shape, taps, features)
        rng = np.random.default_rng(2)

        def loss(x, kernel):
            return jnp.sin(_convolve_cpu(x, kernel, padding)).sum()

        along = jnp.asarray(rng.normal(size=x.shape)), jnp.asarray(rng.normal(size=kernel.shape))
        slopes = jax.grad(loss, argnums=(0, 1))(x, kernel)
        for index in (0, 1):
            moved = [[x, kernel], [x, kernel]]
            for side, sign in ((0, 1), (1, -1)):
                moved[side][index] = moved[side][index] + sign * 1e-6 * along[index]
            difference = (loss(*moved[0]) - loss(*moved[1])) / 2e-6
            assert float((slopes[index] * along[index]).sum()) == pytest.approx(float(difference), rel=1e-7)


def test_works_inside_device_loops_and_vmap():
    x, kernel = drawn(*CASES[0][:3])
    padding = CASES[0][3]

    def step(k, _):
        return k - 0.01 * jax.grad(lambda k: (convolve(x, k, padding) ** 2).sum())(k), None

    looped, _ = lax.scan(step, kernel, None, length=2)
    plain = step(step(kernel, None)[0], None)[0]
    np.testing.assert_allclose(looped, plain, rtol=1e-4, atol=1e-5)
    kernels = jnp.stack([kernel, 2 * kernel])
    batched = jax.vmap(lambda k: jax.grad(lambda k: (convolve(x, k, padding) ** 2).sum())(k))(kernels)
    np.testing.assert_allclose(batched[1], 2 * batched[0], rtol=1e-4)


def test_float32_stays_float32():
    x, kernel = (a.astype(jnp.float32) for a in drawn(*CASES[0][:3]))
    assert convolve(x, kernel, CASES[0][3]).dtype == jnp.float32
    assert jax.grad(lambda k: convolve(x, k, CASES[0][3]).sum())(kernel).dtype == jnp.float32
