"""Clips that share a compiled call: the movies of one by one, resumed bit for bit, and lengths that share it too."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import experiments.corrections
import experiments.descent_groups
import experiments.reconstruct
from experiments.descent_groups import clips_at_once
from experiments.reconstruct import reconstruct_recordings
from neurorecon import runs
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import default_recipe, published_recipe, reconstruct_clips
from neurorecon.reconstruction.loop import Recorded, Settings, advance, pixel_gradient
from neurorecon.reconstruction.losses import AcrossNeurons
from neurorecon.reconstruction.padding import padded, padded_length, unpadded, why_not
from neurorecon.reconstruction.priors import temporal_smoothness
from tests.tiny_run import movie, random_encoders, simulated, tiny_config
from tests.toy_encoders import SCREEN, toy, toy_clips

ROOT = Path(__file__).resolve().parents[1]
CLIPS = ("6", "7", "8", "9", "10")
CLOSE = 0.02  # grey levels; another order of sums makes 0.002, since Adam's first steps follow signs
QUICK = {
    "calibration_clips": 0,
    "controls": "shuffled_neurons",
    "prior__spectrum": "natural",  # under a flat one, what no response sees follows the last bits
    "mask__kind": "none",
    "checkpoint_seconds": 0.0,
    "default_recipe__likelihood": "poisson",
    "default_recipe__likelihood_weight": 0.3,
}


class Killed(BaseException):
    """Stands in for the signal: nothing in the library may catch it."""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    return simulated(folder, simulation__oracle=len(CLIPS)), random_encoders(folder / "trained")


def run(given, folder, **changes):
    config = tiny_config(recordings=str(given[0]), encoders=str(given[1]), **QUICK | changes)
    reconstruct_recordings(config, str(folder), films=False)
    return folder


def stored(folder, trial, kind="reconstruction"):
    place = "reconstructions" if kind == "reconstruction" else f"controls/{kind}"
    return runs.load_arrays(folder / place / "mouse1" / f"{trial}.npz")


def differences(a, b, clips=CLIPS):
    """Of movies and traces, the largest."""
    found = []
    for kind in ("reconstruction", "shuffled_neurons"):
        for trial in clips:
            x, y = stored(a, trial, kind), stored(b, trial, kind)
            assert x["encoder_windows"] == y["encoder_windows"] and x["movie"].std() > 0.1
            found.append(np.abs(x["movie"] - y["movie"]).max())
            found.append(np.abs(x["trace_loss"] / y["trace_loss"] - 1).max())
    return np.array(found)


@pytest.fixture(scope="module")
def alone(given, tmp_path_factory):
    advance.clear_cache()  # other files of tests have descents of these shapes
    before = advance._cache_size()
    folder = run(given, tmp_path_factory.mktemp("alone"), clips_at_once=1)
    return SimpleNamespace(folder=folder, compiled=advance._cache_size() - before)


@pytest.fixture(scope="module")
def together(given, alone, tmp_path_factory):
    before = advance._cache_size()
    folder = run(given, tmp_path_factory.mktemp("together"), clips_at_once=3)
    return SimpleNamespace(folder=folder, compiled=advance._cache_size() - before)


def test_together_as_one_by_one(alone, together):
    assert differences(alone.folder, together.folder).max() < CLOSE
    for name, sizes in ((alone.folder, [1] * 5), (together.folder, [3, 3, 3, 2, 2])):
        assert [int(stored(name, trial)["clips_together"]) for trial in CLIPS] == sizes
        log = runs.read_metrics(name / "reconstruction.jsonl")
        assert [(r["kind"], r["trial"], r["clips_together"]) for r in log] == [
            (kind, trial, size) for kind in ("reconstruction", "shuffled_neurons") for trial, size in zip(CLIPS, sizes)
        ]
        for record in log:
            arrays = stored(name, record["trial"], record["kind"])
            assert record["loss"] == [float(arrays["trace_loss"][k]) for k in (0, -1)]
            assert record["seconds"] == float(arrays["seconds"]) > 0
        assert not list((name / "progress").glob("*"))
    # The clips of a call share its time: their seconds add up to it.
    seconds = [float(stored(together.folder, trial)["seconds"]) for trial in CLIPS[:3]]
    assert max(seconds) < 2 * min(seconds)


def test_clips_of_equal_length_compile_once(alone, together):
    assert alone.compiled == together.compiled == 1


def killed(monkeypatch, owner, name, call, *, before):
    """The `call`-th call of `owner.name` is the last thing that happens, or the first that doesn't."""
    original, calls = getattr(owner, name), [0]

    def watched(*args, **kwargs):
        calls[0] += 1
        if before and calls[0] == call:
            raise Killed
        result = original(*args, **kwargs)
        if calls[0] == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, watched)


def begun_and_killed(given, folder, monkeypatch, owner, name, call, *, before=False, **changes):
    with monkeypatch.context() as patch:
        killed(patch, owner, name, call, before=before)
        with pytest.raises(Killed):
            run(given, folder, **changes)


@pytest.fixture
def starts(monkeypatch):
    """(clips, step) of every call."""
    found, original = [], experiments.descent_groups.reconstruct_clips

    def watched(encoders, responses, *args, progress, **kwargs):
        found.append((len(responses), 0 if progress is None else progress.step))
        return original(encoders, responses, *args, progress=progress, **kwargs)

    monkeypatch.setattr(experiments.descent_groups, "reconstruct_clips", watched)
    return found


# Two steps a call, six steps: the second writing is after step 4; the first group's end comes with the third.
@pytest.mark.parametrize(
    "name, call, before, expected",
    [
        ("save_arrays", 1, True, [(3, 0), (3, 0), (3, 0), (3, 0)]),
        ("save_arrays", 2, False, [(3, 4), (3, 0), (3, 0), (3, 0)]),
        ("save_movie", 1, True, [(3, 6), (3, 0), (3, 0), (3, 0)]),
        ("save_movie", 2, False, [(3, 6), (3, 0), (3, 0), (3, 0)]),  # two of three are there
        ("save_movie", 3, False, [(3, 0), (3, 0), (3, 0)]),
        ("save_arrays", 5, False, [(3, 4), (3, 0), (3, 0)]),  # in a group that is filled up
    ],
)
def test_a_group_that_was_killed_goes_on_to_the_same_movies(
    given, together, tmp_path, monkeypatch, starts, name, call, before, expected
):
    owner = experiments.reconstruct.runs if name == "save_arrays" else experiments.reconstruct
    begun_and_killed(given, tmp_path, monkeypatch, owner, name, call, before=before, clips_at_once=3)
    starts.clear()
    run(given, tmp_path, clips_at_once=3)
    assert starts == expected
    assert (differences(together.folder, tmp_path) == 0).all()
    assert not list((tmp_path / "progress").glob("*"))


@pytest.mark.parametrize(
    "first, then, expected",
    [
        (3, 1, [(1, 4), (1, 4), (1, 4)] + [(1, 0)] * 7),
        (1, 3, [(3, 4), (3, 0), (3, 0), (3, 0), (3, 0)]),  # the one that was under way stays on its own
    ],
)
def test_another_number_at_once_goes_on_all_the_same(
    given, alone, tmp_path, monkeypatch, starts, first, then, expected
):
    owner = experiments.reconstruct.runs
    begun_and_killed(given, tmp_path, monkeypatch, owner, "save_arrays", 2, clips_at_once=first)
    starts.clear()
    run(given, tmp_path, clips_at_once=then)
    assert starts == expected
    assert differences(alone.folder, tmp_path).max() < CLOSE
    assert not list((tmp_path / "progress").glob("*"))


def test_killed_twice_with_clips_in_two_files(given, alone, tmp_path, monkeypatch, starts):
    """A group's file and that of one of its clips, further on: each clip goes on from where it is furthest."""
    owner = experiments.reconstruct.runs
    begun_and_killed(given, tmp_path, monkeypatch, owner, "save_arrays", 1, clips_at_once=3)
    begun_and_killed(given, tmp_path, monkeypatch, owner, "save_arrays", 1, clips_at_once=1)
    assert len(list((tmp_path / "progress").glob("*.npz"))) == 2
    starts.clear()
    run(given, tmp_path, clips_at_once=1, controls="")
    assert starts == [(1, 4), (1, 2), (1, 2), (1, 0), (1, 0)]
    for trial in CLIPS:
        np.testing.assert_allclose(movie(tmp_path, trial), movie(alone.folder, trial), atol=CLOSE)
    assert not list((tmp_path / "progress").glob("*"))


def test_samples_of_the_posterior_do_not_cost_the_descent_of_all(given, tmp_path, monkeypatch, starts):
    changes = {"controls": "", "max_clips": 2, "clips_at_once": 2, "posterior__samples": 2, "checkpoint_seconds": 1e9}
    changes |= {"posterior__validation_clips": 0}
    begun_and_killed(
        given, tmp_path, monkeypatch, experiments.corrections, "sample_posterior", 2, before=True, **changes
    )
    starts.clear()
    run(given, tmp_path, **changes)
    assert starts == [(2, 6)]  # nothing is left to descend; one of two stands in for the one that is there
    assert "movie_std" in stored(tmp_path, "7") and not list((tmp_path / "progress").glob("*"))


def test_how_many_at_once(monkeypatch):
    def number(shard="", asked=0):
        return clips_at_once(tiny_config(shard=shard, clips_at_once=asked))

    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert [number(shard) for shard in ("", "models", "windows", "auto", "clips")] == [1, 1, 1, 1, 4]
    assert number("", 3) == 3 and number("clips", 9) == 8
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [number(shard) for shard in ("", "models", "auto", "clips")] == [8, 8, 32, 32]
    for shard, asked in (("", -1), ("clips", 3)):
        with pytest.raises(NeuroreconError, match="clips_at_once: expected 0"):
            number(shard, asked)


@pytest.mark.parametrize("changes", [{"clips_at_once": -2}, {"length_bucket": -1}, {"shard": "clip"}])
def test_faults_are_one_line_and_leave_no_folder(given, tmp_path, changes):
    with pytest.raises(NeuroreconError, match=f"--config.{next(iter(changes))}") as error:
        run(given, tmp_path / "run", **changes)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


PROGRAM = """
import sys
import jax
from experiments.reconstruct import reconstruct_recordings
from tests.test_clips_together import QUICK
from tests.tiny_run import tiny_config
assert jax.device_count() == 4
config = tiny_config(recordings=sys.argv[1], encoders=sys.argv[2], shard="clips", **QUICK)
reconstruct_recordings(config, sys.argv[3], films=False)
"""


def test_devices_share_clips(given, alone, tmp_path):
    """Five clips on four devices: a group of four, and one of one that is filled up."""
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(given[0]), str(given[1]), str(tmp_path)],
        cwd=ROOT, env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert differences(alone.folder, tmp_path).max() < CLOSE
    assert [int(stored(tmp_path, trial)["clips_together"]) for trial in CLIPS] == [4, 4, 4, 4, 1]


# Lengths.

LENGTHS = {"6": 60, "7": 52, "8": 41, "9": 52, "10": 60}


@pytest.fixture(scope="module")
def uneven(given, tmp_path_factory):
    """The animal with clips that end early."""
    tree = tmp_path_factory.mktemp("uneven") / "mouse1"
    shutil.copytree(given[0], tree)
    for trial, length in LENGTHS.items():
        for series in ("responses", "behavior", "pupil_center"):
            path = tree / "data" / series / f"{trial}.npy"
            values = np.load(path).astype(np.float32)
            values[:, length:] = np.nan
            np.save(path, values)
    return tree, given[1]


def test_lengths_share_compiled_code(uneven, tmp_path, capsys):
    before = advance._cache_size()
    run(uneven, tmp_path / "bucket", length_bucket=30, clips_at_once=1)
    compiled = advance._cache_size() - before
    assert compiled <= 1  # none where another test has compiled it
    each = run(uneven, tmp_path / "each", length_bucket=0, clips_at_once=1)
    assert advance._cache_size() - before - compiled == len(set(LENGTHS.values()))
    for kind in ("reconstruction", "shuffled_neurons"):
        for trial, length in LENGTHS.items():
            x, y = stored(tmp_path / "bucket", trial, kind), stored(each, trial, kind)
            assert x["movie"].shape[0] == y["movie"].shape[0] == length
            # In single precision; see below for the proof that it is the same problem.
            np.testing.assert_allclose(x["movie"], y["movie"], atol=0.3)
            assert np.corrcoef(x["movie"].ravel(), y["movie"].ravel())[0, 1] > 0.99999
            np.testing.assert_allclose(x["trace_loss"], y["trace_loss"], rtol=1e-5)
            assert x["encoder_windows"] >= y["encoder_windows"]  # of the longer arrays
    assert "each length" not in capsys.readouterr().out


def test_clips_of_one_length_go_together(uneven, tmp_path, starts):
    run(uneven, tmp_path, clips_at_once=4, controls="")
    assert starts == [(2, 0), (2, 0), (1, 0)]


def test_another_bucket_begins_anew_and_says_so(uneven, tmp_path, monkeypatch, capsys, starts):
    changes = {"controls": "", "trials": "8", "clips_at_once": 1}
    owner = experiments.reconstruct.runs
    begun_and_killed(uneven, tmp_path, monkeypatch, owner, "save_arrays", 2, length_bucket=30, **changes)
    starts.clear()
    run(uneven, tmp_path, length_bucket=0, **changes)
    assert starts == [(1, 0)] and not list((tmp_path / "progress").glob("*"))
    assert "another --config.length_bucket; trial 8 begins anew" in capsys.readouterr().out


def test_buckets():
    assert [padded_length(n, 30) for n in (1, 30, 31, 300)] == [30, 30, 60, 300]
    assert padded_length(41, 0) == 41
    # Beyond 400 frames an encoder of any length sees two windows in place of one.
    assert [padded_length(n, 30) for n in (391, 400, 401)] == [400, 400, 420]


@pytest.mark.parametrize("name", ["factorized", "dwiseneuro"])
def test_padding_changes_nothing(name):
    """In double precision, where rounding is out of the way; and a second length compiles nothing."""
    options = {"key": jax.random.key(3), "num_steps": 7, "steps_per_call": 4}
    recipe, compiled = default_recipe(), []
    with jax.enable_x64(True):
        encoders = [toy(name, dtype=np.float64)]
        for num_frames in (18, 20):  # 18 / 24 is exact, also in the single precision of a loss's scale
            responses, behaviour = toy_clips(1, seed=num_frames, num_frames=num_frames)
            baseline = np.random.default_rng(0).normal(0, 5, (1, num_frames, *SCREEN))
            before = advance._cache_size()
            longer = padded(recipe, responses, behaviour, baseline, 24)
            found = reconstruct_clips(
                encoders, longer.responses, longer.behaviour, recipe=longer.recipe, baseline=longer.baseline, **options
            )
            compiled.append(advance._cache_size() - before)
            found = unpadded(found, encoders, recipe, num_frames)
            if num_frames == 18:
                own = reconstruct_clips(encoders, responses, behaviour, recipe=recipe, baseline=baseline, **options)
                np.testing.assert_allclose(found.movies, own.movies, rtol=1e-9)
                np.testing.assert_allclose(found.movie, own.movie, rtol=1e-6)
                for key, values in own.trace.items():
                    np.testing.assert_allclose(found.trace[key], values, rtol=1e-6, err_msg=key)
    assert compiled == [1, 0]


@pytest.mark.parametrize("name", ["factorized", "dwiseneuro"])
def test_gradients_are_zero_on_padding_whatever_stands_there(name):
    encoder, variables = toy(name)
    responses, behaviour = toy_clips(1, num_frames=17)
    longer = padded(default_recipe(), responses, behaviour, None, 24)
    shape = (24, *SCREEN)
    recipe = longer.recipe.made_for(shape, np.float32)
    settings = Settings(recipe, (encoder,), 0, shape, 1, 1, 100, True)
    shown = np.random.default_rng(1).uniform(0, 255, shape).astype(np.float32)
    stacked = jax.tree.map(lambda x: x[None], variables)

    def gradient(shown, responses, behaviour):
        ones = np.ones(responses.shape[1], np.float32)
        clip = Recorded(responses, behaviour, np.zeros(shape, np.float32), ones, 1.0, 0.0)
        return np.asarray(jax.jit(pixel_gradient)(settings, [stacked], shown, clip, jax.random.key(0))[0])

    plain = gradient(shown, longer.responses[0], longer.behaviour[0])
    assert (plain[17:] == 0).all() and np.abs(plain[:17]).max() > 0
    for place in range(3):  # movie, responses, behaviour
        given = [shown.copy(), longer.responses[0].copy(), longer.behaviour[0].copy()]
        given[place][17:] += 77.0
        np.testing.assert_array_equal(gradient(*given), plain)


def test_recipes_that_would_see_the_padding_are_refused():
    responses, behaviour = toy_clips(1)
    assert not why_not(default_recipe())
    refused = {
        "windows": published_recipe(),
        "priors": default_recipe(priors={"smooth": (1.0, temporal_smoothness)}),
        "smoothing": default_recipe(smoothing=0.5),
        "slow cosines": default_recipe(losses={"gain": (1.0, AcrossNeurons(lambda *_: None, 30))}),
    }
    for part, recipe in refused.items():
        assert part in why_not(recipe)
        with pytest.raises(NeuroreconError, match="can't be filled up"):
            padded(recipe, responses, behaviour, None, 30)
    with pytest.raises(NeuroreconError, match="at least the 20 frames"):
        padded(default_recipe(), responses, behaviour, None, 19)
