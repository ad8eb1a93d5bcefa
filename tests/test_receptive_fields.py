"""Receptive fields: known places found, batches that change nothing, the published prediction and map, the study."""

import csv
import itertools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from experiments.configs.base import get_config
from experiments.receptive_fields import receptive_fields
from neurorecon.encoders import LinearNonlinear, load_published, predict_trial, save_encoder
from neurorecon.encoders.canvas import place_on_canvas
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.retinotopy import field_shapes, fit_retinotopy
from neurorecon.reconstruction import (
    PixelResponses,
    population_receptive_field,
    probe_pixels,
    receptive_field_maps,
)
from neurorecon.reconstruction import receptive_fields as module
from neurorecon.recordings import Trial, write_sensorium
from neurorecon.simulation.retinotopy import cortical_positions
from neurorecon.stimuli.pixels import single_pixel
from tests.shared_data import SHARED, needs_shared
from tests.toy_encoders import SCREEN, TOYS, toy

BEHAVIOUR = np.array([0.3, -0.5, 1.0, 0.2], np.float32)
LARGE = (9, 12)
# Of each neuron of `placed`: row, column, sign of its weight; the last one sees nothing.
PLACES = [(1, 10, 1), (7, 2, -1), (4, 5, 1), None]


def placed(seed=0, rank=1):
    """A linear-nonlinear encoder whose neurons look at one pixel each."""
    fields = {"num_neurons": (len(PLACES),), "canvas": LARGE, "window_frames": 8, "num_taps": 3}
    encoder = LinearNonlinear(rank=rank, **fields)
    like = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 8, *LARGE, 5)))
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    readout = variables["params"]["readout0"]
    readout["time"][...] = np.random.default_rng(seed).uniform(0.5, 1.0, readout["time"].shape)
    for neuron, place in enumerate(PLACES):
        if place is not None:
            readout["space"][place[0] * LARGE[1] + place[1], neuron] = place[2]
    return encoder, variables


def test_known_places_are_found():
    found = probe_pixels([placed(0), placed(1)], BEHAVIOUR)
    assert found.responses.shape == (2, 2, *LARGE, 3, 4) and found.responses.dtype == np.float32
    for reference in ("blank", "before"):
        fields = receptive_field_maps(found, reference=reference)
        expected = np.zeros((2, 4), bool)
        for neuron, place in enumerate(PLACES):
            if place is not None:
                row, column, sign = place
                polarity = int(sign < 0)  # a negative weight answers to the dark pixel, and is below 10 % to the bright
                expected[polarity, neuron] = True
                assert tuple(fields.peaks[polarity, neuron]) == (row, column)
                assert fields.maps[polarity, row, column, neuron] == 1 and fields.strength[polarity, neuron] > 0.1
        np.testing.assert_array_equal(fields.responsive, expected)
        assert (fields.peaks[~expected] == -1).all() and not fields.maps.swapaxes(-1, 1)[~expected].any()
        assert (fields.strength[:, 3] == 0).all()
        peaks = population_receptive_field(fields)
        counted = np.zeros((2, *LARGE))
        counted[0, 1, 10] = counted[1, 7, 2] = counted[0, 4, 5] = 1
        np.testing.assert_array_equal(peaks, counted)


@pytest.mark.parametrize("name", TOYS)
def test_is_the_prediction_of_each_trial(name):
    encoder, variables = toy(name)
    periods = (6, 4, 5)
    found = probe_pixels([(encoder, variables)], BEHAVIOUR, values=(200.0, 10.0), background=90.0, periods=periods)
    cuts = np.cumsum((0, *periods))

    def expected(row, column, value):
        shown = {"before": 6, "shown": 4, "after": 5, "height": SCREEN[0], "width": SCREEN[1]}
        movie = single_pixel(row, column, value=value, background=90.0, **shown)
        predicted = predict_trial(encoder, variables, movie, np.tile(BEHAVIOUR, (15, 1)))
        return [predicted[first:last].mean(0) for first, last in itertools.pairwise(cuts)]

    for row, column in ((0, 0), (2, 5), (3, 1)):
        for polarity, value in ((0, 200.0), (1, 10.0)):
            np.testing.assert_allclose(
                found.responses[0, polarity, row, column], expected(row, column, value), rtol=2e-5
            )
    np.testing.assert_allclose(found.blank[0], expected(0, 0, 90.0), rtol=2e-5)
    assert (found.responses[0, :, :, :, 1] != found.blank[0, 1]).any()


@needs_shared("reference/dwiseneuro_tiny.pth")
def test_is_the_published_prediction_and_padding():
    """As the published code: 36 x 64 padded to the canvas with 127.5, then the published prediction of a trial."""
    encoder, variables = load_published(SHARED / "reference/dwiseneuro_tiny.pth")
    encoder = encoder.clone(screen=(1, 2))  # two pixels in the middle, for time
    padding = module.PUBLISHED_PADDING
    found = probe_pixels([(encoder, variables)], BEHAVIOUR, readout=1, padding=padding, chunk=5)
    canvas = np.asarray(place_on_canvas(single_pixel(0, 1, height=1, width=2), encoder.canvas, padding))
    predicted = predict_trial(encoder, variables, canvas, np.tile(BEHAVIOUR, (45, 1)), readout=1, chunk=5)
    expected = predicted.reshape(3, 15, -1).mean(1)
    assert np.abs(found.responses[0, 0, 0, 1] - expected).max() < 8e-6 * np.abs(expected).max()


@needs_shared("reference/predict_trial.npz")
def test_frames_are_seen_as_often_as_published():
    encoder, _ = toy("dwiseneuro")
    passes = module._passes(encoder.clone(window_frames=16), (20, 10, 20))
    with np.load(SHARED / "reference/predict_trial.npz") as stored:
        expected = stored["stack_counts"]
    np.testing.assert_array_equal(np.bincount(np.concatenate([frames for frames, _, _ in passes])), expected)


def test_padding_is_the_encoders_own_unless_told():
    members = [toy("dwiseneuro")]
    own, zero, grey = (
        probe_pixels(members, BEHAVIOUR, periods=(3, 3, 2), padding=p, chunk=49) for p in (None, 0.0, 127.5)
    )
    np.testing.assert_array_equal(own.responses, zero.responses)
    assert np.abs(grey.blank - own.blank).max() > 1e-3


@pytest.mark.parametrize("name", TOYS)
def test_batches_change_nothing_and_a_second_call_compiles_nothing(name):
    members = [toy(name, seed) for seed in (0, 1)]
    options = {"periods": (3, 3, 2)}
    together = probe_pixels(members, BEHAVIOUR, chunk=49, **options)
    compiled = module._probe._cache_size()
    for _ in range(2):
        again = probe_pixels(members, BEHAVIOUR + 1, chunk=49, values=(200.0, 20.0), background=100.0, **options)
    assert module._probe._cache_size() == compiled and (again.responses != together.responses).any()
    for chunk in (1, 10, 1000):  # one by one, with a rest, more than there are
        found = probe_pixels(members, BEHAVIOUR, chunk=chunk, **options)
        for ours, theirs in zip(found, together):
            np.testing.assert_allclose(ours, theirs, rtol=2e-5)
    for model, member in enumerate(members):  # every model's own, none the last one's
        alone = probe_pixels([member], BEHAVIOUR, chunk=49, **options)
        np.testing.assert_array_equal(alone.responses[0], together.responses[model])
        np.testing.assert_array_equal(alone.blank[0], together.blank[model])
    assert (together.responses[0] != together.responses[1]).any()


def test_progress_is_told():
    told = []
    probe_pixels([toy("linear_nonlinear")] * 2, BEHAVIOUR, chunk=30, on_chunk=lambda *x: told.append(x))
    assert told == [(30, 98), (49, 98), (79, 98), (98, 98)]


def random_responses(seed=0, num_models=3, shape=(5, 7), num_neurons=6):
    rng = np.random.default_rng(seed)
    responses = rng.gamma(4.0, 1.0, (num_models, 2, *shape, 3, num_neurons)).astype(np.float32)
    responses[:, 0, ..., 1, 2] = responses[:, 0, ..., 0, 2] * 1.05  # neuron 2 does not answer to bright pixels
    return PixelResponses(responses, responses.mean((1, 2, 3)))


def test_maps_are_the_published_ones():
    pixels = random_responses()
    fields = receptive_field_maps(pixels, reference="before")
    for polarity in (0, 1):
        mean = pixels.responses[:, polarity].astype(np.float64).mean(0)
        change = (mean[..., 1, :] - mean[..., 0, :]) / mean[..., 0, :]
        np.testing.assert_allclose(fields.strength[polarity], change.max((0, 1)), rtol=1e-4)
        change[change < 0.1] = 0
        for neuron in range(6):
            smooth = gaussian_filter(change[..., neuron], 2, mode="constant")
            if smooth.max() == 0:
                assert not fields.responsive[polarity, neuron] and not fields.maps[polarity, ..., neuron].any()
                continue
            np.testing.assert_allclose(fields.maps[polarity, ..., neuron], smooth / smooth.max(), rtol=1e-4)
            peak = np.unravel_index(smooth.argmax(), smooth.shape)
            assert tuple(fields.peaks[polarity, neuron]) == peak
    assert fields.responsive.sum() == 11 and not fields.responsive[0, 2]
    counts = population_receptive_field(fields)
    assert counts.sum() == 11 and counts.shape == (2, 5, 7)
    for polarity, row, column in np.ndindex(counts.shape):
        here = (fields.peaks[polarity] == (row, column)).all(-1)
        assert counts[polarity, row, column] == here.sum()
    mean = population_receptive_field(fields, "mean")
    np.testing.assert_allclose(mean[1], fields.maps[1].mean(-1), rtol=1e-5)
    np.testing.assert_allclose(mean[0], fields.maps[0].sum(-1) / 5, rtol=1e-5)


def test_reference_threshold_and_smoothing_are_options():
    pixels = random_responses()
    blank = receptive_field_maps(pixels, smoothing=0, threshold=0.5)
    mean, base = pixels.responses.mean(0)[..., 1, :], pixels.blank.mean(0)[1]
    change = (mean - base) / base
    change[change < 0.5] = 0
    highest = change.max((1, 2), keepdims=True)
    np.testing.assert_allclose(blank.maps, change / np.where(highest > 0, highest, 1), rtol=1e-4, atol=1e-6)
    # Where nothing is predicted on grey there is no relative change.
    silent = pixels._replace(blank=np.where(np.arange(6) == 4, 0, pixels.blank).astype(np.float32))
    fields = receptive_field_maps(silent)
    assert not fields.responsive[:, 4].any() and fields.responsive[:, 3].all()
    # One with two equal maxima counts at both.
    two = np.zeros((1, 2, 3, 3, 3, 1), np.float32) + 1
    two[0, 0, 0, 0, 1] = two[0, 0, 2, 2, 1] = 2
    fields = receptive_field_maps(PixelResponses(two, np.ones((1, 3, 1), np.float32)), smoothing=0)
    assert population_receptive_field(fields).sum() == 2 and tuple(fields.peaks[0, 0]) == (0, 0)
    assert population_receptive_field(fields, "mean")[1].sum() == 0  # no neuron responds to dark pixels


def refused(match, call):
    with pytest.raises(NeuroreconError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_errors():
    member = toy("linear_nonlinear")

    def probing(match, encoders=(member,), behaviour=BEHAVIOUR, **options):
        refused(match, lambda: probe_pixels(encoders, behaviour, **options))

    probing("encoders: expected at least one", encoders=())
    probing("readout: expected", readout=1)
    probing("behaviour: expected 4", behaviour=BEHAVIOUR[:3])
    probing("behaviour: expected 4", behaviour=BEHAVIOUR * np.nan)
    probing("behaviour: expected 4", behaviour=np.array(["a"] * 4))
    probing("values: expected grey", values=(256.0, 0.0))
    probing("values: expected grey", values=(255.0, np.nan))
    probing("background: expected grey", background=-1.0)
    probing("periods: expected 3", periods=(15, 15))
    probing("periods: expected 3", periods=(15, 0, 15))
    probing("periods: expected at least 7", encoders=(toy("dwiseneuro"),), periods=(2, 2, 2))
    probing("chunk: expected", chunk=0)
    broken = jax.tree.map(lambda x: x * jnp.nan, member[1])
    probing("model 1 are not finite", encoders=(member, (member[0], broken)))

    pixels = random_responses()
    refused("reference: expected", lambda: receptive_field_maps(pixels, reference="after"))
    refused("threshold, smoothing", lambda: receptive_field_maps(pixels, threshold=0))
    refused("threshold, smoothing", lambda: receptive_field_maps(pixels, smoothing=-1))
    refused("pixels: expected", lambda: receptive_field_maps(pixels._replace(blank=pixels.blank[:1])))
    refused("pixels: expected", lambda: receptive_field_maps(pixels._replace(responses=pixels.responses[:, 0])))
    fields = receptive_field_maps(pixels)
    refused("statistic: expected", lambda: population_receptive_field(fields, "median"))
    silent = receptive_field_maps(pixels, threshold=100)
    refused("no neuron responds", lambda: population_receptive_field(silent))


def test_squares_are_squares_of_pixels():
    """A square of 2 x 2 pixels raises what a pixel of it does; squares at the far border are cut."""
    members = [placed()]
    found = probe_pixels(members, BEHAVIOUR, spot=2)
    assert found.responses.shape == (1, 2, 5, 6, 3, 4)
    fields = receptive_field_maps(found, smoothing=0)
    for neuron, place in enumerate(PLACES):
        if place is not None:
            row, column, sign = place
            assert tuple(fields.peaks[int(sign < 0), neuron]) == (row // 2, column // 2)
    # These neurons look at one pixel each, so that the rest of the square changes nothing.
    single = probe_pixels(members, BEHAVIOUR)
    np.testing.assert_allclose(found.responses[0, :, 0, 5, ..., 0], single.responses[0, :, 1, 10, ..., 0], rtol=1e-5)
    all_of_it = probe_pixels([toy("linear_nonlinear")], BEHAVIOUR, spot=4)  # 4 x 6 pixels: the second is 4 x 2
    movie = np.full((45, *SCREEN), 127.5, np.float32)
    movie[15:30, :, 4:] = 255
    predicted = predict_trial(*toy("linear_nonlinear"), movie, np.tile(BEHAVIOUR, (45, 1)))
    np.testing.assert_allclose(all_of_it.responses[0, 0, 0, 1], predicted.reshape(3, 15, -1).mean(1), rtol=2e-5)


def test_goes_on_with_what_was_found():
    members = [toy("linear_nonlinear"), toy("linear_nonlinear", 1)]
    shape = module.probe_shape(members)
    assert shape == (2, 49, 3, 5)
    whole = np.full(shape, np.nan, np.float32)
    expected = probe_pixels(members, BEHAVIOUR, chunk=10, found=whole)
    part = whole.copy()
    part[0, :10] += 1  # there already, and kept as it is
    part[1, 25:] = np.nan
    shown = []
    original = module._probe

    def counted(*arguments):
        shown.append(len(arguments[2]))
        return original(*arguments)

    try:
        module._probe = counted
        found = probe_pixels(members, BEHAVIOUR, chunk=10, found=part)
    finally:
        module._probe = original
    assert len(shown) == 3  # chunks from 20, 30 and 40 on
    np.testing.assert_array_equal(found.responses[1], expected.responses[1])
    np.testing.assert_allclose(found.responses[0, 0, 0, 0], expected.responses[0, 0, 0, 0] + 1)
    refused("found: expected float32", lambda: probe_pixels(members, BEHAVIOUR, found=part[:1]))
    refused("spot: expected 1 to 4", lambda: probe_pixels(members, BEHAVIOUR, spot=5))


def test_centres_and_widths_of_gaussian_fields():
    rows, columns = np.mgrid[:30, :40] + 0.5
    places, sigmas = [(10.3, 12.0), (18.0, 30.6), (15.0, 20.0)], [2.0, 3.5, 0.2]
    maps = np.zeros((2, 30, 40, 4))
    for n, ((row, column), sigma) in enumerate(zip(places, sigmas)):
        blob = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * (sigma**2 + 1.5**2)))
        maps[n % 2, ..., n] = blob / blob.max()
    strength = np.array([[1.0, 0, 0.3, 0], [0, 2.0, 0, 0]])
    found = field_shapes(maps, strength, smoothing=1.5)
    np.testing.assert_allclose(found.centre[:3], places, atol=0.3)
    np.testing.assert_allclose(found.width[:2], 2.3548 * np.array(sigmas[:2]), rtol=0.08)
    assert np.isnan(found.centre[3]).all() and np.isnan(found.width[3])
    # Two subfields are one field, its centre between them, nearer to the stronger one.
    both = np.stack([maps[0, ..., 0], np.roll(maps[0, ..., 0], 4, axis=1)])[..., None]
    assert field_shapes(both, np.array([[1.0], [1.0]])).centre[0, 1] == pytest.approx(14.0, abs=0.1)
    assert field_shapes(both, np.array([[1.0], [0.6]])).centre[0, 1] < 13.8
    refused("maps: expected", lambda: field_shapes(maps, strength[:1]))
    refused("finite", lambda: field_shapes(maps, -strength))


def test_retinotopy_is_found_where_there_is_one():
    rng = np.random.default_rng(0)
    cortex = rng.uniform(0, 1000, (200, 2))
    slope = np.array([[0.06, 0.02], [-0.01, 0.05]])  # degrees per micrometre
    signal = (cortex - cortex.mean(0)) @ slope.T
    field = 5 + signal + rng.normal(0, signal.std(0), signal.shape)
    found = fit_retinotopy(cortex, field, seed=0, num_permutations=99)
    np.testing.assert_allclose(found.r2, 0.5, atol=0.1)
    np.testing.assert_allclose(found.slope, slope, atol=0.012)
    np.testing.assert_array_equal(found.p_value, 0.01)
    assert found.predicted.shape == (200, 2)
    none = fit_retinotopy(cortex, field[rng.permutation(200)], seed=0, num_permutations=99)
    assert (none.r2 < 0.05).all() and (none.p_value > 0.05).any()
    refused("differ between", lambda: fit_retinotopy(np.ones((200, 2)), field, seed=0))
    refused("at least 20 neurons", lambda: fit_retinotopy(cortex[:9], field[:9], seed=0))
    refused("finite positions", lambda: fit_retinotopy(cortex, field * np.nan, seed=0))
    refused("expected .neuron, D.", lambda: fit_retinotopy(cortex, field[:9], seed=0))


def test_simulated_cortex_holds_a_map():
    centre = np.random.default_rng(0).uniform((5, 10), (31, 54), (300, 2))
    population = types.SimpleNamespace(centre=centre, height=36, width=64, degrees_per_pixel=3.4)
    places = cortical_positions(population, 3)
    assert places.shape == (300, 3) and places.dtype == np.float32
    np.testing.assert_array_equal(places, cortical_positions(population, 3))
    assert (places != cortical_positions(population, 4)).any()
    found = fit_retinotopy(places[:, :2], 3.4 * centre[:, ::-1], seed=0, num_permutations=9)
    assert (found.r2 > 0.9).all() and (found.r2 < 0.999).all()  # a map, with scatter
    np.testing.assert_allclose(np.linalg.norm(found.slope, axis=1), 1 / 13, rtol=0.1)


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory):
    """A recording and two encoders of its four neurons, as a lab has them."""
    folder = tmp_path_factory.mktemp("lab")
    rng = np.random.default_rng(0)
    trials = [
        Trial(
            "0",
            "mouse",
            "train",
            rng.uniform(0, 255, (20, *LARGE)),
            rng.gamma(1, 1, (20, 4)),
            np.tile(BEHAVIOUR, (20, 1)),
        )
    ]
    write_sensorium(folder / "mouse", trials)
    for model in (0, 1):
        save_encoder(folder / "run" / "encoders" / str(model), *placed(model))
    return folder


def study_config(laboratory, **changes):
    config = get_config()
    config.recordings, config.encoders = str(laboratory / "mouse"), str(laboratory / "run")
    config.receptive_fields.update(spot_pixels=1, permutations=20, chunk=50, **changes)
    return config


def test_study(laboratory, tmp_path, capsys):
    study = receptive_fields(study_config(laboratory, keep_responses=True, smoothing=2.0), str(tmp_path))
    folder = tmp_path / "studies" / "receptive_fields"
    with np.load(folder / "mouse.npz") as stored:
        found = dict(stored)
    expected = probe_pixels([placed(0), placed(1)], BEHAVIOUR)
    fields = receptive_field_maps(expected)
    for name, values in fields._asdict().items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found["population_peaks"], population_receptive_field(fields))
    np.testing.assert_allclose(found["population_mean"], population_receptive_field(fields, "mean"), rtol=1e-4)
    for model in (0, 1):
        alone = receptive_field_maps(PixelResponses(*(x[model : model + 1] for x in expected)))
        np.testing.assert_array_equal(found["model_peaks"][model], alone.peaks)
        np.testing.assert_allclose(found["model_strength"][model], alone.strength, rtol=1e-5, atol=1e-7)
        responses = np.load(folder / f"mouse_model{model}.npy")
        np.testing.assert_allclose(responses, expected.responses[model], rtol=1e-5)
    assert (found["model_strength"][0] != found["model_strength"][1]).any()
    assert not (folder / "progress").exists()
    # Three of four neurons see one pixel each; no positions in the cortex, no true centres.
    rows = {row["measure"]: row for row in study.rows}
    assert rows["neurons that respond to a bright or dark square"]["value"] == 75
    assert rows["neurons that respond to a dark square"]["value"] == 25
    assert any("no positions of its neurons" in line for line in study.findings)
    assert not any("retinotopy" in name or "true" in name for name in study.captions)
    assert all((folder / f"{name}.svg").read_text().startswith("<?xml") for name in study.captions)
    with open(folder / "mouse.csv") as handle:
        neurons = list(csv.DictReader(handle))
    assert [n["responds_bright"] for n in neurons] == ["1", "0", "1", "0"] and neurons[3]["azimuth_degrees"] == ""
    # Row 1, column 10 of 9 x 12 pixels of 4.7 cm, 15 cm away: up and to the right.
    pixel = 56.5 / 12
    assert float(neurons[0]["azimuth_degrees"]) == pytest.approx(np.degrees(np.arctan(4.5 * pixel / 15)), abs=2.0)
    assert float(neurons[0]["elevation_degrees"]) == pytest.approx(np.degrees(np.arctan(3 * pixel / 15)), abs=8.0)
    assert "75" in capsys.readouterr().out
    # The maps are not made again.
    before = (folder / "mouse.npz").stat().st_mtime_ns
    again = receptive_fields(study_config(laboratory, keep_responses=True, smoothing=2.0), str(tmp_path))
    assert (folder / "mouse.npz").stat().st_mtime_ns == before and again.findings == study.findings


def test_study_goes_on_after_a_kill(laboratory, tmp_path, monkeypatch):
    config = study_config(laboratory)
    whole = receptive_fields(config, str(tmp_path / "whole"))
    original, shown = module._probe, []

    def killed(*arguments):
        shown.append(1)
        if len(shown) == 7:  # two models of 217 squares, five chunks each: in the second one
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(module, "_probe", killed)
    with pytest.raises(KeyboardInterrupt):
        receptive_fields(config, str(tmp_path / "part"))
    folder = tmp_path / "part" / "studies" / "receptive_fields"
    assert sorted(p.name for p in (folder / "progress").iterdir()) == ["mouse_model0.npy", "mouse_model1.npy"]
    assert not (folder / "study.json").exists()
    shown[:] = [1] * 100
    again = receptive_fields(config, str(tmp_path / "part"))
    assert len(shown) == 104  # of ten chunks, six were there
    assert again.rows == whole.rows
    files = [np.load(tmp_path / name / "studies/receptive_fields/mouse.npz") for name in ("whole", "part")]
    for key in files[0].files:
        np.testing.assert_array_equal(files[0][key], files[1][key])


def test_study_as_published(laboratory, tmp_path):
    receptive_fields(study_config(laboratory, published=True, smoothing=2.0), str(tmp_path))
    with np.load(tmp_path / "studies/receptive_fields/mouse.npz") as stored:
        strength = stored["strength"]
    expected = receptive_field_maps(probe_pixels([placed(0), placed(1)], BEHAVIOUR, padding=127.5), reference="before")
    np.testing.assert_allclose(strength, expected.strength, rtol=1e-4, atol=1e-7)


def test_study_of_retinotopy_and_true_centres(tmp_path):
    """Neurons that look at the pixels that their places in the cortex say."""
    rng = np.random.default_rng(0)
    places = np.stack([rng.integers(0, n, 60) for n in LARGE], axis=1)
    encoder = LinearNonlinear(num_neurons=(60,), canvas=LARGE, window_frames=8, num_taps=3, rank=1)
    like = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 8, *LARGE, 5)))
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    readout = variables["params"]["readout0"]
    readout["time"][...] = 1.0
    readout["space"][places[:, 0] * LARGE[1] + places[:, 1], np.arange(60)] = 1.0
    save_encoder(tmp_path / "run" / "encoders" / "0", encoder, variables)
    trial = Trial("0", "mouse", "train", np.full((20, *LARGE), 9.0), np.ones((20, 60)), np.tile(BEHAVIOUR, (20, 1)))
    centres = places + 0.5
    cortex = np.column_stack([centres[:, 1] * 50, centres[:, 0] * 50, np.zeros(60)])
    write_sensorium(
        tmp_path / "mouse", [trial], cell_motor_coordinates=cortex, extra={"receptive_field_centres": centres.tolist()}
    )
    config = study_config(tmp_path)
    study = receptive_fields(config, str(tmp_path / "out"))
    rows = {row["measure"]: row for row in study.rows}
    for axis in ("azimuth", "elevation"):
        assert rows[f"{axis} from the cortex, R2"]["value"] > 0.9
        assert rows[f"{axis} from the cortex, R2"]["p_value"] == pytest.approx(1 / 21)
        assert rows[f"true and found {axis}, correlation"]["value"] > 0.95
    assert {"retinotopy", "true_centres", "population", "examples"} <= set(study.captions)
    assert json.loads((tmp_path / "out/studies/receptive_fields/study.json").read_text())["rows"] == study.rows
    assert any("tells where it looks" in line for line in study.findings)


def test_study_errors(laboratory, tmp_path):
    def config(**changes):
        config = study_config(laboratory)
        config.update_from_flattened_dict(changes)
        return config

    refused("nothing", lambda: receptive_fields(config(recordings=str(tmp_path / "nothing")), str(tmp_path / "a")))
    refused("nothing", lambda: receptive_fields(config(encoders=str(tmp_path / "nothing")), str(tmp_path / "b")))
    encoder, variables = toy("linear_nonlinear")
    save_encoder(tmp_path / "other", encoder, variables)
    refused("neurons", lambda: receptive_fields(config(encoders=str(tmp_path / "other")), str(tmp_path / "c")))
    refused("spot", lambda: receptive_fields(config(**{"receptive_fields.spot_pixels": 99}), str(tmp_path / "d")))
    receptive_fields(config(), str(tmp_path / "e"))
    changed = config(**{"receptive_fields.smoothing": 0.5})
    refused("begun with receptive_fields", lambda: receptive_fields(changed, str(tmp_path / "e")))
