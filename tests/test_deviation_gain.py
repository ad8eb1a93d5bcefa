"""Deviation as local gain: rare false discoveries under the null, planted changes found, faults in one line."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.local_gain import (
    GainScale,
    as_movie,
    fit_gain_null,
    gain_deviation,
    local_gain,
    score_gain,
    window_places,
)

SHAPE = (60, 20, 28)
SCALE = GainScale(time=10.0, space=2.5, detail=4.0, stride=(6, 3, 3))
MASK = np.zeros(SHAPE[1:], bool)
MASK[2:18, 2:26] = True


def clip(seed, gain=1.0):
    """Recorded (wrong by more than noise, and of another overall gain), expected, and two draws."""
    rng = np.random.default_rng(seed)

    def field(size):
        drawn = gaussian_filter(rng.normal(size=SHAPE), (2, 1, 1))
        return size * drawn / drawn.std()

    expected = field(30)
    movie = 128 + rng.uniform(0.6, 0.9) * gain * expected + field(20)
    draws = [128 + expected + field(8) for _ in range(2)]
    return movie, 128 + expected, draws


def gains(seed, gain=1.0):
    movie, expected, draws = clip(seed, gain)
    return local_gain(movie, expected, MASK, SCALE), [local_gain(d, expected, MASK, SCALE) for d in draws]


@pytest.fixture(scope="module")
def null():
    clips = [gains(seed) for seed in range(8)]
    return fit_gain_null([g for g, _ in clips], [d for _, d in clips])


def test_under_the_null_findings_are_rare(null):
    z, clips_with_findings = [], 0
    for seed in range(100, 140):
        found = gain_deviation(*gains(seed), null)
        clips_with_findings += found.found.any()
        z.append(found.z[np.isfinite(found.z)])
    assert clips_with_findings <= 5  # 2 expected of 40
    assert np.concatenate(z).std() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("factor", [0.0, -1.0])
def test_contrast_lost_or_reversed_in_a_region_is_found_there(null, factor):
    gain = np.ones(SHAPE)
    gain[:, 4:14, 5:15] = factor
    found = gain_deviation(*gains(200, gain), null)
    t, y, x = np.ix_(*window_places(SHAPE, SCALE))
    inside = (t >= 0) & (y >= 6) & (y < 12) & (x >= 7) & (x < 13)
    outside = (t >= 0) & MASK[y, x] & ((x > 20) | (y > 18))
    tested = np.isfinite(found.z)
    assert (inside & tested).sum() > 10
    assert found.found[inside & tested].mean() > 0.7 and found.found[outside].mean() < 0.05
    assert np.mean(found.z[inside & tested][:, None] < found.z[outside & tested]) > 0.95
    assert (found.z[found.found] < 0).all() and (found.difference[found.found] < -0.1).all()
    assert (found.detectable[tested] > 0).all()


def test_a_gain_of_the_whole_clip_says_nothing_of_any_place():
    movie, expected, _ = clip(1)
    once, halved = (local_gain(m, expected, MASK, SCALE) for m in (movie, 128 + (movie - 128) / 2))
    assert halved.clip == pytest.approx(once.clip / 2, rel=1e-3)
    same = local_gain(128 + (expected - 128) / 2, expected, MASK, SCALE)
    np.testing.assert_allclose(same.gain[np.isfinite(same.gain)], 0, atol=1e-4)


def test_pixels_outside_the_mask_far_from_its_border_have_no_weight():
    movie, expected, _ = clip(2)
    mask = MASK.copy()
    mask[:, 8:] = False
    scale = SCALE._replace(detail=1.0)
    first = local_gain(movie, expected, mask, scale).gain
    movie[:, :, 20:] = movie[:, ::-1, 20:]
    np.testing.assert_allclose(local_gain(movie, expected, mask, scale).gain, first, atol=1e-4)
    assert np.isnan(first[:, :, 4:]).all()


def test_where_the_screen_is_flat_nothing_is_tested(null):
    movie, expected, draws = clip(3)
    for values in (expected, *draws, movie):
        values[:, :, 14:] = 128 + 0.05 * (values[:, :, 14:] - 128)
    own = local_gain(movie, expected, MASK, SCALE)
    found = gain_deviation(own, [local_gain(d, expected, MASK, SCALE) for d in draws], null)
    assert np.isnan(found.z[:, :, 7:]).all() and np.isfinite(found.z[:, 2:5, 1:3]).any()


NUM_NEURONS = 250
SEEN = np.argwhere(MASK)[np.random.default_rng(5).integers(MASK.sum(), size=NUM_NEURONS)]


def scores(seed, gain=1.0):
    """Score of a clip, that of no contrast, and of two draws: linear neurons of smooth fields, encoders a bit wrong."""
    rng = np.random.default_rng(seed)
    movie = gaussian_filter(rng.normal(size=SHAPE), (2, 1, 1))
    movie /= movie.std()
    rows, columns = np.indices(SHAPE[1:])
    fields = np.exp(-((rows - SEEN[:, :1, None]) ** 2 + (columns - SEEN[:, 1:, None]) ** 2) / 4)
    fields = fields / np.linalg.norm(fields, axis=(1, 2), keepdims=True)

    def respond(movie, gains):
        return gains * np.einsum("thw,nhw->tn", movie, fields)

    def score(residuals):
        return movie * np.einsum("tn,nhw->thw", residuals / 4, fields)

    predicted = respond(movie, 1.0)
    wrong = rng.normal(1, 0.2, NUM_NEURONS) * (1 + 0.1 * np.sin(np.arange(60) / 20 + seed))[:, None]
    recorded = respond(gain * movie, wrong) + rng.normal(0, 2, predicted.shape)
    draws = [score(rng.normal(0, 2, predicted.shape)) for _ in range(2)]
    return score(recorded - predicted), score(-predicted), draws


def scored(seed, gain=1.0):
    own, lost, draws = scores(seed, gain)
    return score_gain(own, lost, MASK, SCALE), [score_gain(d, lost, MASK, SCALE) for d in draws]


@pytest.fixture(scope="module")
def score_null():
    clips = [scored(seed) for seed in range(8)]
    return fit_gain_null([g for g, _ in clips], [d for _, d in clips])


def test_scores_under_the_null_rarely_find(score_null):
    found = [gain_deviation(*scored(seed), score_null) for seed in range(100, 140)]
    assert sum(f.found.any() for f in found) <= 5  # 2 expected of 40
    assert np.concatenate([f.z[np.isfinite(f.z)] for f in found]).std() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("factor, least", [(0.0, 0.7), (0.5, 0.3)])
def test_scores_find_contrast_lost_or_halved(score_null, factor, least):
    gain = np.ones(SHAPE)
    gain[:, 4:14, 5:15] = factor
    own, draws = scored(200, gain)
    found = gain_deviation(own, draws, score_null)
    t, y, x = np.ix_(*window_places(SHAPE, SCALE))
    inside = (t >= 0) & (y >= 6) & (y < 12) & (x >= 7) & (x < 13) & np.isfinite(found.z)
    outside = (t >= 0) & MASK[y, x] & (x > 20) & np.isfinite(found.z)
    assert inside.sum() > 10 and found.found[inside].mean() > least and found.found[outside].mean() < 0.05
    assert np.mean(found.z[inside][:, None] < found.z[outside]) > 0.95
    # Windows reach beyond the region, so that they show less than all of the loss.
    assert 0.3 * (factor - 1) > np.mean(found.difference[inside]) > 1.1 * (factor - 1)


def test_a_score_in_step_with_lost_contrast_has_a_gain_of_the_whole_clip_alone():
    _, lost, _ = scores(0)
    whole = score_gain(0.5 * lost, lost, MASK, SCALE)
    assert whole.clip == pytest.approx(-0.5, abs=1e-4)
    assert np.abs(whole.gain[np.isfinite(whole.gain)]).max() < 1e-3


def test_faulty_scores_are_one_line():
    own, lost, _ = scores(0)
    for call in (
        lambda: score_gain(own[1:], lost, MASK, SCALE),
        lambda: score_gain(own, lost, np.zeros_like(MASK), SCALE),
        lambda: score_gain(own, -lost, MASK, SCALE),
        lambda: score_gain(own, np.full(SHAPE, np.nan), MASK, SCALE),
        lambda: score_gain(own, lost, MASK, SCALE._replace(space=0)),
    ):
        with pytest.raises(NeuroreconError) as error:
            call()
        assert "\n" not in str(error.value)


def test_windows_become_a_movie():
    z = local_gain(*clip(0)[:2], MASK, SCALE).gain
    movie = as_movie(z, SHAPE, MASK, SCALE)
    assert movie.shape == SHAPE and np.isnan(movie[:, ~MASK]).all()
    t, y, x = window_places(SHAPE, SCALE)
    np.testing.assert_allclose(movie[t[2], y[2], x[3]], z[2, 2, 3], rtol=1e-6)
    seen = as_movie(np.isfinite(z), SHAPE, MASK, SCALE)
    assert seen.dtype == bool and not seen[:, ~MASK].any() and seen.any()


def test_faults_are_one_line(null):
    movie, expected, _ = clip(0)
    own, draws = gains(0)
    for call in (
        lambda: local_gain(movie[1:], expected, MASK, SCALE),
        lambda: local_gain(movie, expected, np.zeros_like(MASK), SCALE),
        lambda: local_gain(np.full(SHAPE, np.nan), expected, MASK, SCALE),
        lambda: local_gain(movie, np.full(SHAPE, 128.0), MASK, SCALE),
        lambda: local_gain(movie, expected, MASK, SCALE._replace(time=0)),
        lambda: fit_gain_null([own, own], [draws, draws]),
        lambda: fit_gain_null([own] * 3, [draws, draws, []]),
        lambda: gain_deviation(own, [], null),
        lambda: gain_deviation(own, draws, null, rate=0),
        lambda: gain_deviation(own, draws, null._replace(mean=null.mean[1:])),
    ):
        with pytest.raises(NeuroreconError) as error:
            call()
        assert "\n" not in str(error.value)
