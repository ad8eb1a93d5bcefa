"""Response scores: against the published libraries' values, NumPy's own correlation, and known answers."""

import numpy as np
import pytest

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation import repeat_metrics as repeats
from neurorecon.evaluation.response_metrics import (
    competition_correlation,
    correlation,
    neuron_correlations,
    out_of_fold_correlations,
    single_trial_correlation,
    training_correlations,
    trial_correlations,
)
from tests.shared_data import SHARED, needs_shared

published = needs_shared("reference/response_metrics.npz")
FLOAT32 = 5e-6  # the reference ran in float32


@pytest.fixture(scope="module")
def reference():
    return dict(np.load(SHARED / "reference/response_metrics.npz"))


def cut(arrays, lengths):
    """(trial, neuron, frame) with padding -> list of (time, neuron)."""
    return [a[:, :n].T for a, n in zip(arrays, lengths, strict=True)]


@published
def test_single_trial_correlations_match_the_competition(reference):
    predictions = cut(reference["predictions"], reference["trial_lengths"])
    for suffix, key in (("", "targets"), ("_with_nan", "targets_with_nan")):
        targets = cut(reference[key], reference["trial_lengths"])
        found = neuron_correlations(predictions, targets)
        np.testing.assert_allclose(found, reference[f"ecker_per_neuron{suffix}"], atol=FLOAT32)
        assert single_trial_correlation(predictions, targets) == pytest.approx(
            float(reference[f"ecker_mean{suffix}"]), abs=FLOAT32
        )
        assert found[2] == 0  # a neuron with a constant target
    assert found[4] == 0  # a neuron with a NaN


@published
def test_out_of_fold_and_training_metrics_match_dwiseneuro(reference):
    lengths = reference["trial_lengths"]
    found = out_of_fold_correlations(cut(reference["predictions"], lengths), cut(reference["targets"], lengths))
    np.testing.assert_allclose(found, reference["lromul_oof_per_neuron"], atol=FLOAT32)
    assert found.mean() == pytest.approx(float(reference["lromul_oof_mean"]), abs=FLOAT32)
    weights = reference["cm_weights"].reshape(-1, 2)
    means = []
    for k in range(2):
        arrays = [
            list(reference[f"cm_{name}_mouse{k}"].reshape(8, -1, 16).swapaxes(1, 2)) for name in ("pred", "target")
        ]
        means.append(training_correlations(*arrays, weights[:, k]).mean())
    np.testing.assert_allclose(means, reference["cm_corr_per_mouse"], atol=FLOAT32)
    assert np.mean(means) == pytest.approx(float(reference["cm_corr"]), abs=FLOAT32)


@published
def test_repeat_metrics_match_neuralpredictors_and_vivit(reference):
    responses = list(reference["rep_responses"].swapaxes(2, 3))
    predictions = list(reference["rep_predictions"].swapaxes(1, 2))
    for name, found in {
        "fev": repeats.fraction_explainable_variance(responses),
        "feve": repeats.fraction_explainable_variance_explained(responses, predictions),
        "explainable_var": repeats.explainable_variance(responses),
        "oracle_jackknife": repeats.oracle_correlation(responses),
        "oracle_conservative": repeats.conservative_oracle_correlation(responses),
        "movie_corr_to_average_pooled": repeats.correlation_to_average(responses, predictions),
        "movie_corr_to_average_per_movie": repeats.correlation_to_average_by_movie(responses, predictions),
        "movie_cc_norm": repeats.normalised_correlation(responses, predictions),
    }.items():
        np.testing.assert_allclose(found, reference[name], atol=FLOAT32, err_msg=name)
    # an unrepeated movie is left out of the mean over movies
    extra = reference["movie_unrepeated_response"].T[None]
    found = repeats.correlation_to_average_by_movie([*responses, extra], [*predictions, predictions[0]])
    np.testing.assert_allclose(found, reference["movie_corr_to_average_per_movie"], atol=FLOAT32)
    trials = [r for movie in responses for r in movie]
    predicted = [p for p, movie in zip(predictions, responses, strict=True) for _ in movie]
    np.testing.assert_allclose(
        neuron_correlations(predicted, trials, skip=0),
        reference["movie_single_trial_challenge"],
        atol=FLOAT32,
    )
    np.testing.assert_allclose(
        trial_correlations(predicted, trials), reference["movie_single_trial_per_trial"], atol=FLOAT32
    )


@published
def test_still_images_with_unequal_repeats_match_sensorium(reference):
    responses, ids = repeats.group_repeats(reference["still_responses"], reference["still_image_ids"])
    predictions, _ = repeats.group_repeats(reference["still_predictions"], reference["still_image_ids"])
    single = correlation(reference["still_predictions"], reference["still_responses"])
    np.testing.assert_allclose(single, reference["still_single_trial_corr"], atol=FLOAT32)
    averages = [p.mean(axis=0) for p in predictions]
    np.testing.assert_allclose(
        repeats.correlation_to_average(responses, averages), reference["still_corr_to_average"], atol=FLOAT32
    )
    np.testing.assert_allclose(repeats.fraction_explainable_variance(responses), reference["still_fev"], atol=FLOAT32)
    assert len({len(r) for r in responses}) > 1 and len(ids) == len(responses)
    found = repeats.fraction_explainable_variance_explained(responses, averages)
    np.testing.assert_allclose(found, reference["still_feve"], rtol=1e-5)
    found = repeats.fraction_explainable_variance_explained(responses, averages, min_fev=repeats.FEV_THRESHOLD)
    np.testing.assert_allclose(found, reference["still_feve_thresholded"], rtol=1e-5)


@pytest.fixture
def trials():
    rng = np.random.default_rng(0)
    targets = [rng.gamma(1, 2, (n, 5)).astype(np.float32) for n in (70, 90, 40)]
    return [t + rng.normal(0, 2, t.shape).astype(np.float32) for t in targets], targets


def test_streaming_equals_numpy_on_the_concatenation(trials):
    predictions, targets = trials
    p, t = (np.concatenate([a[10:] for a in arrays]).astype(np.float64) for arrays in trials)
    expected = [np.corrcoef(p[:, n], t[:, n])[0, 1] for n in range(5)]
    np.testing.assert_allclose(neuron_correlations(predictions, targets, skip=10), expected, atol=1e-7)
    # far from 0, where one pass over the sums would lose every digit
    far = [a + 1e4 for a in targets]
    np.testing.assert_allclose(neuron_correlations(predictions, far, skip=10), expected, atol=2e-3)


def test_skip_and_ends(trials):
    predictions, targets = trials
    spoiled = [p.copy() for p in predictions]
    for p in spoiled:
        p[:30] = 99
    assert single_trial_correlation(spoiled, targets, skip=30) == single_trial_correlation(
        predictions, targets, skip=30
    )
    assert single_trial_correlation(spoiled, targets, skip=29) != single_trial_correlation(
        predictions, targets, skip=29
    )
    # the trial of 40 frames has none after the first 50
    assert single_trial_correlation(predictions, targets) == single_trial_correlation(predictions[:2], targets[:2])
    found = neuron_correlations(predictions, targets, skip=5, max_frames=60, drop_last=2)
    by_hand = [[a[5 : min(60, len(a)) - 2] for a in arrays] for arrays in trials]
    np.testing.assert_allclose(found, neuron_correlations(*by_hand, skip=0))


def test_the_competition_weighs_neurons_not_animals(trials):
    predictions, targets = trials
    one = ([p[:, :1] for p in predictions], [t[:, :1] for t in targets])
    rest = ([p[:, 1:] for p in predictions], [t[:, 1:] for t in targets])
    assert competition_correlation([one, rest]) == pytest.approx(single_trial_correlation(predictions, targets))


def test_constants_get_zero_not_nan():
    x = np.arange(12.0).reshape(6, 2)
    x[:, 1] = 3
    np.testing.assert_allclose(correlation(x, x), [1, 0], atol=1e-7)


def test_repeat_metrics_recover_a_known_signal_share():
    rng = np.random.default_rng(1)
    signal = rng.normal(0, 1, (3, 400, 4))
    noise = np.array([0.1, 0.5, 1, 2.0])
    responses = [s + noise * rng.normal(0, 1, (10, 400, 4)) for s in signal]
    expected = 1 / (1 + noise**2)
    np.testing.assert_allclose(repeats.fraction_explainable_variance(responses), expected, atol=0.03)
    np.testing.assert_allclose(repeats.fraction_explainable_variance_explained(responses, list(signal)), 1, atol=0.03)
    # a prediction with half of the explainable variance
    half = list(signal + rng.normal(0, 1, signal.shape))
    np.testing.assert_allclose(repeats.normalised_correlation(responses, half), np.sqrt(0.5), atol=0.04)


def test_a_neuron_without_signal_power_has_no_normalised_correlation():
    rng = np.random.default_rng(2)
    responses = [rng.normal(0, 1, (4, 30, 2)) for _ in range(2)]
    for r in responses:
        r[:, :, 1] = 5
    found = repeats.normalised_correlation(responses, [r[0] for r in responses])
    assert np.isnan(found[1])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p, t: single_trial_correlation(p[:2], t), "predictions: expected one for each of the 3"),
        (lambda p, t: single_trial_correlation([], []), "at least one"),
        (lambda p, t: single_trial_correlation([a[:-1] for a in p], t), r"predictions[0]: expected (time"),
        (lambda p, t: single_trial_correlation(p, [a * 0 for a in t]), "found only zeros (withheld?)"),
        (lambda p, t: single_trial_correlation(p, t, skip=90), "more than 90 frames"),
        (lambda p, t: trial_correlations(p, t, skip=90), "more than 90 frames"),
        (lambda p, t: training_correlations(p, t, np.zeros(3)), "weights: expected an item"),
        (lambda p, t: training_correlations(p, t, np.ones(2)), "weights: expected one for each"),
        (lambda p, t: competition_correlation([]), "animals: expected at least one"),
        (lambda p, t: repeats.fraction_explainable_variance([t[0]]), "expected (repeat, time, neuron)"),
        (lambda p, t: repeats.fraction_explainable_variance([t[0][None]]), "expected at least 2 repeats"),
        (lambda p, t: repeats.oracle_correlation([np.full((2, 3, 4), np.nan)]), "expected finite values"),
        (lambda p, t: repeats.correlation_to_average([t[0][None]], [t[1]]), "predictions: expected"),
        (lambda p, t: repeats.correlation_to_average_by_movie([t[0][None]], [p[0]]), "two repeats"),
        (lambda p, t: repeats.group_repeats(t[0], np.zeros(3)), "stimulus_ids: expected one"),
        (lambda p, t: repeats.oracle_correlation([]), "at least one movie"),
    ],
)
def test_bad_input_gets_one_line(trials, call, words):
    with pytest.raises(NeuroreconError) as caught:
        call(*trials)
    assert words in str(caught.value) and "\n" not in str(caught.value)
