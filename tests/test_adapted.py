"""Runs in which each clip has a prior of its own: two descents, resumed bit for bit, alone, together and in jobs."""

import json
import shutil

import numpy as np
import pytest

import experiments.descent_groups
import experiments.reconstruct
from experiments.reconstruct import main, reconstruct_recordings
from neurorecon import runs
from neurorecon.errors import NeuroreconError
from tests.tiny_run import ORACLE, movie, random_encoders, simulated, tiny_config

ADAPTED = {
    "prior__adapt_clips": 2,
    "prior__first_steps": 4,
    "calibration_clips": 0,
    "controls": "shuffled_neurons",
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
    return simulated(folder), random_encoders(folder / "trained")


def config_of(given, **changes):
    return tiny_config(recordings=str(given[0]), encoders=str(given[1]), **ADAPTED | changes)


def run(given, folder, **changes):
    reconstruct_recordings(config_of(given, **changes), str(folder), films=False)
    return folder


@pytest.fixture(scope="module")
def adapted(given, tmp_path_factory):
    return run(given, tmp_path_factory.mktemp("adapted"))


@pytest.fixture(scope="module")
def common(given, tmp_path_factory):
    return run(given, tmp_path_factory.mktemp("common"), prior__adapt_clips=0)


def control(folder, trial):
    return runs.load_arrays(folder / "controls" / "shuffled_neurons" / "mouse1" / f"{trial}.npz")["movie"]


def assert_same(a, b, *, atol=0.0):
    for trial in ORACLE:
        np.testing.assert_allclose(movie(a, trial), movie(b, trial), rtol=0, atol=atol)
        np.testing.assert_allclose(control(a, trial), control(b, trial), rtol=0, atol=atol)


def test_two_descents_a_clip(adapted, common):
    log = [(r["kind"], r["trial"]) for r in runs.read_metrics(adapted / "reconstruction.jsonl")]
    first = [trial for kind, trial in log if kind == "first"]
    assert log[: len(first)] == [("first", trial) for trial in first] and len(first) == 2
    assert not set(first) & set(ORACLE)  # of the clips that are asked for none tells how they are made
    assert sorted(p.stem for p in (adapted / "first" / "mouse1").iterdir()) == sorted(first)
    assert not (common / "first").exists()
    for trial in ORACLE:
        assert np.abs(movie(adapted, trial) - movie(common, trial)).max() > 0.005  # random encoders show little
        assert np.abs(control(adapted, trial) - control(common, trial)).max() > 0.005  # controls have the same recipe
        windows = [
            float(runs.load_arrays(f / "reconstructions" / "mouse1" / f"{trial}.npz")["encoder_windows"])
            for f in (adapted, common)
        ]
        assert windows[0] == pytest.approx(windows[1] * (1 + 4 / 6))


def test_the_true_movie_of_a_clip_changes_nothing(given, adapted, tmp_path):
    """The adaptation has movies of training and validation trials alone."""
    from tests.tiny_run import with_noise_instead_of

    tree = with_noise_instead_of(given[0], ORACLE, tmp_path / "mouse1")
    assert_same(run((tree, given[1]), tmp_path / "run"), adapted)


def calls(monkeypatch, owner, name, call):
    """After the `call`-th call of `owner.name` nothing happens any more."""
    original, made = getattr(owner, name), [0]

    def watched(*args, **kwargs):
        result = original(*args, **kwargs)
        made[0] += 1
        if made[0] == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, watched)


# States are written after every 2 updates: 2 x 2 in the first ones of validation, then 2 + 3 in those of each clip.
@pytest.mark.parametrize("call", [2, 5, 7, 12])
def test_killed_in_either_descent(given, adapted, tmp_path, monkeypatch, call):
    with monkeypatch.context() as patch:
        calls(patch, runs, "save_arrays", call)
        with pytest.raises(Killed):
            run(given, tmp_path)
    started = []
    original = experiments.descent_groups.reconstruct_clips

    def watched(*args, **kwargs):
        started.append(0 if kwargs["progress"] is None else kwargs["progress"].step)
        return original(*args, **kwargs)

    monkeypatch.setattr(experiments.descent_groups, "reconstruct_clips", watched)
    run(given, tmp_path)
    assert_same(tmp_path, adapted)
    assert started[0] > 0 and not list((tmp_path / "progress").glob("*"))
    # What a kill costs is less than a descent: 10 are made uninterrupted, and a kill in the second skips the first.
    assert len(started) <= 10


STOP = {"stop__held_out": 0.2, "stop__patience": 1, "num_steps": 60}


@pytest.fixture(scope="module")
def stopped(given, tmp_path_factory):
    return run(given, tmp_path_factory.mktemp("stopped"), **STOP)


def test_the_second_descent_alone_stops_early(given, stopped, adapted):
    for trial in ORACLE:
        found, whole = (runs.load_arrays(f / "reconstructions" / "mouse1" / f"{trial}.npz") for f in (stopped, adapted))
        made = len(found["trace_held_out_correlation"])
        assert 1 < made < 60 and "trace_held_out_correlation" not in whole
        assert found["encoder_windows"] == pytest.approx(whole["encoder_windows"] * (4 + made) / (4 + 6))
    for path in (stopped / "first" / "mouse1").iterdir():
        found, whole = (runs.load_arrays(p)["movie"] for p in (path, adapted / "first" / "mouse1" / path.name))
        np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("call", [2, 5, 6])
def test_killed_before_it_stops(given, stopped, tmp_path, monkeypatch, call):
    with monkeypatch.context() as patch:
        calls(patch, runs, "save_arrays", call)
        with pytest.raises(Killed):
            run(given, tmp_path, **STOP)
    assert_same(run(given, tmp_path, **STOP), stopped)


@pytest.mark.parametrize("wrong", [{"stop__held_out": 0.7}, {"stop__held_out": -0.1}, {"stop__patience": 0}])
def test_a_rule_for_stopping_that_makes_no_sense(given, tmp_path, wrong):
    with pytest.raises(NeuroreconError, match=r"--config\.stop: expected"):
        run(given, tmp_path, **wrong)
    assert not (tmp_path / "reconstructions").exists()


def test_together_as_one_by_one(given, adapted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        calls(patch, runs, "save_arrays", 4)  # in the second descent of both clips
        with pytest.raises(Killed):
            run(given, tmp_path, clips_at_once=2)
    assert_same(run(given, tmp_path, clips_at_once=2), adapted, atol=0.02)


def test_jobs_have_the_same_movies(given, adapted, tmp_path):
    for job in ("1/2", "2/2"):
        main(config_of(given, job=job), str(tmp_path))
    assert_same(tmp_path, adapted)


def test_samples_stand_on_the_clips_own_prior(given, tmp_path):
    changes = {"posterior__samples": 2, "posterior__validation_clips": 1, "controls": "", "max_clips": 1}
    stds = []
    for number, clips in enumerate((2, 0)):
        folder = run(given, tmp_path / str(number), prior__adapt_clips=clips, **changes)
        stds.append(runs.load_arrays(folder / "reconstructions" / "mouse1" / f"{ORACLE[0]}.npz")["movie_std"])
    assert np.isfinite(stds[0]).all() and stds[0].min() > 0 and np.abs(stds[0] / stds[1] - 1).max() > 5e-4


def test_too_few_validation_trials_are_told(given, tmp_path, capsys):
    folder = run(given, tmp_path, training__validation_trials=1, controls="", max_clips=1)
    assert (
        "mouse1: one prior for all clips, since it takes 2 validation trials to adapt it to each, and there are 1"
        in (capsys.readouterr().out)
    )
    assert not (folder / "first").exists()


def test_nothing_is_made_for_movies_that_are_there(given, adapted, tmp_path):
    shutil.copytree(adapted, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "first")
    assert_same(run(given, tmp_path / "copy"), adapted)
    assert not (tmp_path / "copy" / "first").exists()


def test_first_reconstructions_have_a_whiter_prior(given, adapted, tmp_path):
    """Fast and fine detail, which the animal's prior holds back, is stronger in them; the second descent differs."""
    folder = run(given, tmp_path, prior__first_exponent=1.0, controls="")
    for path in (folder / "first" / "mouse1").iterdir():
        one, whiter = (runs.load_arrays(p)["movie"] for p in (path, adapted / "first" / "mouse1" / path.name))
        rough = [np.abs(np.diff(np.diff(m, axis=0), axis=2)).mean() / m.std() for m in (one, whiter)]
        assert rough[1] > 1.05 * rough[0]
    assert np.abs(movie(folder, ORACLE[0]) - movie(adapted, ORACLE[0])).max() > 1e-3


@pytest.mark.parametrize("wrong", [-0.1, 1.5])
def test_an_exponent_that_makes_no_sense(given, tmp_path, wrong):
    with pytest.raises(NeuroreconError, match=r"^--config\.prior\.first_exponent: expected 0 to 1, found"):
        run(given, tmp_path / "new", prior__first_exponent=wrong)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("changes", [{"prior__adapt_clips": 1}, {"prior__adapt_clips": -3}, {"prior__first_steps": 0}])
def test_faults_are_one_line(given, tmp_path, changes):
    with pytest.raises(NeuroreconError, match=r"^--config.prior: expected adapt_clips of 2 or more, or 0") as caught:
        run(given, tmp_path / "new", **changes)
    assert "\n" not in str(caught.value) and not (tmp_path / "new").exists()


def test_another_prior_in_the_same_folder_is_refused(given, adapted):
    with pytest.raises(NeuroreconError, match="prior"):
        run(given, adapted, prior__adapt_clips=0)
    assert json.loads((adapted / "config.json").read_text())["prior"]["adapt_clips"] == 2


def test_the_published_recipe_is_left_alone(given, tmp_path):
    folder = run(given, tmp_path, recipe="published", controls="", max_clips=1, default_recipe__likelihood="poisson")
    assert not (folder / "first").exists()


def test_the_quick_preset_is_adapted_too():
    from experiments.adapted import adapts, first_steps
    from experiments.configs.quick import get_config

    config = get_config()
    assert adapts(config) and first_steps(config) <= config.default_recipe.num_steps
