"""Encoder scores: equal to the pooled formulas, intervals over clips, baselines, and the whole command."""

import json
import shutil

import numpy as np
import pytest

from experiments.evaluate import main, stored_config
from experiments.evaluate_encoders import encoder_table, evaluate_encoders, is_training, linear_nonlinear_of
from experiments.inputs import recordings_of
from experiments.train import train_encoders
from neurorecon.encoders import load_encoder, predict_trial
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.repeat_metrics import (
    correlation_to_average,
    fraction_explainable_variance,
    fraction_explainable_variance_explained,
)
from neurorecon.evaluation.response_baselines import BehaviourOnly, MeanResponse
from neurorecon.evaluation.response_intervals import (
    average_values,
    fev_values,
    feve_values,
    interval,
    repeat_sums,
    resampled_score,
    single_trial_values,
    trial_sums,
)
from neurorecon.evaluation.response_metrics import competition_correlation, neuron_correlations
from neurorecon.evaluation.response_scores import ResponseSums, ensemble_scores, ensemble_subsets
from neurorecon.recordings import open_recording
from tests.recording_examples import one_line
from tests.tiny_run import simulated, tiny_config


def noisy(seed, num_clips=5, neurons=4, repeats=3):
    """Movies of unlike lengths: responses (repeat, time, neuron), and predictions that are somewhat right."""
    rng = np.random.default_rng(seed)
    truth = [rng.gamma(2.0, 1.0, (30 + 7 * k, neurons)) for k in range(num_clips)]
    responses = [t + rng.normal(0, 0.5, (repeats, *t.shape)) for t in truth]
    return responses, [t + rng.normal(0, 0.7, t.shape) for t in truth]


def test_sums_give_the_pooled_scores():
    responses, predictions = noisy(0)
    for centre in (np.zeros(4), np.full(4, 1e3)):
        one = [r[0] for r in responses]
        sums = sum(trial_sums(p, t, skip=10, centre=centre) for p, t in zip(predictions, one))
        expected = neuron_correlations(predictions, one, skip=10)
        np.testing.assert_allclose(single_trial_values(sums), expected, rtol=1e-6)
        sums = sum(repeat_sums(r, p, centre=centre) for r, p in zip(responses, predictions))
        np.testing.assert_allclose(average_values(sums), correlation_to_average(responses, predictions), rtol=1e-6)
        np.testing.assert_allclose(fev_values(sums), fraction_explainable_variance(responses), rtol=1e-6)
        expected = fraction_explainable_variance_explained(responses, predictions)
        np.testing.assert_allclose(feve_values(sums), expected, rtol=1e-5)
    # A prediction for each repeat counts as their mean; constants score 0.
    spread = np.stack([predictions[0] - 1, predictions[0], predictions[0] + 1])
    a, b = (repeat_sums(responses[0], p, centre=np.zeros(4)) for p in (spread, predictions[0]))
    np.testing.assert_allclose(a, b, rtol=1e-10)
    flat = trial_sums(np.full((30, 4), 2.0), responses[0][0], skip=0, centre=np.zeros(4))
    np.testing.assert_allclose(single_trial_values(flat), 0.0, atol=1e-6)


def test_resampling_draws_clips_together_and_pools_anew():
    responses, predictions = noisy(1)
    better = [(p + r[0]) / 2 for r, p in zip(responses, predictions)]

    def stacked(found, neurons):
        sums = [trial_sums(p, r[0], skip=0, centre=np.zeros(4)) for p, r in zip(found, responses)]
        return np.stack(sums)[:, :, :neurons]

    animals = [stacked(predictions, 4), stacked(predictions, 2)]
    score = resampled_score(animals, single_trial_values, seed=3, num_samples=200)
    one = [r[0] for r in responses]
    expected = competition_correlation(
        [(predictions, one), ([p[:, :2] for p in predictions], [r[:, :2] for r in one])], skip=0
    )
    assert score[0] == pytest.approx(expected, rel=1e-9)
    # A resampling is the score of those clips: the first draw, by hand.
    rng = np.random.default_rng(3)
    times = rng.multinomial(5, np.full(5, 0.2), size=200)[0]
    alone = resampled_score(animals[:1], single_trial_values, seed=3, num_samples=200)
    again = [k for k, n in enumerate(times) for _ in range(n)]
    by_hand = neuron_correlations([predictions[k] for k in again], [one[k] for k in again], skip=0).mean()
    assert alone[1] == pytest.approx(by_hand, rel=1e-9)
    low, high = interval(score, num_clips=10)["ci95"]
    assert low < score[0] < high and high - low < 0.3
    # Two predictors see the same draws: their difference varies less than either.
    other = resampled_score([stacked(better, 4), stacked(better, 2)], single_trial_values, seed=3, num_samples=200)
    assert (other - score)[1:].min() > 0
    chosen = [np.array([True, False, True, False]), np.array([True, False])]
    some = resampled_score(animals, single_trial_values, seed=3, num_samples=2, neurons=chosen)
    values = [single_trial_values(a.sum(0)) for a in animals]
    assert some[0] == pytest.approx((values[0][0] + values[0][2] + values[1][0]) / 3)
    assert np.isnan(interval(score, num_clips=1)["ci95"]).all()
    with pytest.raises(NeuroreconError, match="at least one that counts"):
        resampled_score(animals[:1], single_trial_values, seed=0, neurons=[np.zeros(4, bool)])
    with pytest.raises(NeuroreconError, match="two repeats"):
        repeat_sums(responses[0][:1], predictions[0], centre=np.zeros(4))


def test_mean_course_and_behaviour():
    rng = np.random.default_rng(0)
    behaviour = [rng.normal(size=(80, 4)) for _ in range(12)]
    past = [b[np.maximum(np.arange(80) - 8, 0)] for b in behaviour]
    responses = [1 + b[:, :1] ** 2 + p[:, 1:2] * [1.0, -2.0] for b, p in zip(behaviour, past)]
    fitted = BehaviourOnly(behaviour[:10], responses[:10])
    found = fitted.predict(behaviour[11])
    assert found.shape == (80, 2) and neuron_correlations([found], [responses[11]], skip=0).min() > 0.99
    # A channel that never moves is no reason to fail.
    still = [np.concatenate([b[:, :3], np.ones((80, 1))], axis=1) for b in behaviour]
    assert np.isfinite(BehaviourOnly(still, responses).predict(still[0])).all()
    # Where behaviour says nothing, the penalty is the largest.
    noise = [rng.normal(size=(80, 2)) for _ in behaviour]
    assert BehaviourOnly(behaviour, noise).penalty == 1.0
    mean = MeanResponse([np.ones((3, 2)), np.full((5, 2), 3.0)])
    np.testing.assert_allclose(mean.predict(7)[:, 0], [2, 2, 2, 3, 3, 18 / 8, 18 / 8])
    assert mean.predict(2).shape == (2, 2)
    with pytest.raises(NeuroreconError, match="training trial"):
        MeanResponse([])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two animals, each oracle movie shown twice to both; encoders trained for a few steps."""
    folder = tmp_path_factory.mktemp("trained")
    simulated(folder / "sim", simulation__animals="one", simulation__noise_level=0.3, simulation__repeats=2)
    simulated(folder / "more", simulation__animals="two", simulation__noise_level=0.3, simulation__repeats=2, seed=5)
    trees = [folder / "sim/recordings/one", folder / "more/recordings/two"]
    config = tiny_config(recordings=",".join(map(str, trees)), training__num_steps=10)
    config.linear_nonlinear.update(window_frames=20, num_taps=5)
    train_encoders(config, str(folder / "run"))
    assert is_training(str(folder / "run")) and not is_training(str(folder / "sim"))
    return folder, trees


def test_a_training_folder_is_scored(trained, capsys):
    folder, trees = trained
    run = folder / "run"
    main(None, str(run))
    metrics = json.loads((run / "encoder_metrics.json").read_text())
    assert not (run / "metrics.json").exists()
    table = capsys.readouterr().out
    assert "Encoders on 4 clips of tier oracle" in table and "share of the ceiling" in table and "FEVE" in table
    scores = metrics["scores"]["single_trial_correlation"]
    assert set(scores) == {
        "encoders", "encoders/0", "encoders/1", "mean_response", "behaviour_only", "expected_response",
    }  # fmt: skip
    # The score by the competition's rule, from the files alone.
    members = [load_encoder(run / f"encoders/{k}") for k in range(2)]
    animals = []
    for readout, tree in enumerate(trees):
        trials = [open_recording(tree).trial(i) for i in open_recording(tree).trial_ids("oracle")]
        assert len(trials) == 4
        found = [
            np.mean([predict_trial(e, v, t.stimulus, t.behaviour, readout) for e, v in members], axis=0) for t in trials
        ]
        animals.append((found, [t.responses for t in trials]))
    assert scores["encoders"]["mean"] == pytest.approx(competition_correlation(animals, skip=15), abs=1e-5)
    assert metrics["skipped_frames"] == {"one": 15, "two": 15}
    for name, (predictions, targets) in zip(("one", "two"), animals):
        of_animal = metrics["animals"][name]
        assert of_animal["clips"] == 2 and of_animal["repeated_clips"] == 2
        with np.load(run / f"encoder_metrics/{name}.npz", allow_pickle=False) as stored:
            row = stored["predictors"].tolist().index("encoders")
            per_neuron = stored["single_trial_correlation"][row]
            assert stored["correlation_to_average"].shape == stored["feve"].shape == (6, 12)
            assert stored["fev"].shape == (12,)
        np.testing.assert_allclose(per_neuron, neuron_correlations(predictions, targets, skip=15), atol=1e-5)
    # The true expected response is the ceiling; in each score, what is right beats what is blind.
    for score in ("single_trial_correlation", "correlation_to_average"):
        values = {name: v["mean"] for name, v in metrics["scores"][score].items()}
        assert max(values, key=values.get) == "expected_response" and values["expected_response"] > 0.2
    single, both = metrics["ensembles"]
    assert (single["models"], single["subsets"], both["models"], both["subsets"]) == (1, 2, 2, 1)
    assert both["mean"] == pytest.approx(scores["encoders"]["mean"], rel=1e-9) and both["ci95"][0] < both["ci95"][1]
    assert single["mean"] == pytest.approx((scores["encoders/0"]["mean"] + scores["encoders/1"]["mean"]) / 2, rel=1e-9)
    assert both["over_one"]["mean"] == pytest.approx(both["mean"] - single["mean"], abs=1e-12)
    assert "2 encoders, mean of 1 such" in table and "encoders - behaviour only" in table
    of_animal = metrics["animals"]["one"]
    found = {n: of_animal["single_trial_correlation"][n]["mean"] for n in ("encoders", "expected_response")}
    assert of_animal["share_of_ceiling"]["mean"] == pytest.approx(found["encoders"] / found["expected_response"])
    share = metrics["share_of_ceiling"]["mean"]
    assert share == pytest.approx(scores["encoders"]["mean"] / scores["expected_response"]["mean"], rel=1e-6)
    assert not metrics["chose_the_best_moment"]


def test_recordings_without_repeats_or_truth(trained, tmp_path):
    folder, _ = trained
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    config = stored_config(str(run))
    config.tier = "train"
    metrics = evaluate_encoders(str(run), config)
    assert metrics["chose_the_best_moment"] and "also fitted" in encoder_table(metrics)
    assert "correlation_to_average" not in metrics["scores"]
    # A simulation's truth that is damaged is told; one that is not there leaves the ceiling out.
    expected = folder / "sim/expected/one"
    hidden = expected.with_name("hidden")
    expected.rename(hidden)
    try:
        metrics = evaluate_encoders(str(run), config)
        assert metrics["share_of_ceiling"] is None and "ceiling" not in encoder_table(metrics)
        assert "expected_response" in metrics["animals"]["two"]["single_trial_correlation"]
        expected.mkdir()
        with pytest.raises(NeuroreconError) as error:
            evaluate_encoders(str(run), config)
        one_line(error, "expected/one", "true response")
        expected.rmdir()
    finally:
        hidden.rename(expected)


def test_what_cannot_be_scored_is_one_line(trained, tmp_path):
    folder, _ = trained
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    config = stored_config(str(run))
    config.tier = "final_test_main"
    with pytest.raises(NeuroreconError) as error:
        evaluate_encoders(str(run), config)
    one_line(error, "final_test_main")
    (run / "encoders/animals.json").unlink()
    with pytest.raises(NeuroreconError) as error:
        evaluate_encoders(str(run), config)
    one_line(error, "not done")


def test_a_linear_nonlinear_encoder_is_compared_with(trained, tmp_path, capsys):
    folder, trees = trained
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    main(None, str(run), "train")
    assert "linear nonlinear" in capsys.readouterr().out
    begun = json.loads((run / "linear_nonlinear/jobs.json").read_text())["train"]
    assert begun["encoder"] == "linear_nonlinear" and begun["training"]["validation_trials"] == 2
    assert begun["recordings"] == ",".join(map(str, trees))
    metrics = json.loads((run / "encoder_metrics.json").read_text())
    scores = metrics["scores"]["single_trial_correlation"]
    encoder, variables = load_encoder(run / "linear_nonlinear/encoders/0")
    animals = []
    for readout, tree in enumerate(trees):
        trials = [open_recording(tree).trial(i) for i in open_recording(tree).trial_ids("oracle")]
        found = [predict_trial(encoder, variables, t.stimulus, t.behaviour, readout) for t in trials]
        animals.append((found, [t.responses for t in trials]))
    assert scores["linear_nonlinear"]["mean"] == pytest.approx(competition_correlation(animals, skip=15), abs=1e-5)
    below = metrics["differences"]["linear_nonlinear"]["mean"]
    assert below == pytest.approx(scores["encoders"]["mean"] - scores["linear_nonlinear"]["mean"], abs=1e-9)
    # Once it is there, it is compared with; other encoders, or other trials, are refused.
    config = stored_config(str(run))
    assert linear_nonlinear_of(run, config) is not None
    config.evaluation.linear_nonlinear = str(folder / "run")
    with pytest.raises(NeuroreconError) as error:
        linear_nonlinear_of(run, config)
    one_line(error, "linear-nonlinear", "Factorized")
    config.evaluation.linear_nonlinear = str(folder)
    with pytest.raises(NeuroreconError) as error:
        linear_nonlinear_of(run, config)
    one_line(error, "work folder of a training")
    path = run / "linear_nonlinear/jobs.json"
    begun["training"]["validation_trials"] = 3
    path.write_text(json.dumps({"train": begun}))
    config.evaluation.linear_nonlinear = ""
    with pytest.raises(NeuroreconError) as error:
        linear_nonlinear_of(run, config)
    one_line(error, "same validation_trials", "2, found 3")


def test_ensembles_of_each_size_are_means_over_their_subsets():
    assert ensemble_subsets(1) == [(0,)] and ensemble_subsets(2) == [(0,), (1,), (0, 1)]
    sizes = [len(s) for s in ensemble_subsets(7)]
    assert {n: sizes.count(n) for n in (1, 2, 4, 7)} == {1: 7, 2: 8, 4: 8, 7: 1} and len(sizes) == 24
    assert len(set(ensemble_subsets(7))) == 24 and ensemble_subsets(7) == ensemble_subsets(7)
    assert ensemble_subsets(7, seed=1) != ensemble_subsets(7)
    rng = np.random.default_rng(0)
    truth = [rng.normal(size=(50, 3)) for _ in range(4)]
    models = [[t + rng.normal(0, 1, t.shape) for t in truth] for _ in range(4)]
    sums = {
        s: np.stack(
            [trial_sums(np.mean([models[k][c] for k in s], 0), truth[c], skip=0, centre=np.zeros(3)) for c in range(4)]
        )
        for s in ensemble_subsets(4)
    }
    found = ensemble_scores([ResponseSums({}, {}, sums)])
    assert [f["models"] for f in found] == [1, 2, 4] and [f["subsets"] for f in found] == [4, 6, 1]
    by_hand = [np.mean([neuron_correlations(m, truth, skip=0).mean() for m in models])]
    by_hand.append(neuron_correlations([np.mean(m, 0) for m in zip(*models)], truth, skip=0).mean())
    assert [found[0]["mean"], found[2]["mean"]] == pytest.approx(by_hand)
    assert found[0]["mean"] < found[1]["mean"] < found[2]["mean"] and found[1]["over_one"]["ci95"][0] > 0
    with pytest.raises(NeuroreconError, match="at least 1"):
        ensemble_subsets(0)


def test_a_training_on_a_part_is_scored_on_its_neurons(trained, tmp_path):
    folder, trees = trained
    config = tiny_config(recordings=str(trees[0]), training__num_steps=2, num_models=1, subset__neurons=0.5)
    config.subset.trials = 0.7
    train_encoders(config, str(tmp_path / "part"))
    metrics = evaluate_encoders(str(tmp_path / "part"), stored_config(str(tmp_path / "part")))
    assert metrics["animals"]["one"]["neurons"] == 6
    ceiling = metrics["scores"]["single_trial_correlation"]["expected_response"]["mean"]
    (part,) = recordings_of(config)
    assert len(part.trial_ids("train")) == 4
    trials = [open_recording(trees[0]).trial(i) for i in part.trial_ids("oracle")]
    expected = [np.load(folder / f"sim/expected/one/{t.id}.npy")[:, part.neurons] for t in trials]
    by_hand = competition_correlation([(expected, [t.responses[:, part.neurons] for t in trials])], skip=15)
    assert ceiling == pytest.approx(by_hand, abs=1e-6)


def test_another_animal_is_added_by_the_command_and_scored(trained, tmp_path):
    folder, trees = trained
    config = tiny_config(recordings=str(trees[1]), training__num_steps=4, num_models=1)
    config.training.core_from = str(folder / "run")
    train_encoders(config, str(tmp_path / "added"))
    (before, old), (after, new) = (load_encoder(path / "encoders/0") for path in (folder / "run", tmp_path / "added"))
    assert after.num_neurons == (12,) and after.stimulus_mean == before.stimulus_mean
    np.testing.assert_array_equal(new["params"]["spatial0"]["kernel"], old["params"]["spatial0"]["kernel"])
    assert set(evaluate_encoders(str(tmp_path / "added"), stored_config(str(tmp_path / "added")))["animals"]) == {"two"}
    config.encoder = "dwiseneuro"
    with pytest.raises(NeuroreconError) as error:
        train_encoders(config, str(tmp_path / "other"))
    one_line(error, "core_from", "Factorized")
    assert not (tmp_path / "other").exists()
