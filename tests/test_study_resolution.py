"""Half-points, transfer, receptive-field sizes, the stimuli of known scale, and the study on a tiny animal."""

import csv
import json
import math

import numpy as np
import pytest

from experiments import predicted_responses
from experiments.inputs import Ensemble
from experiments.resolution import resolution
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.coherence import movie_spectra, pool
from neurorecon.evaluation.resolution import Reconstructed, half_point, half_points, score_map, transfer
from neurorecon.reconstruction.filter_scale import envelope_sigma, receptive_field_sigmas
from neurorecon.reconstruction.noise import fit_noise
from neurorecon.stimuli.resolution import Scale, scales, stimuli_of
from tests.tiny_run import files_and_times, random_encoders, simulated, tiny_config
from tests.toy_encoders import NUM_NEURONS, SCREEN, TOYS, toy

SIZES = {"num_frames": 40, "height": 24, "width": 32, "frame_rate": 30.0, "degrees_per_pixel": 3.0}


def test_half_points_are_interpolated_from_the_best_scale():
    assert half_point([0, 1, 2, 4], [0.1, 0.3, 0.8, 0.6], "small") == pytest.approx(1.2)
    assert half_point([0, 1, 2, 4], [0.8, 0.6, 0.2, 0.3], "large") == pytest.approx(1.5)
    assert half_point([1, 2], [0.4, 0.8], "small") == 1.0
    assert math.isnan(half_point([0, 1, 2], [0.5, 0.6, 0.7], "small"))
    assert math.isnan(half_point([0, 1], [-0.5, -0.1], "small"))
    scores = np.array([[0.0, 0.1, 0.2], [0.0, 0.4, 0.6], [0.1, 0.5, 0.8]])
    assert half_points([0, 1, 2], [0, 3, 6], scores, "small") == pytest.approx((0.5, 2.25))
    for arguments in (([1, 0], [1, 2], "small"), ([0, 1], [1, np.nan], "small"), ([0, 1], [1, 2], "down")):
        with pytest.raises(NeuroreconError):
            half_point(*arguments)


def test_transfer_of_a_known_filter():
    rng = np.random.default_rng(0)
    truth = rng.normal(127, 20, (60, 24, 32))
    mean = truth.mean()
    settings = {"pixels_per_degree": 0.3, "frame_rate": 30.0}
    for gain in (0.5, -0.25):
        movie = mean + gain * (truth - mean) + rng.normal(0, 2, truth.shape)
        spectra = pool([movie_spectra(truth, movie, None, **settings)])
        for over in ("spatial", "temporal"):
            np.testing.assert_allclose(transfer(spectra, over), gain, atol=0.03)
    with pytest.raises(NeuroreconError):
        transfer(spectra, "both")


def test_score_map_means_and_sets():
    results = [
        Reconstructed("a", "noise", s, t, v, k, s + 10 * t + k + (v == "inverted"))
        for s in (0.0, 2.0)
        for t in (1.0, 3.0)
        for v, k in (("plain", 0), ("plain", 1), ("inverted", 0), ("noise_matched", 0))
    ]
    chart = score_map(results, "noise", ("plain", "inverted"))
    base = np.array([[10.0, 30.0], [12.0, 32.0]])
    np.testing.assert_allclose(chart.mean, base + 2 / 3)
    assert chart.sets.shape == (3, 2, 2) and sorted(chart.sets[:, 0, 0]) == [10, 11, 11]
    with pytest.raises(NeuroreconError):
        score_map(results[:-4], "noise", ("plain",))
    with pytest.raises(NeuroreconError):
        score_map(results, "grating", ("plain",))


def test_stimuli_have_their_scales_and_differ():
    smooth, rough = (stimuli_of(Scale("noise", s, 2.0), repeats=2, seed=1, **SIZES) for s in (4.0, 0.0))
    assert smooth.shape == (2, 40, 24, 32) and np.abs(smooth[0] - smooth[1]).mean() > 5
    neighbours = [np.corrcoef(x[0, :, :, 1:].ravel(), x[0, :, :, :-1].ravel())[0, 1] for x in (smooth, rough)]
    assert neighbours[0] > 0.9 and abs(neighbours[1]) < 0.1
    still = stimuli_of(Scale("grating", 0.05, 0.0), repeats=4, seed=1, **SIZES)
    for k in range(4):  # a still grating turned by half is the same again, but for its phase
        assert np.ptp(still[k], axis=0).max() == 0
        assert all(np.abs(still[k] - still[other]).mean() > 5 for other in range(k))
    drift = stimuli_of(Scale("grating", 1 / 24, 3.0), repeats=1, seed=1, **SIZES)[0]
    np.testing.assert_allclose(drift[10], drift[0], atol=1e-3)  # 3 Hz at 30 frames/s
    np.testing.assert_allclose(drift[:, :, 8:], drift[:, :, :-8], atol=1e-3)  # 24 degrees are 8 pixels
    assert [s.name for s in scales("grating", [0.018], [0, 3.75])] == ["grating-0.018-0", "grating-0.018-3.75"]
    for spatial in ([], [2, 1], [-1, 0]):
        with pytest.raises(NeuroreconError):
            scales("noise", spatial, [0])


def test_envelope_sigma_of_gabors():
    y, x = np.mgrid[-20:21, -20:21]
    for sigma, frequency in ((2.0, 0.0), (3.0, 0.2)):
        envelope = np.exp(-(x**2 + y**2) / (2 * sigma**2))
        energy = sum((envelope * np.cos(2 * np.pi * frequency * x + phase)) ** 2 for phase in (0.0, np.pi / 2))
        assert envelope_sigma(energy) == pytest.approx(sigma, rel=0.15)  # the floor cuts a little
    assert math.isnan(envelope_sigma(np.zeros((4, 4))))


def test_receptive_field_sigmas_follow_the_encoder():
    from neurorecon.encoders import LinearNonlinear

    shape, neurons = (15, 17), 2
    encoder = LinearNonlinear(num_neurons=(neurons,), canvas=shape, window_frames=6, frame_step=1, rank=1, num_taps=3)
    import jax

    variables = jax.tree.map(np.array, encoder.init(jax.random.key(0), np.zeros((1, 6, *shape, 5), np.float32)))
    y, x = np.mgrid[: shape[0], : shape[1]]
    filters = [np.exp(-((y - 7) ** 2 + (x - 8) ** 2) / (2 * s**2)).ravel() for s in (1.0, 2.0)]

    def filled(path, leaf):
        return np.stack(filters, 1)[:, :, None].astype(np.float32) if path[-1].key == "space" else leaf

    variables = jax.tree_util.tree_map_with_path(filled, variables)
    movie = np.random.default_rng(0).uniform(0, 255, (6, *shape))
    found = receptive_field_sigmas(encoder, variables, movie, np.zeros((6, 4)), [0, 1])
    np.testing.assert_allclose(found, [1.0, 2.0], rtol=0.2)
    with pytest.raises(NeuroreconError):
        receptive_field_sigmas(encoder, variables, movie[:3], np.zeros((3, 4)), [0])
    with pytest.raises(NeuroreconError):
        receptive_field_sigmas(encoder, variables, movie, np.zeros((6, 4)), [neurons])


def test_encoders_that_predict_never_invert(tmp_path):
    members = [toy("factorized", seed) for seed in range(3)]
    inverting, predicting = predicted_responses.two_ensembles(Ensemble(members, None), "", "resolution.predictors")
    assert [id(m) for m in inverting.members + predicting.members] == [id(m) for m in members]
    assert len(inverting.members) == 2
    with pytest.raises(NeuroreconError, match="two encoders at least"):
        predicted_responses.two_ensembles(Ensemble(members[:1], None), "", "resolution.predictors")
    folder = random_encoders(tmp_path, TOYS["factorized"], num_models=2)
    given = Ensemble([toy("factorized", 5)], None)
    assert len(predicted_responses.two_ensembles(given, str(folder), "resolution.predictors")[1].members) == 2
    same = predicted_responses.ensemble_of([str(folder / "encoders" / "1")])
    with pytest.raises(NeuroreconError, match="same weights"):
        predicted_responses.two_ensembles(same, str(folder), "resolution.predictors")


def test_noise_is_that_of_the_residuals():
    rng = np.random.default_rng(0)
    predicted = rng.uniform(1, 3, (4, 300, NUM_NEURONS))
    smooth = rng.normal(size=(4, 301, NUM_NEURONS))
    recorded = predicted + 0.5 * (smooth[:, 1:] + smooth[:, :-1])
    noise = fit_noise(list(predicted), list(recorded), frame_step=1, order=predicted_responses.NOISE_ORDER)
    noisy = [predicted_responses.with_noise(noise, p, [0, k]) - p for k, p in enumerate(predicted)]
    assert np.std(noisy) == pytest.approx(np.std(recorded - predicted), rel=0.1)
    lag = np.corrcoef(np.ravel([n[1:] for n in noisy]), np.ravel([n[:-1] for n in noisy]))[0, 1]
    assert lag == pytest.approx(0.5, abs=0.1)
    assert tuple(TOYS["factorized"].screen) == SCREEN


@pytest.fixture(scope="module")
def animal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("animal")
    return simulated(folder), random_encoders(folder / "run")


def tiny(animal, **changes):
    tree, encoders = animal
    return tiny_config(
        recordings=str(tree),
        encoders=str(encoders),
        num_steps=2,
        **{
            "resolution__num_frames": 30,
            "resolution__noise_spatial": "0,3",
            "resolution__noise_temporal": "0,2",
            "resolution__grating_spatial": "0.01,0.04",
            "resolution__grating_temporal": "0,3",
            "resolution__noise_repeats": 2,
            "resolution__directions": 2,
        }
        | changes,
    )


def test_the_study_and_that_it_goes_on(animal, tmp_path, capsys):
    resolution(tiny(animal), str(tmp_path))
    folder = tmp_path / "studies" / "resolution"
    study = json.loads((folder / "study.json").read_text())
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert len(rows) == 8 and {r["stimulus"] for r in rows} == {"noise", "grating"}
    assert all(r["stimuli"] == "3" and abs(float(r["inverted_with_plain"])) <= 1 for r in rows)
    degrees = 0.5 * 180 / math.pi * 56.5 / 15 / 8  # of one of 16 pixels
    assert float(next(r for r in rows if r["spatial"] == "3.0")["spatial_degrees"]) == pytest.approx(3 * degrees)
    assert any("upper bound" in sentence for sentence in study["findings"])
    assert "half" in " ".join(study["findings"])
    for name in ("noise", "grating", "spectra", "frames"):
        assert "<svg" in (folder / f"{name}.svg").read_text() and study["captions"][name]
    kept = files_and_times(folder / "movies")
    assert len(kept) == 8
    lost = folder / "movies" / "mouse1" / "noise-3-2.npz"
    before = np.load(lost)["movies"]
    lost.unlink()
    resolution(tiny(animal), str(tmp_path))
    after = files_and_times(folder / "movies")
    assert {k for k in after if after[k] != kept.get(k)} == {str(lost)}
    np.testing.assert_array_equal(np.load(lost)["movies"], before)
    assert list(csv.DictReader((folder / "table.csv").open())) == rows
    assert "7 of 8" in capsys.readouterr().out


def test_refused_in_one_line(animal, tmp_path):
    for changes, words in (
        ({"resolution__num_frames": 12}, "num_frames"),
        ({"resolution__noise_spatial": "0,x"}, "noise_spatial"),
        ({"resolution__directions": 0}, "directions"),
    ):
        with pytest.raises(NeuroreconError, match=words):
            resolution(tiny(animal, **changes), str(tmp_path))
    one = tiny(animal)
    one.encoders = f"{one.encoders}/encoders/0"
    with pytest.raises(NeuroreconError, match="two encoders at least"):
        resolution(one, str(tmp_path / "one"))
