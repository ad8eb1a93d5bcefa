"""Stimuli: statistics of the natural movies, and that gratings, noise and pixels are what was asked for."""

import itertools

import numpy as np
import pytest

from neurorecon.errors import NeuroreconError
from neurorecon.stimuli.gratings import grating
from neurorecon.stimuli.natural import natural_movie
from neurorecon.stimuli.noise import gaussian_noise
from neurorecon.stimuli.pixels import single_pixel
from neurorecon.stimuli.random_walks import ornstein_uhlenbeck


@pytest.fixture(scope="module")
def movies():
    return np.stack([natural_movie(seed) for seed in range(12)])


def slope(frequency, power, low, high):
    """Slope of log power against log frequency, over bins that are even in the logarithm."""
    edges = np.geomspace(low, high, 8)
    bins = [(frequency >= a) & (frequency < b) for a, b in itertools.pairwise(edges)]
    x = [np.log(frequency[b].mean()) for b in bins if b.any()]
    y = [np.log(power[b].mean()) for b in bins if b.any()]
    return np.polyfit(x, y, 1)[0]


def test_natural_movie_is_whole_grey_values(movies):
    assert movies.shape == (12, 300, 36, 64) and movies.dtype == np.float32
    assert movies.min() >= 0 and movies.max() <= 255
    np.testing.assert_array_equal(movies, np.rint(movies))


def test_natural_movie_depends_on_the_seed_only(movies):
    np.testing.assert_array_equal(natural_movie(3), movies[3])
    correlations = np.corrcoef(movies.reshape(12, -1))
    assert np.abs(correlations[np.triu_indices(12, 1)]).max() < 0.5


def test_spatial_power_falls_like_natural_scenes(movies):
    # Natural scenes: about f^-2 (Field 1987); averaging over pixels steepens the upper end.
    window = np.hanning(36)[:, None] * np.hanning(64)
    frames = movies[:, ::10] - movies[:, ::10].mean(axis=(2, 3), keepdims=True)
    power = (np.abs(np.fft.fft2(frames * window)) ** 2).mean(axis=(0, 1))
    frequency = np.hypot(np.fft.fftfreq(36)[:, None], np.fft.fftfreq(64))
    assert -3.0 < slope(frequency, power, 0.04, 0.25) < -1.8


def test_temporal_power_falls_like_natural_film(movies):
    # Between f^-1 and f^-2 and a little beyond (Dong & Atick 1995).
    traces = (movies - movies.mean(axis=1, keepdims=True)) * np.hanning(300)[:, None, None]
    power = (np.abs(np.fft.rfft(traces, axis=1)) ** 2).mean(axis=(0, 2, 3))
    assert -2.5 < slope(np.fft.rfftfreq(300, 1 / 30), power, 0.3, 12.0) < -1.0


def test_luminance_and_contrast(movies):
    assert 85 < movies.mean() < 130
    contrast = movies.std(axis=(2, 3)).mean(axis=1)  # of frames, one mean per movie
    assert 35 < contrast.mean() < 60
    assert contrast.min() > 8  # no blank clip
    skew = ((movies - movies.mean()) ** 3).mean() / movies.std() ** 3
    assert skew > 0  # more dark than bright


def test_cuts_and_motion(movies):
    change = np.abs(np.diff(movies, axis=1)).mean(axis=(2, 3))
    cuts = (change > 8 * np.median(change, axis=1, keepdims=True)) & (change > 15)
    per_movie = cuts.sum(axis=1)
    assert 1.0 < per_movie.mean() < 6.0  # every 2 to 4 seconds or so
    assert per_movie.min() == 0  # and some without
    assert (np.median(change, axis=1) > 0.5).mean() > 0.7  # most clips move all the time
    frames = movies.reshape(12, 300, -1)
    near = np.mean([np.corrcoef(m[:-1].ravel(), m[1:].ravel())[0, 1] for m in frames])
    far = np.mean([np.corrcoef(m[:-60].ravel(), m[60:].ravel())[0, 1] for m in frames])
    assert near > 0.95 and far < 0.6


@pytest.mark.parametrize("size", [(7, 16, 16), (40, 48, 40), (1, 9, 30)])
def test_natural_movie_of_any_size(size):
    movie = natural_movie(0, num_frames=size[0], height=size[1], width=size[2], frame_rate=60.0)
    assert movie.shape == size and np.isfinite(movie).all() and movie.std() > 3


@pytest.mark.parametrize("wrong", [{"num_frames": 0}, {"height": -1}, {"frame_rate": np.nan}, {"seed": -1}])
def test_natural_movie_refuses(wrong):
    with pytest.raises(NeuroreconError, match=next(iter(wrong))):
        natural_movie(**{"seed": 0, **wrong})


def test_grating_has_the_frequencies_asked_for():
    # 8 cycles across 64 pixels of 2 degrees: 1/16 cycles/degree; 3 Hz over 2 s: 6 cycles.
    movie = grating(
        spatial_frequency=1 / 16,
        temporal_frequency=3.0,
        contrast=0.5,
        num_frames=60,
        degrees_per_pixel=2.0,
    )
    power = np.abs(np.fft.fftn(movie - movie.mean())) ** 2
    peak = np.unravel_index(power.argmax(), power.shape)
    assert peak in {(6, 0, 56), (54, 0, 8)}  # time and x of opposite signs: to the right
    np.testing.assert_allclose([movie.min(), movie.max()], [63.75, 191.25], atol=0.5)


def test_grating_drifts_down_and_can_stand_still():
    sizes = {
        "spatial_frequency": 0.05,
        "num_frames": 4,
        "frame_rate": 3.4 * 0.05 * 30,
        "temporal_frequency": 30.0,
    }
    down = grating(direction=np.pi / 2, **{**sizes, "temporal_frequency": 3.4 * 0.05 * sizes["frame_rate"]})
    np.testing.assert_allclose(down[1, 1:], down[0, :-1], atol=1e-2)  # one pixel a frame
    still = grating(**{**sizes, "temporal_frequency": 0.0})
    np.testing.assert_array_equal(still[0], still[-1])


def test_grating_refuses():
    with pytest.raises(NeuroreconError, match="contrast"):
        grating(spatial_frequency=0.1, contrast=1.5)
    with pytest.raises(NeuroreconError, match="spatial_frequency"):
        grating(spatial_frequency=-0.1)


@pytest.mark.parametrize("spatial,temporal", [(0.0, 0.0), (2.0, 0.0), (0.0, 4.0), (2.0, 4.0)])
def test_noise_has_the_lengths_asked_for(spatial, temporal):
    movie = gaussian_noise(1, spatial_sigma=spatial, temporal_sigma=temporal, contrast=0.2, num_frames=200)
    noise = movie - 127.5
    assert noise.std() == pytest.approx(0.2 * 127.5, rel=0.1)
    variance = noise.var()
    # Smoothing white noise by sigma leaves the autocorrelation exp(-lag^2 / (4 sigma^2)).
    in_space = (noise[..., 2:] * noise[..., :-2]).mean() / variance
    in_time = (noise[8:] * noise[:-8]).mean() / variance
    assert in_space == pytest.approx(np.exp(-1 / spatial**2) if spatial else 0, abs=0.08)
    assert in_time == pytest.approx(np.exp(-1.0) if temporal else 0, abs=0.08)


def test_noise_is_reproducible_and_refuses():
    first, again, other = (gaussian_noise(seed, spatial_sigma=1, temporal_sigma=1, num_frames=5) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    with pytest.raises(NeuroreconError, match="spatial_sigma"):
        gaussian_noise(0, spatial_sigma=-1, temporal_sigma=0)


def test_single_pixel():
    movie = single_pixel(3, 60, value=0)
    assert movie.shape == (45, 36, 64)
    changed = np.argwhere(movie != 127.5)
    np.testing.assert_array_equal(changed[[0, -1]], [[15, 3, 60], [29, 3, 60]])
    assert len(changed) == 15 and (movie[15:30, 3, 60] == 0).all()
    with pytest.raises(NeuroreconError, match="row, column"):
        single_pixel(36, 0)


def test_ornstein_uhlenbeck_is_stationary():
    walk = ornstein_uhlenbeck(np.random.default_rng(0), 400, 500, seconds=0.5, frame_rate=20.0)
    np.testing.assert_allclose(walk[[0, 50, 399]].std(axis=1), 1.0, atol=0.1)
    assert np.mean(walk[10:] * walk[:-10]) == pytest.approx(np.exp(-1), abs=0.03)
