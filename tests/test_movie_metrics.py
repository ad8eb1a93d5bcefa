"""Movie scores: against the published code's values, scikit-image, closed forms, and what a user expects."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation import movie_metrics as score_all
from neurorecon.evaluation.movie_metrics import (
    frame_correlation,
    frame_correlations,
    luminance_contrast_match,
    motion_energy,
    movie_correlation,
    psnr,
    rmse,
    ssim,
    ssim_map,
)
from neurorecon.evaluation.published_movie_metrics import (
    average_movies,
    published_frame_correlation,
    published_luminance_contrast_match,
    published_motion_energy,
    published_movie_correlation,
    published_psnr,
    published_rmse,
    published_ssim,
)
from tests.shared_data import SHARED, needs_shared

published = needs_shared("reference/video_metrics.npz")


@pytest.fixture(scope="module")
def reference():
    return np.load(SHARED / "reference/video_metrics.npz")


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 255, (6, 14, 17))
    return truth, np.clip(truth + rng.normal(0, 60, truth.shape), 0, 255)


def disc(height=14, width=17):
    y, x = np.mgrid[:height, :width]
    return (y - height / 2) ** 2 + (x - width / 2) ** 2 < 25


@published
@pytest.mark.parametrize("mask", ["mask_eval_2d", "mask_half_2d", "mask_3d"])
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("video_corr", published_movie_correlation),
        ("mean_frame_corr", published_frame_correlation),
        ("RMSE", published_rmse),
        ("PSNR", published_psnr),
        ("SSIM", published_ssim),
    ],
)
def test_published_scores_match_the_published_code(reference, name, function, mask):
    found = [function(reference["ground_truth"], r, reference[mask]) for r in reference["reconstructions"]]
    np.testing.assert_allclose(found, reference[f"{name}__{mask}"], rtol=1e-9)


@published
def test_published_variants_and_averages_match_the_published_code(reference):
    truth, movies, mask = (reference[k] for k in ("ground_truth", "reconstructions", "mask_eval_2d"))
    for key in ("mask_eval_2d", "mask_3d"):
        for r, expected in zip(movies, reference[f"energy_recon__{key}"], strict=True):
            np.testing.assert_allclose(published_motion_energy(r, reference[key]), expected, rtol=1e-9)
    np.testing.assert_allclose(
        published_psnr(truth, movies[0], mask, max_value=200), reference["PSNR_max200__mask_eval_2d"]
    )
    np.testing.assert_allclose(
        published_ssim(truth, movies[0], mask, max_value=200), reference["SSIM_max200__mask_eval_2d"]
    )
    clipped = np.minimum(reference["alpha_mask"], 1)
    assert published_rmse(truth, movies[0], clipped) == pytest.approx(reference["alpha_mask_passed_directly"][0])
    for threshold in (1, 0.5):
        found = published_luminance_contrast_match(truth, movies[0], reference["alpha_mask"], threshold=threshold)
        np.testing.assert_allclose(found[0], reference[f"lcm_recon__th{threshold}"], atol=1e-3)
        np.testing.assert_allclose(found[1], reference[f"lcm_gt__th{threshold}"], atol=1e-3)
    average, smooth = average_movies(movies), average_movies(movies, smoothing=0.5)
    np.testing.assert_allclose(average, reference["average_recon"], rtol=1e-12)
    np.testing.assert_allclose(smooth, reference["average_recon_gauss05"], rtol=1e-9)
    broken = movies.copy()
    broken[2, 5] = np.nan
    np.testing.assert_allclose(average_movies(broken)[5], reference["average_recon_with_nan_frame"])
    for name, function in [("video_corr", published_movie_correlation), ("SSIM", published_ssim)]:
        for suffix, movie in [("average", average), ("average_gauss05", smooth)]:
            expected = reference[f"{name}_{suffix}__mask_eval_2d"]
            np.testing.assert_allclose(function(truth, movie, mask), expected, rtol=1e-9)


@published
def test_our_scores_equal_the_published_ones_where_they_should(reference):
    truth, movies = reference["ground_truth"], reference["reconstructions"]
    found = score_all(truth, movies[1], reference["mask_eval_2d"] == 1)
    for ours, theirs in {
        "movie_correlation": "video_corr",
        "frame_correlation": "mean_frame_corr",
        "rmse": "RMSE",
        "psnr": "PSNR",
        "published_ssim": "SSIM",
    }.items():
        np.testing.assert_allclose(found[ours], reference[f"{theirs}__mask_eval_2d"][1], rtol=1e-9)
    # an alpha mask is cut at 1, whether or not it goes above
    assert score_all(truth, movies[1], reference["alpha_mask"]) == pytest.approx(found)


def test_ssim_is_scikit_images(pair):
    truth, movie = pair
    expected = [
        structural_similarity(
            t, m, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
        )[1]
        for t, m in zip(truth, movie, strict=True)
    ]
    np.testing.assert_allclose(ssim_map(truth, movie), expected, atol=1e-10)
    assert ssim(truth, movie, disc()) == pytest.approx(np.asarray(expected)[:, disc()].mean())
    assert ssim(truth, truth, disc()) == pytest.approx(1)
    assert np.isfinite(ssim(truth[:, :4, :4], movie[:, :4, :4], None))


def test_ssim_outside_the_mask_does_not_count(pair):
    truth, movie = pair
    mask = np.zeros((14, 17), bool)
    mask[:, :3] = True
    far = movie.copy()
    far[:, :, 12:] = 0  # further from the mask than the window reaches
    assert ssim(truth, far, mask) == ssim(truth, movie, mask)


def test_closed_forms():
    truth = np.zeros((2, 3, 4))
    truth[:, 1] = 100
    assert rmse(truth, truth + 3, None) == pytest.approx(3)
    assert psnr(truth, truth + 3, None) == pytest.approx(20 * np.log10(85))
    assert psnr(truth, truth, None) == float("inf")
    assert movie_correlation(truth, 7 - 2 * truth, None) == pytest.approx(-1)
    # frames perfectly followed, but their mean levels swapped: high per frame, lower over the movie
    levels = np.array([0, 50.0])[:, None, None]
    assert frame_correlation(truth + levels, truth - levels, None) == pytest.approx(1)
    assert movie_correlation(truth + levels, truth - levels, None) < 0.6


def test_only_the_mask_counts(pair):
    truth, movie = pair
    mask = disc()
    spoiled = np.where(mask, movie, 255 - truth)
    for function in (movie_correlation, frame_correlation, rmse, psnr):
        assert function(truth, spoiled, mask) == function(truth, movie, mask)
        assert function(truth, spoiled, None) != function(truth, movie, None)


def test_a_moving_mask_is_a_still_one_when_it_does_not_move(pair):
    truth, movie = pair
    moving = np.repeat(disc()[None], len(truth), axis=0)
    assert score_all(truth, movie, moving) == pytest.approx(score_all(truth, movie, disc()))
    assert score_all(truth, movie, disc()[None]) == score_all(truth, movie, disc())
    np.testing.assert_allclose(motion_energy(movie, moving), motion_energy(movie, disc()))


def test_frame_correlation_follows_a_moving_mask(pair):
    truth, movie = pair
    moving = np.zeros(truth.shape, bool)
    for t in range(len(truth)):
        moving[t, :, t : t + 5] = True
    expected = [np.corrcoef(truth[t, :, t : t + 5].ravel(), movie[t, :, t : t + 5].ravel())[0, 1] for t in range(6)]
    np.testing.assert_allclose(frame_correlations(truth, movie, moving), expected)
    assert frame_correlation(truth, movie, moving) == pytest.approx(np.mean(expected))


def test_constant_frames_are_left_out_and_constant_movies_score_zero(pair):
    truth, movie = pair
    movie = movie.copy()
    movie[2] = 80
    assert np.isnan(frame_correlations(truth, movie, disc())[2])
    assert frame_correlation(truth, movie, disc()) == pytest.approx(
        np.delete(frame_correlations(truth, movie, disc()), 2).mean()
    )
    grey = np.full(truth.shape, 127.5)
    assert np.isnan(movie_correlation(truth, grey, disc()))
    assert np.isnan(published_movie_correlation(truth, grey, disc()))
    for nearly in (grey, grey + np.random.default_rng(1).uniform(-1e-5, 1e-5, grey.shape)):
        found = score_all(truth, nearly, disc())
        assert found["movie_correlation"] == 0 and found["frame_correlation"] == 0
    found = score_all(grey, truth, disc())
    assert np.isnan(found["movie_correlation"]) and np.isnan(found["frame_correlation"])


def test_motion_energy_and_contrast_match():
    movie = np.zeros((4, 5, 6)) + np.array([0, 1, 4, 2.0])[:, None, None]
    np.testing.assert_allclose(motion_energy(movie, None), [1, 3, 2])
    moving = np.zeros(movie.shape, bool)
    moving[:2, 0], moving[1:3, 1] = True, True
    steps = movie + np.arange(5)[:, None] * np.arange(4)[:, None, None]  # row r changes by r more in each step
    np.testing.assert_allclose(motion_energy(steps, moving), [1, 4, np.nan])
    rng = np.random.default_rng(2)
    truth = rng.normal(120, 20, (4, 5, 6))
    mask = np.ones((5, 6), bool)
    mask[0] = False
    matched = luminance_contrast_match(truth, movie + rng.normal(0, 0.1, movie.shape), mask)
    assert matched[:, mask].mean() == pytest.approx(truth[:, mask].mean())
    assert matched[:, mask].std() == pytest.approx(truth[:, mask].std())
    assert (matched[:, 0] == 127.5).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, m, k: (t, m[:-1], k), "movie: expected the shape of the truth"),
        (lambda t, m, k: (t[0], m[0], k), "truth: expected a movie"),
        (lambda t, m, k: (t, np.where(t > 250, np.nan, m), k), "movie: expected finite grey values"),
        (lambda t, m, k: (np.where(t > 250, np.inf, t), m, k), "truth: expected finite grey values"),
        (lambda t, m, k: (t, m, k.T), "mask: expected shape"),
        (lambda t, m, k: (t, m, k & False), "mask: expected at least one pixel"),
        (lambda t, m, k: (t, m, np.where(k, 1.0, np.nan)), "mask: expected booleans or finite"),
        (lambda t, m, k: (t.astype(str), m, k), "truth: expected grey values"),
    ],
)
def test_bad_input_gets_one_line(pair, change, words):
    with pytest.raises(NeuroreconError) as caught:
        score_all(*change(*pair, disc()))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_more_bad_input(pair):
    truth, movie = pair
    with pytest.raises(NeuroreconError, match="at least two frames"):
        motion_energy(movie[:1], None)
    with pytest.raises(NeuroreconError, match="found a constant"):
        luminance_contrast_match(truth, np.full(truth.shape, 9.0), None)
    with pytest.raises(NeuroreconError, match="of one shape"):
        average_movies([truth, truth[:-1]])
    with pytest.raises(NeuroreconError, match="NaN in all"):
        average_movies([np.full((2, 3, 3), np.nan)])
