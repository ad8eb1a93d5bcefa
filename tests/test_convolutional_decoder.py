"""The convolutional decoder: a nonlinear code, its linear part, its rules, resuming, and the entry point."""

import dataclasses
import itertools
import shutil

import jax
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from experiments import convolutional_decoder as entry
from experiments import decoder_training
from experiments.evaluate import table
from experiments.reconstruct import reconstruct_recordings
from neurorecon.decoders import (
    DecoderSettings,
    LinearStage,
    fit_convolutional_decoder,
    fit_linear_stage,
    load_decoder,
)
from neurorecon.decoders.fitting import _apply, _update
from neurorecon.decoders.linear_stage import box_of
from neurorecon.decoders.network import depth_to_space
from neurorecon.encoders.gaussian_readout import space_to_depth
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.movie_metrics import movie_correlation
from neurorecon.files import save_json, save_npz
from neurorecon.recordings import open_recording
from tests import tiny_run
from tests.tiny_run import ORACLE, random_encoders, simulated, tiny_config

SHAPE, NUM_NEURONS = (8, 10), 40
SETTINGS = DecoderSettings(
    num_lags=2, lag_step=2, folds=2, features=12, maps=4, dilations=(1, 2), temporal_taps=3, num_steps=80,
    validation_every=20, learning_rate=0.01, dropout=0.1,
)  # fmt: skip


def world(seed, trials, length=61):
    """Neurons that see the half-wave rectified contrast of black and white patches."""
    rng, code = np.random.default_rng(seed), np.random.default_rng(7)
    centres = code.uniform((0, 0), SHAPE, (NUM_NEURONS, 2))
    sign = code.choice([-1.0, 1.0], NUM_NEURONS)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    fields = np.exp(-((y - centres[:, :1, None]) ** 2 + (x - centres[:, 1:, None]) ** 2) / 3)
    fields /= fields.sum((1, 2), keepdims=True)
    responses, movies = [], []
    for _ in range(trials):
        bright = gaussian_filter(rng.normal(0, 1, (length, *SHAPE)), (3, 1.5, 1.5))
        bright = np.sign(bright)  # black and white: a network can know that nothing lies between
        drive = np.maximum(sign * np.einsum("thw,nhw->tn", bright, fields), 0)
        responses.append((25 * drive + 4 * rng.exponential(1, drive.shape)).astype(np.float32))
        movies.append((127.5 + 90 * bright).astype(np.float32))
    return responses, movies


@pytest.fixture(scope="module")
def mask():
    inside = np.zeros(SHAPE, bool)
    inside[1:7, 2:9] = True
    inside[1, 2] = False
    return inside


@pytest.fixture(scope="module")
def data():
    return (*world(0, 12), *world(1, 3))


@pytest.fixture(scope="module")
def decoder(data, mask):
    return fit_convolutional_decoder(*data, mask=mask, seed=0, settings=SETTINGS)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_beats_its_linear_part_on_unseen_trials(decoder, mask):
    gain = []
    for responses, movie in zip(*world(2, 4), strict=True):
        linear = decoder.stage.predict(decoder.stage.features(responses))
        scores = [movie_correlation(movie, m, mask) for m in (decoder.predict(responses), linear)]
        gain.append(scores[0] - scores[1])
    assert min(gain) > 0 and np.mean(gain) > 0.02
    assert decoder.validation_correlation > decoder.linear_correlation + 0.02


def test_outside_the_mask_it_is_the_linear_movie(decoder, mask):
    (responses,), _ = world(3, 1, length=40)
    movie, linear = decoder.predict(responses), decoder.stage.predict(decoder.stage.features(responses))
    assert movie.shape == (40, *SHAPE) and movie.dtype == np.float32
    np.testing.assert_array_equal(movie[:, ~mask], linear[:, ~mask])
    assert (movie[:, mask] != linear[:, mask]).mean() > 0.9


def test_pixels_outside_the_mask_teach_nothing(data, mask, decoder):
    responses, movies, v_responses, v_movies = data
    rng = np.random.default_rng(0)
    spoiled = [np.where(mask, m, rng.uniform(0, 255, m.shape)).astype(np.float32) for m in movies]
    short = dataclasses.replace(SETTINGS, num_steps=3)
    stage = fit_linear_stage(*data, mask=mask, settings=short, seed=0)
    a, b = (
        fit_convolutional_decoder(responses, m, v_responses, v_movies, mask=mask, seed=0, settings=short, stage=stage)
        for m in (movies, spoiled)
    )
    assert same(a.params, b.params)


def test_held_out_movies_are_those_of_decoders_fitted_to_others(data, mask):
    responses, movies, *validation = data
    stage = fit_linear_stage(*data, mask=mask, settings=SETTINGS, seed=0)
    other = [m.copy() for m in movies]
    other[0] = other[0][::-1]  # keeps the mean frame, and so the choice of the background
    penalty_kept = fit_linear_stage(responses, other, *validation, mask=mask, settings=SETTINGS, seed=0)
    assert penalty_kept.decoder.penalty == stage.decoder.penalty
    np.testing.assert_array_equal(penalty_kept.held_out[0], stage.held_out[0])  # its own movie says nothing of it
    assert (penalty_kept.held_out[1] != stage.held_out[1]).any()  # but something of the other fold's
    rows, columns = box_of(mask, SETTINGS.patch)
    assert stage.held_out[0].shape == movies[0][:, rows, columns].shape
    again = LinearStage.from_arrays(stage.to_arrays())
    np.testing.assert_array_equal(
        again.predict(again.features(responses[0])), stage.predict(stage.features(responses[0]))
    )


def test_roots_where_no_response_is_negative(data, mask):
    responses, movies, v_responses, v_movies = data
    assert fit_linear_stage(*data, mask=mask, settings=SETTINGS, seed=0).square_root
    signed = [r - 5 for r in responses]
    stage = fit_linear_stage(signed, movies, v_responses, v_movies, mask=mask, settings=SETTINGS, seed=0)
    assert not stage.square_root and np.isfinite(stage.features(signed[0])).all()


def test_goes_on_from_a_stored_state_and_compiles_nothing_again(data, mask, decoder):
    stage = fit_linear_stage(*data, mask=mask, settings=SETTINGS, seed=0)
    kept = {}

    def keep(state, record):
        if record["step"] == 35:
            kept["state"] = jax.tree.map(np.array, state)

    before = _update._cache_size(), _apply._cache_size()
    given = {"mask": mask, "seed": 0, "settings": SETTINGS, "stage": stage}
    whole = fit_convolutional_decoder(*data, **given, on_step=keep)
    resumed = fit_convolutional_decoder(*data, **given, restored=lambda _: jax.tree.map(jax.numpy.array, kept["state"]))
    assert (_update._cache_size(), _apply._cache_size()) == before
    assert same(whole.params, decoder.params) and same(resumed.params, whole.params)
    assert resumed.validation_correlation == whole.validation_correlation
    short = dataclasses.replace(SETTINGS, num_steps=3)
    seeds = [fit_convolutional_decoder(*data, **(given | {"seed": s, "settings": short})).params for s in (0, 1)]
    assert not same(*seeds)


def test_what_helps_nothing_leaves_the_linear_movie(data, mask):
    bad = dataclasses.replace(SETTINGS, num_steps=2, learning_rate=5.0, kernel_rate=5.0, validation_every=1)
    found = fit_convolutional_decoder(*data, mask=mask, seed=0, settings=bad)
    movie, linear = found.predict(data[2][0]), found.stage.predict(found.stage.features(data[2][0]))
    np.testing.assert_allclose(movie, linear, atol=1e-3)


def test_saved_and_loaded(decoder, tmp_path, data):
    decoder.save(tmp_path / "decoder.npz")
    again = load_decoder(tmp_path / "decoder.npz")
    np.testing.assert_array_equal(again.predict(data[2][0]), decoder.predict(data[2][0]))
    assert again.settings == decoder.settings and again.validation_correlation == decoder.validation_correlation
    (tmp_path / "decoder.npz").write_bytes(b"half a file")
    for path in (tmp_path / "decoder.npz", tmp_path / "none.npz"):
        with pytest.raises(NeuroreconError, match=r"damaged|found no file") as caught:
            load_decoder(path)
        assert "\n" not in str(caught.value)


def test_cells_and_pixels():
    movie = np.arange(2 * 4 * 6.0).reshape(2, 4, 6)
    np.testing.assert_array_equal(depth_to_space(space_to_depth(movie[..., None], 2), 2), movie)
    inside = np.zeros((7, 9), bool)
    inside[4:7, 2:5] = True
    assert box_of(inside, 2) == (slice(3, 7), slice(2, 6))  # whole cells, moved where the screen ends
    assert box_of(np.ones((7, 9), bool), 2) == (slice(0, 7), slice(0, 9))


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({"mask": np.zeros(SHAPE, bool)}, {}, "mask: expected booleans"),
        ({"mask": np.ones(SHAPE)}, {}, "mask: expected booleans"),
        ({}, {"folds": 40}, "folds: expected at most 12"),
        ({}, {"folds": 1}, "folds: expected at least 2"),
        ({}, {"num_lags": 3}, "num_lags: expected a multiple of lag_step"),
        ({}, {"temporal_taps": 4}, "temporal_taps: expected an odd number"),
        ({}, {"dropout": 1.0}, "dropout: expected 0 or more"),
        ({}, {"learning_rate": 1e9, "kernel_rate": 1e30, "num_steps": 30}, "loss is not finite"),
    ],
)
def test_bad_input_gets_one_line(data, mask, changes, settings, words):
    with pytest.raises(NeuroreconError) as caught:
        given = {"mask": mask, "seed": 0, "settings": dataclasses.replace(SETTINGS, **settings)} | changes
        fit_convolutional_decoder(*data, **given)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_bad_responses_get_one_line(decoder):
    for responses, words in ((np.zeros((9, 3)), r"expected \(time, 40\)"), (np.full((9, 40), np.nan), "finite")):
        with pytest.raises(NeuroreconError, match=words):
            decoder.predict(responses)


def test_entry_point_decodes_scores_and_goes_on(tmp_path, monkeypatch, capsys):
    tree = simulated(tmp_path / "animal")
    config = tiny_config(
        recordings=str(tree), controls="grey", convolutional_decoder__num_steps=6, convolutional_decoder__folds=2,
        convolutional_decoder__validation_every=3, convolutional_decoder__features=4, checkpoint_seconds=0.0,
    )  # fmt: skip
    work, inside = tmp_path / "work", np.zeros((12, 16), bool)
    inside[2:10, 3:13] = True
    rng = np.random.default_rng(0)
    with pytest.raises(NeuroreconError, match=r"config\.json"):
        entry.decode_clips(config, str(work))
    save_json(work / "config.json", config.to_dict())
    for trial in ORACLE:
        save_npz(
            work / "reconstructions/mouse1" / f"{trial}.npz",
            movie=rng.uniform(0, 255, (60, 12, 16)).astype(np.float32), mask=inside, encoder_windows=1.0, seconds=1.0,
        )  # fmt: skip
    root = work / "controls/convolutional_decoder"
    whole = entry.decode_clips(config, str(work))
    values = [c["convolutional_decoder"] for c in whole["clips"]]
    assert whole["controls"]["convolutional_decoder"]["mean"] == pytest.approx(np.mean(values))
    assert "convolutional_decoder" in whole["differences"] and "convolutional decoder" in table(whole)
    with np.load(root / "mouse1" / f"{ORACLE[0]}.npz") as stored:
        first = stored["movie"]
    assert first.shape == (60, 12, 16) and first.min() >= 0 and first.max() <= 255
    assert not (root / "progress").is_dir() or not any((root / "progress").iterdir())

    # Killed while training, after a checkpoint, it comes to the same movie.
    for path in (root / "mouse1.npz", *(root / "mouse1" / f"{t}.npz" for t in ORACLE)):
        path.unlink()
    save, fits = entry.runs.Checkpoints.save, []

    def killed(self, step, state):
        save(self, step, state)
        if step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(entry.runs.Checkpoints, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        entry.decode_clips(config, str(work))
    monkeypatch.setattr(entry.runs.Checkpoints, "save", save)
    monkeypatch.setattr(decoder_training, "fit_linear_stage", lambda *_, **__: fits.append(1))
    entry.decode_clips(config, str(work))
    with np.load(root / "mouse1" / f"{ORACLE[0]}.npz") as stored:
        np.testing.assert_array_equal(stored["movie"], first)
    assert not fits
    monkeypatch.setattr(entry, "trained_decoder", lambda *_: pytest.fail("nothing was left"))
    entry.decode_clips(config, str(work))
    with pytest.raises(NeuroreconError, match="was begun with convolutional_decoder"):
        entry.decode_clips(tiny_config(convolutional_decoder__num_steps=7), str(work))


def neurons_seen(decoder, responses, shown):
    """Which three neurons, alone, decode to the movie shown."""
    for three in itertools.combinations(range(responses.shape[1]), 3):
        kept = np.isin(np.arange(responses.shape[1]), three)
        movie = np.clip(decoder.predict(np.where(kept, responses, decoder.uninformative)), 0, 255)
        if np.abs(movie - shown).max() < 5e-3:
            return kept
    return np.zeros(responses.shape[1], bool)


def test_its_movie_of_the_clip_is_the_mean_of_a_prior(tmp_path, monkeypatch):
    tree = simulated(tmp_path / "animal")
    encoders = str(random_encoders(tmp_path / "trained", num_models=1))
    small = {f"convolutional_decoder__{k}": v for k, v in {"num_steps": 4, "folds": 2, "features": 4}.items()}
    config = tiny_config(
        recordings=str(tree), encoders=encoders, controls="shuffled_neurons", calibration_clips=0,
        prior__mean="convolutional_decoder", default_recipe__likelihood_weight=1e-25, num_steps=2, **small,
    )  # fmt: skip
    work = tmp_path / "work"
    reconstruct_recordings(config, str(work), films=False)
    monkeypatch.setattr(decoder_training, "fit_convolutional_decoder", lambda *_, **__: pytest.fail("it is there"))
    entry.decode_clips(config, str(work))
    decoder = load_decoder(work / "controls/convolutional_decoder/mouse1.npz")
    for trial in ORACLE:  # responses that weigh nothing leave the prior's mean; shuffled ones have one of their own
        with np.load(work / "controls/convolutional_decoder/mouse1" / f"{trial}.npz") as stored:
            np.testing.assert_allclose(tiny_run.movie(work, trial), stored["movie"], atol=2e-3)
        with np.load(work / "controls/shuffled_neurons/mouse1" / f"{trial}.npz") as stored:
            shuffled = stored["movie"]
        assert np.abs(shuffled - tiny_run.movie(work, trial)).max() > 0.05
    assert decoder.mask.shape == (12, 16)
    # What the descent is not given, the decoder is not given either.
    config.neurons.count, config.controls = 3, ""
    (reduced := tmp_path / "fewer").mkdir()
    shutil.copytree(work / "controls", reduced / "controls")
    reconstruct_recordings(config, str(reduced), films=False)
    responses = open_recording(tree).target(ORACLE[0]).responses
    assert np.abs(tiny_run.movie(reduced, ORACLE[0]) - tiny_run.movie(work, ORACLE[0])).max() > 0.05
    kept = np.flatnonzero(neurons_seen(decoder, responses, tiny_run.movie(reduced, ORACLE[0])))
    assert len(kept) == 3
