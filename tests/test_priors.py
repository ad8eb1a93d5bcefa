"""Movie priors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import priors


def test_natural_power():
    power = priors.natural_power((40, 18, 32), std=50.0)
    assert power.shape == (40, 18, 32) and (power > 0).all()
    assert power.sum() / power.size == pytest.approx(50.0**2)  # the mean variance of a pixel
    assert power.max() == power[0, 0, 0]
    # The slopes on logarithmic axes, well above the corners.
    assert np.log(power[0, 16, 0] / power[0, 8, 0]) / np.log(2) == pytest.approx(-2.2, abs=0.1)
    assert np.log(power[32, 0, 0] / power[16, 0, 0]) / np.log(2) == pytest.approx(-1.6, abs=0.1)
    # Equal frequencies in cycles per pixel have equal power along both axes.
    square = priors.natural_power((4, 16, 16))
    np.testing.assert_allclose(square, square.swapaxes(1, 2))
    wide = priors.natural_power((4, 16, 32))
    np.testing.assert_allclose(wide[0, 4, 0], wide[0, 0, 8])


def test_measured_power_finds_the_spectrum_again():
    shape = (16, 8, 12)
    rng = np.random.default_rng(0)
    true = priors.natural_power(shape, std=40.0)
    movies = [
        np.concatenate(
            [127.5 + scipy.fft.idctn(np.sqrt(true) * rng.normal(size=shape), norm="ortho") for _ in range(2)]
        )
        for _ in range(40)
    ]
    found = priors.measured_power([*movies, movies[0][:20]], shape)  # a rest of 4 frames is left out
    assert found.shape == shape and (found > 0).all()
    ratio = np.log(found / true)
    assert np.abs(np.average(ratio, weights=true)) < 0.2
    assert np.sqrt(np.average(ratio**2, weights=true)) < 0.5
    for bad, match in (
        ([np.zeros((16, 8, 11))], "frames of"),
        ([np.zeros((15, 8, 12))], "16 frames or more"),
        ([np.full((16, 8, 12), np.nan)], "finite"),
    ):
        with pytest.raises(NeuroreconError, match=match):
            priors.measured_power(bad, shape)


def test_flat_power():
    assert (priors.flat_power((2, 3, 4), std=5.0) == 25.0).all()


def test_smoothness_and_variation_by_hand():
    movie = np.zeros((3, 3, 4), np.float32)
    movie[1] = 20.0
    assert float(priors.temporal_smoothness(jnp.asarray(movie))) == pytest.approx(2 * 12 * 0.5 * 4.0)
    assert float(priors.total_variation(jnp.asarray(movie))) == pytest.approx(3 * 2 * 3 * 0.01, rel=1e-4)
    movie[:, :, 2:] += 30.0
    edge, flat = np.sqrt(9 + 1e-4), 0.01
    assert float(priors.total_variation(jnp.asarray(movie))) == pytest.approx(3 * 2 * (edge + 2 * flat), rel=1e-4)


@pytest.mark.parametrize("prior", [priors.temporal_smoothness, priors.total_variation])
def test_gradients(prior):
    with jax.enable_x64(True):
        movie = np.random.default_rng(0).uniform(0, 255, (3, 4, 5))
        gradient = np.asarray(jax.grad(prior)(jnp.asarray(movie)))
        direction = np.random.default_rng(1).normal(size=movie.shape)
        up, down = (float(prior(jnp.asarray(movie + s * direction))) for s in (1e-4, -1e-4))
        assert (gradient * direction).sum() == pytest.approx((up - down) / 2e-4, rel=1e-6)
        for flat in (0.0, 255.0):
            assert np.isfinite(jax.grad(prior)(jnp.full((3, 4, 5), flat))).all()
