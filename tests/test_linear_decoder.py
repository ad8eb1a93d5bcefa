"""The ridge decoder: against the dense solution, a known code, its own rules, and the salamander retina."""

import numpy as np
import pytest

from benchmarks import salamander_ridge
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation import ridge
from neurorecon.evaluation.baselines import grey_movie, mean_frame_movie, shuffled_neurons
from neurorecon.evaluation.decodable import (
    decodable_mask,
    pixel_correlations,
    smoothed_correlation,
    smoothed_movie,
)
from neurorecon.evaluation.linear_decoder import fit_linear_decoder
from neurorecon.evaluation.movie_metrics import movie_correlation
from tests.shared_data import SHARED, needs_shared

NUM_NEURONS, HEIGHT, WIDTH = 30, 4, 6


def world(seed, lengths, noise=0.5, code_seed=0):
    """Trials whose responses are a linear, delayed code of the pixels: r(t) = sum of A_k movie(t - k)."""
    rng = np.random.default_rng(seed)
    code = np.random.default_rng(code_seed).normal(0, 1, (3, HEIGHT * WIDTH, NUM_NEURONS)) / 8
    responses, movies = [], []
    for n in lengths:
        movie = rng.normal(0, 30, (n, HEIGHT * WIDTH))
        r = sum(np.pad(movie, ((k, 0), (0, 0)))[:n] @ code[k] for k in range(3))
        r = 20 + r + noise * r.std() * rng.normal(0, 1, r.shape)
        responses.append(r.astype(np.float32))
        layout = np.linspace(60, 180, HEIGHT * WIDTH)
        movies.append((movie + layout).reshape(n, HEIGHT, WIDTH).astype(np.float32))
    return responses, movies


@pytest.fixture(scope="module")
def trained():
    train, validation = world(1, [200] * 12), world(2, [150] * 3)
    return train, validation, fit_linear_decoder(*train, *validation, num_lags=5)


def dense(features, lags):
    """The matrix of all lags, trial after trial, (frame, lag * neuron)."""
    rows = []
    for x in features:
        padded = np.pad(x, ((0, max(lags)), (0, 0)))
        rows.append(np.concatenate([padded[lag : lag + len(x)] for lag in lags], axis=1))
    return np.concatenate(rows).astype(np.float64)


def test_square_roots_are_decoded_as_the_roots_themselves_would_be(trained):
    train, validation, plain = trained
    rooted = fit_linear_decoder(*train, *validation, num_lags=5, square_root=True)
    roots = [([np.sqrt(np.maximum(r, 0)) for r in responses], movies) for responses, movies in (train, validation)]
    by_hand = fit_linear_decoder(*roots[0], *roots[1], num_lags=5)
    unseen = np.maximum(world(3, [90])[0][0], 0)
    np.testing.assert_array_equal(rooted.predict(unseen), by_hand.predict(np.sqrt(unseen)))
    assert np.abs(rooted.predict(unseen) - plain.predict(unseen)).max() > 1
    silent = np.where(np.arange(NUM_NEURONS) < 5, rooted.uninformative, unseen)
    moved = silent + np.where(np.arange(NUM_NEURONS) < 5, 1.0, 0.0)
    nothing = rooted.predict(np.tile(rooted.uninformative, (90, 1)))
    np.testing.assert_allclose(nothing, np.broadcast_to(nothing[0], nothing.shape), atol=1e-3)
    assert np.abs(rooted.predict(moved) - rooted.predict(silent)).max() > 0.01
    below = unseen.copy()
    below[3] = -1.0  # a later trial may dip below the training trials' least
    assert np.isfinite(rooted.predict(below)).all()


@pytest.mark.parametrize(("num_lags", "lag_step"), [(1, 1), (4, 1), (6, 2), (6, 3)])
def test_lagged_gram_is_the_dense_one(num_lags, lag_step):
    rng = np.random.default_rng(0)
    lags = np.arange(0, num_lags, lag_step)
    features = [rng.normal(0.3, 1, (n, 3)).astype(np.float32) for n in (20, 9, 2, 5)]  # some shorter than the lags
    x = dense(features, lags)
    np.testing.assert_allclose(ridge.lagged_gram(features, lags), x.T @ x, atol=1e-4)
    np.testing.assert_allclose(ridge.feature_means(features, lags), x.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("num_neurons", [4, 40])  # Gram matrix of the features, and of the frames
def test_both_forms_solve_the_ridge_problem(num_neurons):
    rng = np.random.default_rng(0)
    features = [rng.normal(0.5, 1, (n, num_neurons)).astype(np.float32) for n in (30, 12, 2)]
    targets = [rng.normal(0, 1, (len(f), 5)).astype(np.float32) for f in features]
    mean = np.concatenate(targets).mean(axis=0)
    targets = [t - mean for t in targets]
    problem = ridge.ridge_problem(features, targets, num_lags=6, lag_step=2, memory_limit_gib=1)
    x, y = dense(features, [0, 2, 4]), np.concatenate(targets)
    centred = x - x.mean(axis=0)
    system = centred.T @ centred + 0.1 * len(x) * np.eye(x.shape[1])
    expected = np.linalg.solve(system, centred.T @ y)
    weights, offset = problem.solve(0.1, None)
    np.testing.assert_allclose(weights.reshape(-1, 5), expected, atol=2e-6)
    np.testing.assert_allclose(offset, -x.mean(axis=0) @ expected, atol=2e-6)
    some, _ = problem.solve(0.1, np.array([3, 1]))
    np.testing.assert_allclose(some, weights[..., [3, 1]], atol=1e-6)


@pytest.mark.parametrize("square_root", [False, True])
def test_principal_components_where_the_neurons_do_not_fit(trained, square_root):
    (responses, movies), validation, whole = trained
    given = {"num_lags": 6, "lag_step": 2, "penalties": (0.1,), "backgrounds": ("frame",), "square_root": square_root}
    limit = ridge.bytes_needed(10**6, 3 * 20, HEIGHT * WIDTH) / 2**30
    decoder = fit_linear_decoder(responses, movies, *validation, memory_limit_gib=limit, **given)
    assert decoder.components == 20 and decoder.weights.shape == (3, NUM_NEURONS, HEIGHT * WIDTH)
    # Ridge on the projections, worked out at once.
    seen = [np.sqrt(np.maximum(r, 0)) if square_root else r for r in responses]
    z = [(r - decoder.response_mean) / decoder.response_std for r in seen]
    means = [(x + np.pad(x[1:], ((0, 1), (0, 0)))) / 2 for x in z]
    joint = np.concatenate(means).astype(np.float64)
    directions = np.linalg.svd(joint, full_matrices=False)[2][:20].T
    x = dense([m @ directions for m in means], [0, 2, 4])
    y = np.concatenate(movies).reshape(len(x), -1).astype(np.float64)
    x, y = x - x.mean(0), y - y.mean(0)
    weights = np.linalg.solve(x.T @ x + 0.1 * len(x) * np.eye(x.shape[1]), x.T @ y)
    expected = np.einsum("nc,lcp->lnp", directions, weights.reshape(3, 20, -1))
    np.testing.assert_allclose(decoder.weights, expected, atol=1e-4)
    # Fewer components decode worse, all of them as the neurons do.
    (unseen,), (truth,) = world(4, [150])
    scores = [movie_correlation(truth, d.predict(unseen), None) for d in (decoder, whole)]
    assert 0.5 < scores[0] < scores[1] + 0.02
    assert whole.components == 0


def test_recovers_a_linear_code():
    train, validation, test = (world(s, [200] * n, noise=0) for s, n in ((1, 12), (2, 2), (3, 1)))
    decoder = fit_linear_decoder(*train, *validation, num_lags=8, penalties=(1e-6, 1e-4, 1e-2))
    movie = decoder.predict(test[0][0])
    assert movie.shape == test[1][0].shape and movie.dtype == np.float32
    # the last frames lack the responses that follow them
    assert movie_correlation(test[1][0][:-8], movie[:-8], None) > 0.95
    one_lag = fit_linear_decoder(*train, *validation, num_lags=1, penalties=(1e-6, 1e-4, 1e-2))
    assert movie_correlation(test[1][0], one_lag.predict(test[0][0]), None) < 0.9


def test_decodes_unseen_noisy_trials_and_needs_the_right_neurons(trained):
    _, _, decoder = trained
    (responses,), (truth,) = world(4, [150])
    score = movie_correlation(truth, decoder.predict(responses), None)
    order = shuffled_neurons(NUM_NEURONS, seed=0)
    layout = mean_frame_movie(trained[0][1], len(truth))
    assert score > movie_correlation(truth, layout, None) + 0.1
    assert movie_correlation(truth - layout, decoder.predict(responses) - layout, None) > 0.6
    assert abs(movie_correlation(truth - layout, decoder.predict(responses[:, order]) - layout, None)) < 0.1


def test_a_permutation_of_the_neurons_changes_nothing(trained):
    (responses, movies), (v_responses, v_movies), decoder = trained
    order = shuffled_neurons(NUM_NEURONS, seed=1)
    permuted = fit_linear_decoder(
        [r[:, order] for r in responses], movies, [r[:, order] for r in v_responses], v_movies, num_lags=5
    )
    np.testing.assert_allclose(permuted.predict(v_responses[0][:, order]), decoder.predict(v_responses[0]), atol=0.05)


def test_the_penalty_is_chosen_on_validation_trials_only(trained):
    train, validation, decoder = trained
    values = decoder.validation_correlations
    assert decoder.penalty == max(values, key=values.get)
    for penalty in values:
        alone = fit_linear_decoder(*train, *validation, num_lags=5, penalties=(penalty,), backgrounds=("frame",))
        decoded = [alone.predict(r) for r in validation[0]]
        expected = np.mean([movie_correlation(t, d, None) for t, d in zip(validation[1], decoded, strict=True)])
        assert values[penalty] == pytest.approx(expected, abs=1e-5)
    # Validation trials of another code: only the least detailed decoder is not harmful.
    # The weights of a given penalty stay the same: validation trials are never fitted.
    other = world(5, [150] * 2, code_seed=9)
    misled = fit_linear_decoder(*train, *other, num_lags=5)
    assert misled.penalty > decoder.penalty
    a = fit_linear_decoder(*train, *other, num_lags=5, penalties=(1,))
    b = fit_linear_decoder(*train, *validation, num_lags=5, penalties=(1,))
    np.testing.assert_array_equal(a.weights, b.weights)


def test_skipped_frames_do_not_count_in_the_choice(trained):
    train, (responses, movies), _ = trained
    spoiled = [m.copy() for m in movies]
    for m in spoiled:
        m[:30] = 255 - m[:30]
    chosen = [fit_linear_decoder(*train, responses, m, num_lags=5, skip_frames=30) for m in (movies, spoiled)]
    assert chosen[0].validation_correlations == chosen[1].validation_correlations
    full = fit_linear_decoder(*train, responses, spoiled, num_lags=5)
    assert full.validation_correlations != chosen[1].validation_correlations


def test_background_is_chosen_on_validation_too(trained):
    train, validation, decoder = trained
    assert np.ptp(decoder.background) > 50  # these movies have a layout
    # without it in the validation movies, the mean frame only hurts
    flat = [m - np.linspace(60, 180, 24).reshape(HEIGHT, WIDTH).astype(np.float32) for m in validation[1]]
    level = fit_linear_decoder(*train, validation[0], flat, num_lags=5)
    assert np.ptp(level.background) == 0
    assert np.unique(level.background) == pytest.approx(np.mean([m.mean() for m in train[1]]), rel=1e-4)


def test_mask_decides_where_the_penalty_is_chosen_and_what_is_decoded(trained):
    train, validation, decoder = trained
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[1:3, 2:5] = True
    inside = fit_linear_decoder(*train, *validation, num_lags=5, mask=mask, decode_outside=False)
    movie = inside.predict(validation[0][0])
    assert (movie[:, ~mask] == inside.background[~mask]).all()
    both = fit_linear_decoder(*train, *validation, num_lags=5, mask=mask)
    assert both.validation_correlations == pytest.approx(inside.validation_correlations, abs=1e-6)
    np.testing.assert_allclose(both.predict(validation[0][0])[:, mask], movie[:, mask], atol=1e-2)
    assert np.ptp(both.predict(validation[0][0])[:, ~mask], axis=0).min() > 1
    few = fit_linear_decoder(*train, *validation, num_lags=5, selection_pixels=6, penalties=(decoder.penalty,))
    np.testing.assert_array_equal(few.weights, decoder.weights)
    assert few.validation_correlations[few.penalty] != decoder.validation_correlations[few.penalty]


def test_lag_step_averages_frames():
    rng = np.random.default_rng(0)
    responses = [rng.normal(5, 2, (60, 3)).astype(np.float32) for _ in range(4)]
    # decoded from the mean over frames t and t + 1: exact with lag_step 2, one lag
    movies = []
    for r in responses:
        pair = (r + np.concatenate([r[1:], r.mean(axis=0)[None]])) / 2
        movies.append((pair @ rng.normal(0, 1, (3, 4)) * 0 + pair[:, :1]).reshape(60, 2, 2))
    decoder = fit_linear_decoder(
        responses[:3], movies[:3], responses[3:], movies[3:], num_lags=2, lag_step=2, penalties=(1e-6,)
    )
    assert decoder.weights.shape == (1, 3, 4)
    np.testing.assert_allclose(decoder.predict(responses[3])[:-1], movies[3][:-1], atol=0.02)


def test_silent_neurons_and_responses_beyond_the_end_count_as_the_mean(trained):
    train, validation, decoder = trained
    silent = [np.concatenate([r, np.zeros((len(r), 1), np.float32)], axis=1) for r in train[0]]
    v_silent = [np.concatenate([r, np.zeros((len(r), 1), np.float32)], axis=1) for r in validation[0]]
    found = fit_linear_decoder(silent, train[1], v_silent, validation[1], num_lags=5)
    np.testing.assert_allclose(found.predict(v_silent[0]), decoder.predict(validation[0][0]), atol=0.05)
    padded = np.concatenate([validation[0][0], np.tile(decoder.response_mean, (9, 1))])
    np.testing.assert_allclose(decoder.predict(padded)[:150], decoder.predict(validation[0][0]), atol=1e-3)


def test_decodable_pixels_and_smoothing():
    rng = np.random.default_rng(0)
    truths = [rng.normal(0, 1, (80, 4, 5)) for _ in range(2)]
    quality = rng.permutation(20).reshape(4, 5) / 20
    decoded = [quality * t + 0.3 * rng.normal(0, 1, t.shape) for t in truths]
    for movie in decoded:
        movie[:, 0, 0] = 7
    values = pixel_correlations(truths, decoded)
    assert np.isnan(values[0, 0]) and np.nanmax(values) > 0.8
    both = [np.concatenate(m)[:, 2, 3] for m in (truths, decoded)]
    assert values[2, 3] == pytest.approx(np.corrcoef(*both)[0, 1])
    mask = decodable_mask(truths, decoded)
    assert mask.sum() == 5 and not mask[0, 0]
    assert values[mask].min() >= np.nanmax(values[~mask])
    assert decodable_mask(truths, decoded, fraction=1).all()
    slow = smoothed_movie(truths[0], 2)
    assert slow.std() < 0.5 and slow.mean() == pytest.approx(truths[0].mean(), abs=0.02)
    # noise that is new in every frame goes, the slow truth stays
    noisy = slow + rng.normal(0, 1, slow.shape)
    assert smoothed_correlation(slow, noisy, mask, sigma=2) > movie_correlation(slow, noisy, mask) + 0.2


def test_controls():
    assert (grey_movie((3, 4, 5)) == 127.5).all() and grey_movie((3, 4, 5)).dtype == np.float32
    order = shuffled_neurons(9, seed=0)
    assert sorted(order) == list(range(9)) and (order != np.arange(9)).all()
    assert (order != shuffled_neurons(9, seed=1)).any()
    with pytest.raises(NeuroreconError, match="at least 2"):
        shuffled_neurons(1, seed=0)
    frames = mean_frame_movie([np.zeros((2, 3, 3)), np.full((6, 3, 3), 4.0)], 5)
    assert frames.shape == (5, 3, 3) and (frames == 3).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"movies": []}, "movies: expected at least one"),
        (
            {"movies": [np.zeros((19, 4, 6))] * 2},
            "movies[0]: expected (time, height, width) with the 20 frames",
        ),
        ({"responses": [np.full((20, 3), np.nan)] * 2}, "responses[0]: expected finite"),
        ({"responses": [np.ones((20, 3)), np.ones((20, 4))]}, "responses[1]: expected (time, 3)"),
        ({"validation_responses": [np.ones((20, 4))]}, "validation_movies: expected the neurons"),
        ({"validation_movies": [np.zeros((20, 4, 6))]}, "validation_movies: expected contrast"),
        ({"mask": np.zeros((4, 6), bool)}, "mask: expected booleans"),
        ({"mask": np.ones((4, 6))}, "mask: expected booleans"),
        ({"penalties": (0,)}, "penalties: expected numbers above 0"),
        ({"num_lags": 5, "lag_step": 2}, "lag_step: expected a divisor"),
        ({"backgrounds": ("sky",)}, "backgrounds: expected some of"),
        ({"skip_frames": 20}, "(more than 20)"),
        ({"memory_limit_gib": 1e-6}, "need 0.0 GiB, more than 1e-06"),
    ],
)
def test_bad_input_gets_one_line(arguments, words):
    rng = np.random.default_rng(0)
    good = {
        "responses": [rng.normal(0, 1, (20, 3))] * 2,
        "movies": [rng.normal(0, 1, (20, 4, 6))] * 2,
        "validation_responses": [rng.normal(0, 1, (20, 3))],
        "validation_movies": [rng.normal(0, 1, (20, 4, 6))],
        "num_lags": 4,
    }
    fit_linear_decoder(**good)
    with pytest.raises(NeuroreconError) as caught:
        fit_linear_decoder(**(good | arguments))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_predict_refuses_other_neurons(trained):
    with pytest.raises(NeuroreconError, match=r"expected \(time, 30\)"):
        trained[2].predict(np.zeros((10, 29)))


@needs_shared("recordings/salamander_retina/stim_crop80x80_bits_36000x800.npy")
def test_reproduces_the_salamander_figures():
    responses, movie = salamander_ridge.read(SHARED / "recordings/salamander_retina", 4)
    decoder = salamander_ridge.fit(responses, movie, (salamander_ridge.REFERENCE_PENALTY,))
    found = salamander_ridge.scores(decoder, responses, movie)
    assert round(found["everywhere"], 3) == 0.040
    assert round(found["best_quarter"], 3) == 0.090
    assert round(found["best_quarter_smoothed"], 3) == 0.187


def test_a_run_tells_that_it_decodes_components(trained, capsys):
    from types import SimpleNamespace

    from experiments.decoder_training import tell_components

    (responses, movies), validation, whole = trained
    limit = ridge.bytes_needed(10**6, 3 * 20, HEIGHT * WIDTH) / 2**30
    some = fit_linear_decoder(
        responses, movies, *validation, num_lags=6, lag_step=2, penalties=(0.1,), memory_limit_gib=limit
    )
    for decoder in (whole, some):
        tell_components(SimpleNamespace(name="mouse1", num_neurons=NUM_NEURONS), decoder)
    assert capsys.readouterr().out == (
        f"mouse1: the linear decoder has the 20 leading principal components of {NUM_NEURONS} neurons, which would not "
        "fit into its memory\n"
    )
