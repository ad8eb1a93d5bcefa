"""Match in space and time: coherence, motion, lag and identification against cases whose answer is known."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.coherence import coherence, coherence_interval, mask_taper, movie_spectra, pool
from neurorecon.evaluation.identification import n_way_accuracy, similarity, true_ranks
from neurorecon.evaluation.match import clip_match
from neurorecon.evaluation.motion import global_flow, lag_correlations, motion_match, peak_lag
from neurorecon.evaluation.movie_metrics import movie_correlation
from neurorecon.stimuli.degrees import pixels_per_degree, visual_angle
from neurorecon.stimuli.gratings import grating

SHAPE = (120, 18, 24)
SETTINGS = {"pixels_per_degree": 0.3, "frame_rate": 30.0, "segment_seconds": 1.0}


def noise(seed, shape=SHAPE, sigma=0.0):
    movie = np.random.default_rng(seed).normal(size=shape)
    movie = gaussian_filter(movie, sigma) if sigma else movie
    return 128 + 30 * movie / movie.std()


def disc(shape=SHAPE[1:]):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (y - shape[0] / 2) ** 2 + (x - shape[1] / 2) ** 2 < (0.45 * min(shape)) ** 2


def test_coherence_of_filtered_and_of_unrelated_movies():
    truth = noise(0)
    for movie, least in ((truth, 1 - 1e-9), (0.3 * truth + 50, 1 - 1e-9), (gaussian_filter(truth, (0, 1, 1)), 0.9)):
        spectra = movie_spectra(truth, movie, None, **SETTINGS)
        values = coherence(spectra)
        assert values.shape == (len(spectra.spatial), len(spectra.temporal))
        # A filter's gain differs within a band, and at the border it mixes what the taper treats alike.
        assert values[:-2].min() > least * (0.9 if least < 0.99 else 1)
    unrelated = coherence(pool([movie_spectra(truth, noise(k), None, **SETTINGS) for k in (1, 2, 3)]))
    assert unrelated.max() < 0.3 and np.median(unrelated) < 0.02


def test_coherence_is_signal_over_signal_and_noise_in_each_band():
    """White truth plus noise that is fine in space: r^2 = 1 / (1 + noise power / truth power) at each frequency."""
    truth, fine = noise(0), noise(1) - 128
    fine = fine - gaussian_filter(fine, (0, 1, 1))
    spectra = movie_spectra(truth, truth + fine, None, **SETTINGS)
    power = movie_spectra(truth, 128 + fine, None, **SETTINGS)
    expected = 1 / (1 + power.movie.sum(1) / power.truth.sum(1))
    found = coherence(spectra, "spatial")
    np.testing.assert_allclose(found, expected, atol=0.06)
    assert found[0] > 0.9 and found[-1] < 0.6


def test_a_grating_is_at_its_frequencies():
    movie = grating(spatial_frequency=0.05, temporal_frequency=5.0, num_frames=120, height=36, width=64, contrast=0.5)
    spectra = movie_spectra(movie, movie, None, pixels_per_degree=1 / 3.4, frame_rate=30.0, segment_seconds=2.0)
    s, f = np.unravel_index(spectra.truth.argmax(), spectra.truth.shape)
    assert abs(np.log2(spectra.spatial[s] / 0.05)) < 0.3 and abs(np.log2(spectra.temporal[f] / 5.0)) < 0.3
    assert spectra.truth[s, f] > 0.5 * spectra.truth.sum()
    assert np.all(np.diff(spectra.spatial) > 0) and np.all(np.diff(spectra.temporal) > 0)
    assert spectra.spatial[-1] <= 0.5 / 3.4 and spectra.temporal[-1] < 15


def test_a_late_movie_is_coherent_in_each_narrow_band():
    truth = noise(0, sigma=(3, 1, 1))
    late = np.roll(truth, 3, axis=0)
    settings = SETTINGS | {"segment_seconds": 2.0}
    slow = coherence(movie_spectra(truth, late, None, **settings))[:, :2]
    assert slow.min() > 0.8
    lags, values = lag_correlations(truth, late, None)
    assert peak_lag(lags, values) == pytest.approx(3, abs=0.1)


def test_what_is_outside_the_mask_has_no_say():
    mask = disc()
    truth = noise(0)
    movie = np.where(mask, truth, noise(1))
    assert coherence(movie_spectra(truth, movie, mask, **SETTINGS)).min() > 1 - 1e-9
    taper = mask_taper(mask)
    assert (taper[~mask] == 0).all() and 0 < taper[mask].min() < 0.3 and taper.max() == pytest.approx(1, abs=0.1)
    # The screen's border counts as a border of the mask.
    assert mask_taper(np.ones((9, 9), bool))[0].max() < 0.2


def test_coherence_pools_clips_and_its_interval_holds_the_value():
    clips = [movie_spectra(noise(k), noise(k) + 2 * (noise(k + 9) - 128), None, **SETTINGS) for k in range(5)]
    value, low, high = coherence_interval(clips, "spatial", seed=0, num_samples=200)
    np.testing.assert_array_equal(value, coherence(pool(clips), "spatial"))
    assert (low <= value).all() and (value <= high).all() and (low < high).all()
    np.testing.assert_allclose(value, 0.2, atol=0.06)  # 1 / (1 + 2^2)
    assert np.isnan(coherence_interval(clips[:1], seed=0)[1]).all()
    grey = movie_spectra(noise(0), np.full(SHAPE, 127.5), None, **SETTINGS)
    assert np.isnan(coherence(grey)).all()


def test_flow_is_the_speed_of_a_drifting_image():
    still = noise(0, (1, 30, 40), (0, 2, 2))[0]
    movie = np.stack([shift(still, (0.25 * t, -0.5 * t), mode="grid-wrap") for t in range(20)])
    mask = np.zeros((30, 40), bool)
    mask[6:-6, 12:-6] = True
    flow = global_flow(movie, mask)
    assert flow.shape == (19, 2)
    np.testing.assert_allclose(flow[3:-3].mean(0), (0.25, -0.5), atol=0.05)
    # A grating can't tell motion along its stripes; a grey screen none at all.
    stripes = np.broadcast_to(np.sin(np.arange(40) / 3)[None, None], (5, 30, 40)) * 50 + 128
    assert np.abs(global_flow(stripes, None)).max() < 1e-9
    assert not global_flow(np.full((4, 5, 6), 7.0), None).any()


def test_motion_match():
    truth = noise(0, sigma=(1, 2, 2)) * np.linspace(0.5, 1.5, SHAPE[0])[:, None, None]
    same = motion_match(truth, truth, None)
    assert same == pytest.approx(
        {"motion_energy_correlation": 1, "motion_energy_ratio": 1, "flow_correlation": 1}, abs=1e-9
    )
    half = motion_match(truth, 100 + truth / 2, None)
    assert half["motion_energy_ratio"] == pytest.approx(0.5) and half["flow_correlation"] == pytest.approx(1)
    other = motion_match(truth, noise(1, sigma=(1, 2, 2)), None)
    assert abs(other["flow_correlation"]) < 0.3
    grey = motion_match(truth, np.full(SHAPE, 127.5), None)
    assert grey == {"motion_energy_correlation": 0, "motion_energy_ratio": 0, "flow_correlation": 0}


def test_lag_correlations_meet_the_frames_that_they_say():
    truth = noise(0)
    lags, values = lag_correlations(truth, noise(1), disc(), max_lag=4)
    assert lags.tolist() == list(range(-4, 5))
    for lag, value in zip(lags, values):
        movie = noise(1)[4 + lag : SHAPE[0] - 4 + lag]
        assert value == pytest.approx(movie_correlation(truth[4:-4], movie, disc()))
    assert peak_lag(np.arange(-2, 3), -((np.arange(-2, 3) - 0.3) ** 2)) == pytest.approx(0.3)
    assert peak_lag(np.arange(-2, 3), np.arange(5.0)) == 2


def test_identification_by_hand():
    candidates = [noise(k) for k in range(6)]
    movies = [candidates[2] + noise(9) - 128, candidates[0]]
    scores = similarity(movies, (c for c in candidates), disc())
    assert scores.shape == (2, 6)
    for row, movie in enumerate(movies):
        for column, candidate in enumerate(candidates):
            assert scores[row, column] == pytest.approx(movie_correlation(candidate, movie, disc()), abs=1e-5)
    np.testing.assert_array_equal(true_ranks(scores, np.array([2, 0])), [0, 0])
    seconds = similarity(movies, candidates, None, segment_frames=50)  # 20 frames are left over
    assert seconds.shape == (4, 12)
    expected = movie_correlation(candidates[1][50:100], movies[0][50:100], None)
    assert seconds[1, 3] == pytest.approx(expected, abs=1e-5)
    assert (true_ranks(seconds, np.array([4, 5, 0, 1])) == 0).all()
    assert not similarity([np.full(SHAPE, 7.0)], candidates, None).any()


def test_ranks_and_the_accuracy_of_every_number_of_ways():
    scores = np.array([[0.5, 0.1, 0.9, 0.5], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(true_ranks(scores, np.array([0, 1])), [1.5, 1.5])
    ranks, total, draws = np.array([0.0, 3.0, 9.0]), 10, 20_000
    ways = (1, 2, 4, 10)
    found = n_way_accuracy(ranks, total, ways)
    rng = np.random.default_rng(0)
    for k, n in enumerate(ways):
        for row, rank in enumerate(ranks):
            # Distractors 0 .. rank - 1 are better than the true one.
            drawn = rng.random((draws, total - 1)).argsort(1)[:, : n - 1]
            assert found[row, k] == pytest.approx((drawn >= rank).all(1).mean(), abs=0.015)
    chance = n_way_accuracy(np.arange(10.0), total, ways).mean(0)  # a guess has any rank
    np.testing.assert_allclose(chance, 1 / np.array(ways))


def test_clip_match_is_its_parts():
    truth, movie, mask = noise(0), noise(0) + noise(1) - 128, disc()
    found = clip_match(truth, movie, mask, max_lag=3, **SETTINGS)
    assert found.scores["movie_correlation"] == pytest.approx(movie_correlation(truth, movie, mask))
    assert found.lag_values[3] == pytest.approx(movie_correlation(truth[3:-3], movie[3:-3], mask))
    assert found.frames.shape == (120,) and found.pixels.shape == SHAPE[1:]
    y, x = 5, 20
    assert found.pixels[y, x] == pytest.approx(np.corrcoef(truth[:, y, x], movie[:, y, x])[0, 1])
    assert set(found.scores) >= {"ssim", "flow_correlation", "motion_energy_correlation"}


def test_degrees():
    per_degree = pixels_per_degree(64, width_cm=56.5, distance_cm=15.0)
    assert 1 / per_degree == pytest.approx(3.372, abs=1e-3)
    edge = visual_angle(np.array([-32.0, 0.0, 32.0]), per_degree)
    np.testing.assert_allclose(edge, np.degrees(np.arctan(np.array([-28.25, 0, 28.25]) / 15)))
    small = visual_angle(np.array([1e-3]), per_degree)
    np.testing.assert_allclose(small, 1e-3 / per_degree, rtol=1e-6)


@pytest.mark.parametrize(
    "match, call",
    [
        ("mask: expected one that stays", lambda: movie_spectra(noise(0), noise(1), np.ones(SHAPE, bool), **SETTINGS)),
        ("segment_seconds", lambda: movie_spectra(noise(0), noise(1), None, **SETTINGS | {"segment_seconds": 9.0})),
        ("above 0", lambda: movie_spectra(noise(0), noise(1), None, **SETTINGS | {"frame_rate": 0.0})),
        ("expected those of at least one", lambda: pool([])),
        (
            "one screen",
            lambda: pool(
                [movie_spectra(noise(0), noise(0), None, **SETTINGS | {"pixels_per_degree": p}) for p in (0.3, 0.4)]
            ),
        ),
        ("over: expected", lambda: coherence(movie_spectra(noise(0), noise(0), None, **SETTINGS), "all")),
        ("max_lag", lambda: lag_correlations(noise(0), noise(1), None, max_lag=60)),
        ("finite", lambda: peak_lag(np.arange(3), np.full(3, np.nan))),
        ("three frames", lambda: motion_match(noise(0)[:2], noise(1)[:2], None)),
        ("two frames", lambda: global_flow(noise(0)[:1], None)),
        ("movies: expected at least one", lambda: similarity([], [noise(0)], None)),
        ("candidates: expected at least one", lambda: similarity([noise(0)], [], None)),
        ("candidates: expected movies of one shape", lambda: similarity([noise(0)], [noise(1)[:9]], None)),
        ("segment_frames", lambda: similarity([noise(0)], [noise(1)], None, segment_frames=999)),
        ("true: expected a column", lambda: true_ranks(np.zeros((2, 3)), np.array([0]))),
        ("true: expected columns", lambda: true_ranks(np.zeros((2, 3)), np.array([0, 3]))),
        ("ranks", lambda: n_way_accuracy(np.array([5.0]), 5, [2])),
        ("ways", lambda: n_way_accuracy(np.array([1.0]), 5, [6])),
        ("num_pixels", lambda: pixels_per_degree(0, width_cm=1.0, distance_cm=1.0)),
        ("per_degree", lambda: visual_angle(1.0, 0.0)),
    ],
)
def test_errors_are_one_line(match, call):
    with pytest.raises(NeuroreconError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)
