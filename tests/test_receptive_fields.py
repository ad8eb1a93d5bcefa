"""Receptive fields: known places found, batches that change nothing, the published prediction and map, the command."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from experiments.receptive_fields import receptive_fields
from neurorecon.encoders import LinearNonlinear, load_published, predict_trial, save_encoder
from neurorecon.encoders.canvas import place_on_canvas
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import (
    PixelResponses,
    population_receptive_field,
    probe_pixels,
    receptive_field_maps,
)
from neurorecon.reconstruction import receptive_fields as module
from neurorecon.recordings import Trial, write_sensorium
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


def test_command(laboratory, tmp_path):
    path = receptive_fields(str(tmp_path), str(laboratory / "mouse"), [str(laboratory / "run")], responses=True)
    assert path == tmp_path / "receptive_fields" / "mouse.npz"
    with np.load(path) as stored:
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
        np.testing.assert_array_equal(np.load(path.with_name(f"mouse_model{model}.npy")), expected.responses[model])
    assert (found["model_strength"][0] != found["model_strength"][1]).any()
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_command_as_published(laboratory, tmp_path):
    run = [str(laboratory / "run")]
    with np.load(receptive_fields(str(tmp_path), str(laboratory / "mouse"), run, published=True)) as stored:
        strength = stored["strength"]
    expected = receptive_field_maps(probe_pixels([placed(0), placed(1)], BEHAVIOUR, padding=127.5), reference="before")
    np.testing.assert_allclose(strength, expected.strength, rtol=1e-4, atol=1e-7)


def test_command_errors(laboratory, tmp_path):
    mouse, run = str(laboratory / "mouse"), str(laboratory / "run")
    refused("nothing", lambda: receptive_fields(str(tmp_path), str(tmp_path / "nothing"), [run]))
    refused("nothing", lambda: receptive_fields(str(tmp_path), mouse, [str(tmp_path / "nothing")]))
    refused("readout", lambda: receptive_fields(str(tmp_path), mouse, [run], readout=1))
    encoder, variables = toy("linear_nonlinear")
    save_encoder(tmp_path / "other", encoder, variables)
    refused("neurons", lambda: receptive_fields(str(tmp_path), mouse, [str(tmp_path / "other")]))
