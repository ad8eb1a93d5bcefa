"""Calibration of movies by bands of frequencies."""

import numpy as np
import pytest
import scipy.fft

from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction.calibration import fit_calibration
from neurorecon.reconstruction.priors import frequency_bands

SHAPE, MEAN, EVERYWHERE = (24, 8, 10), 100.0, np.ones((8, 10), bool)


def clips(count, seed=0):
    """Truths whose coefficients are small enough that nothing is clipped at 0 or 255."""
    rng = np.random.default_rng(seed)
    return [MEAN + scipy.fft.idctn(rng.normal(size=SHAPE) * 5, norm="ortho") for _ in range(count)]


def damaged(truth, keep, rng, noise=2.0):
    """The bands where `keep` is true with half their contrast, the others as noise."""
    bands = frequency_bands(SHAPE, 2)
    deviation = scipy.fft.dctn(truth - MEAN, norm="ortho")
    noise = rng.normal(size=SHAPE) * noise
    return MEAN + scipy.fft.idctn(np.where(keep[bands], 0.5 * deviation, noise), norm="ortho")


def test_each_band_comes_from_the_estimate_that_knows_it():
    rng = np.random.default_rng(1)
    keep = np.arange(9) % 2 == 0
    truths = clips(12)
    estimates = [(damaged(t, keep, rng), damaged(t, ~keep, rng)) for t in truths]
    calibration = fit_calibration(truths[:-1], estimates[:-1], mean=MEAN, mask=EVERYWHERE, bins=2, borrowed=0.0)
    present = np.unique(frequency_bands(SHAPE, 2))
    for band in present[1:]:  # band 0 is a single coefficient
        first, second = calibration.weights[band]
        known, unknown = (first, second) if keep[band] else (second, first)
        assert known == pytest.approx(2.0, abs=0.2) and abs(unknown) < 0.4
    movie = calibration.apply(*estimates[-1])
    error = [np.square(m - truths[-1]).mean() for m in (movie, *estimates[-1])]
    assert error[0] < 0.1 * min(error[1:])
    assert movie.dtype == np.float32 and movie.shape == SHAPE


def test_borrowing_draws_bands_together():
    rng = np.random.default_rng(2)
    truths = clips(3)
    estimates = [(damaged(t, np.arange(9) % 2 == 0, rng), MEAN + rng.normal(size=SHAPE)) for t in truths]
    free, drawn = (
        fit_calibration(truths, estimates, mean=MEAN, mask=EVERYWHERE, bins=2, borrowed=b).weights for b in (0.0, 1e9)
    )
    present = np.unique(frequency_bands(SHAPE, 2))
    assert np.ptp(drawn[present], axis=0).max() < 1e-3 < np.ptp(free[present], axis=0).max()
    assert 0.1 < drawn[present[0], 0] < 2.0


def test_only_the_mask_is_fitted():
    rng = np.random.default_rng(3)
    mask = EVERYWHERE.copy()
    mask[:, 5:] = False
    truths = clips(4)
    estimates = [(MEAN + 0.5 * (t - MEAN),) for t in truths]
    spoilt = [(np.where(mask, e, rng.uniform(0, 255, SHAPE)),) for (e,) in estimates]
    ours, theirs = (fit_calibration(truths, e, mean=MEAN, mask=mask).weights for e in (estimates, spoilt))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_what_does_not_fit_is_refused():
    truths = clips(2)
    with pytest.raises(NeuroreconError, match="found 0"):
        fit_calibration([], [], mean=MEAN, mask=EVERYWHERE)
    with pytest.raises(NeuroreconError, match="for each clip"):
        fit_calibration(truths, [(truths[0],), (truths[0][:-1],)], mean=MEAN, mask=EVERYWHERE)
    calibration = fit_calibration(truths, [(t,) for t in truths], mean=MEAN, mask=EVERYWHERE)
    with pytest.raises(NeuroreconError, match="expected 1 movies, found 2"):
        calibration.apply(truths[0], truths[1])
