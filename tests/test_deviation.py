"""Deviations from the null distribution: false discoveries are controlled, and a planted change is found."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.deviation import deviation_map, fit_deviation_scale

SHAPE, SAMPLES, BLOCK = (60, 12, 16), 6, (10, 4, 4)
MASK = np.zeros(SHAPE[1:], bool)
MASK[1:11, 2:15] = True
# Some places are noisier than others, as where few neurons look.
LEVEL = 5 + 20 * np.exp(-((np.arange(16) - 3) ** 2) / 20)


def noises(count, seed, correlated=False):
    drawn = np.random.default_rng(seed).normal(size=(count, *SHAPE))
    if correlated:
        drawn = gaussian_filter(drawn, (0, 4, 1.5, 1.5))
        drawn /= drawn.std()
    return LEVEL * drawn


def screen(seed=7):
    return gaussian_filter(np.random.default_rng(seed).normal(128, 400, SHAPE), (4, 2, 2))


@pytest.mark.parametrize("correlated", [False, True])
def test_under_the_null_false_discoveries_are_as_rare_as_asked_for(correlated):
    # Under the null every discovery is false, so the rate is the share of clips with any.
    rate, clips, any_found = 0.1, 150, 0
    for clip in range(clips):
        drawn = screen() + noises(SAMPLES + 1, clip, correlated)
        any_found += deviation_map(drawn[0], drawn[1:], MASK, block=BLOCK, rate=rate).found.any()
    assert any_found / clips < rate + 2.5 * np.sqrt(rate * (1 - rate) / clips)


def test_z_is_standard_normal_under_the_null():
    maps = []
    for clip in range(60):
        drawn = screen() + noises(SAMPLES + 1, clip)
        maps.append(deviation_map(drawn[0], drawn[1:], MASK, block=BLOCK).z)
    z = np.stack(maps)
    z = z[np.isfinite(z)]
    assert z.std() == pytest.approx(1, abs=0.05) and z.mean() == pytest.approx(0, abs=0.05)
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.05, abs=0.01)


def test_a_planted_change_is_found_and_its_surroundings_are_not():
    drawn = screen() + noises(SAMPLES + 1, 0)
    changed = np.zeros((6, 3, 4), bool)
    changed[2:4, 1, 2] = True
    movie = drawn[0].copy()
    movie[20:40, 4:8, 8:12] -= 8.0  # single pixels scatter by 5 to 25
    found = deviation_map(movie, drawn[1:], MASK, block=BLOCK)
    np.testing.assert_array_equal(found.found & changed, changed)
    assert (found.found & ~changed).sum() <= 1
    np.testing.assert_allclose(found.difference[changed], -8, atol=2)
    assert (found.z[changed] < -4).all() and (found.q[changed] < 1e-3).all()
    # Areas under the curve: changed blocks stand before all others.
    size = np.abs(found.z)
    others = size[~changed & np.isfinite(size)]
    assert np.mean(size[changed][:, None] > others) > 0.99


@pytest.mark.parametrize(("gain", "lost"), [(0.0, -1), (-1.0, -2), (1.0, 0)])
def test_contrast_lost_or_reversed_is_found_by_what_was_shown(gain, lost):
    """A pattern that is nowhere but in contrast: block means stay."""
    pattern = 20 * np.sign(np.random.default_rng(3).normal(size=SHAPE))
    shown = 128 + pattern
    drawn = shown + noises(SAMPLES + 1, 0)
    movie = drawn[0] + (gain - 1) * np.where(np.indices(SHAPE)[2] // 4 == 1, pattern, 0)
    found = deviation_map(movie, drawn[1:], MASK, shown=shown, block=(30, 4, 4))
    changed = np.zeros((2, 3, 4), bool)
    changed[:, :, 1] = lost < 0
    np.testing.assert_array_equal(found.found, changed)
    np.testing.assert_allclose(found.difference[:, 1, 1], 20 * lost, atol=4)
    assert fit_deviation_scale([drawn[0]], [drawn[1:]], MASK, shown=[shown], block=(30, 4, 4)) < 1.6


def test_z_of_the_shown_pattern_is_standard_normal_under_the_null():
    z = []
    for clip in range(60):
        drawn = screen() + noises(SAMPLES + 1, clip)
        z.append(deviation_map(drawn[0], drawn[1:], MASK, shown=screen(), block=BLOCK).z)
    z = np.stack(z)[np.isfinite(z)]
    assert z.std() == pytest.approx(1, abs=0.08) and np.mean(np.abs(z) > 1.96) == pytest.approx(0.05, abs=0.015)


def test_blocks_outside_the_mask_do_not_count_and_pixels_there_say_nothing():
    drawn = screen() + noises(SAMPLES + 1, 0)
    mask = MASK.copy()
    mask[:, 8:] = False
    mask[4:8, 8:10] = True  # half of a block
    mask[0:4, 8] = True  # less than half
    first = deviation_map(drawn[0], drawn[1:], mask, block=BLOCK)
    drawn[:, :, ~mask] = np.nan
    second = deviation_map(drawn[0], drawn[1:], mask, block=BLOCK)
    np.testing.assert_array_equal(first.z, second.z)
    assert np.isfinite(first.z[:, 1, 2]).all() and np.isnan(first.z[:, 0, 2]).all() and np.isnan(first.q[:, :, 3]).all()


def test_the_scale_of_validation_clips_keeps_a_wrong_encoder_from_being_found():
    def wrong(seed):  # errors of the encoder's: three times what noise gives, another pattern in each clip
        drawn = screen() + noises(SAMPLES + 1, seed)
        drawn[0] += np.sqrt(8) * noises(1, 1000 + seed)[0]
        return drawn[0], drawn[1:]

    clips = [wrong(seed) for seed in range(4)]
    scale = fit_deviation_scale([m for m, _ in clips], [n for _, n in clips], MASK, block=BLOCK)
    assert scale == pytest.approx(3, rel=0.15)
    unseen = [wrong(seed) for seed in range(10, 40)]
    plain = [deviation_map(m, n, MASK, block=BLOCK).found.any() for m, n in unseen]
    scaled = [deviation_map(m, n, MASK, block=BLOCK, scale=scale).found.any() for m, n in unseen]
    assert np.mean(plain) > 0.9 and np.mean(scaled) < 0.2


@pytest.mark.parametrize(
    "changes",
    [
        {"movie": np.zeros((60, 12, 15))},
        {"null_movies": np.zeros((1, *SHAPE))},
        {"null_movies": np.zeros((3, *SHAPE))},
        {"null_movies": np.full((3, *SHAPE), np.inf)},
        {"mask": np.zeros(SHAPE[1:], bool)},
        {"mask": np.ones(SHAPE[1:])},
        {"block": (0, 4, 4)},
        {"block": (61, 4, 4)},
        {"shown": np.zeros((60, 12, 15))},
        {"shown": np.ones(SHAPE)},
        {"rate": 0.0},
        {"scale": np.nan},
    ],
)
def test_faults_are_one_line(changes):
    arguments = {"movie": np.zeros(SHAPE), "null_movies": noises(3, 0), "mask": MASK, "block": BLOCK}
    with pytest.raises(NeuroreconError) as error:
        deviation_map(**arguments | changes)
    assert "\n" not in str(error.value)
    with pytest.raises(NeuroreconError):
        fit_deviation_scale([], [], MASK)
