"""Maps of deviation beside a finished reconstruction: what is written, and that a run that is killed goes on."""

import shutil

import numpy as np
import pytest

import experiments.deviation
from experiments import deviation_maps
from experiments.deviation import asked, deviation
from experiments.reconstruct import reconstruct_recordings
from neurorecon import runs
from neurorecon.errors import NeuroreconError
from neurorecon.files import read_json
from tests.tiny_run import ORACLE, SHAPE, random_encoders, simulated, tiny_config

CHANGES = {
    "calibration_clips": 0,
    "controls": "",
    "prior__spectrum": "flat",
    "num_steps": 2,
    "training__validation_trials": 4,
    "deviation__samples": 2,
    "deviation__window_seconds": 0.3,
    "deviation__window_pixels": 2.0,
    "deviation__detail_pixels": 3.0,
}


class Killed(BaseException):
    """Stands in for the signal: nothing in the library may catch it."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deviation")
    tree = simulated(folder / "animal")
    encoders = random_encoders(folder / "encoders")
    config = tiny_config(recordings=str(tree), encoders=str(encoders), **CHANGES)
    reconstruct_recordings(config, str(folder / "run"))
    return config, folder / "run"


def outcome(folder):
    arrays = [runs.load_arrays(folder / "reconstructions" / "mouse1" / f"{trial}.npz") for trial in ORACLE]
    return arrays, read_json(folder / "deviation.json")["clips"]


@pytest.mark.parametrize("statistic", ["score", "reconstruction"])
def test_maps_and_a_killed_run_goes_on(made, tmp_path, monkeypatch, statistic):
    config, run = made
    config = config.copy_and_resolve_references()
    config.deviation.statistic = statistic
    whole, cut = (shutil.copytree(run, tmp_path / name) for name in ("whole", "cut"))
    deviation(config, str(whole))
    arrays, rows = outcome(whole)
    for stored in arrays:
        assert stored["deviation"].shape == stored["movie"].shape == (60, *SHAPE)
        assert np.isnan(stored["deviation"][:10]).all() and np.isfinite(stored["deviation"][10:]).any()
        assert stored["deviation_found"].dtype == bool
    assert [row["trial"] for row in rows] == list(ORACLE) and all(row["tested"] for row in rows)

    saves = [0]
    for owner, last in ((deviation_maps, 7), (experiments.deviation, 1)):  # among validation clips, between clips
        with monkeypatch.context() as patch:
            saves[0], original = 0, owner.save_npz

            def save(*args, original=original, last=last, **kwargs):
                original(*args, **kwargs)
                saves[0] += 1
                if saves[0] == last:
                    raise Killed

            patch.setattr(owner, "save_npz", save)
            with pytest.raises(Killed):
                deviation(config, str(cut))
        assert not (cut / "deviation.json").exists()
    deviation(config, str(cut))
    again, rows_again = outcome(cut)
    assert rows_again == rows
    for a, b in zip(arrays, again):
        for name in ("deviation", "deviation_found", "deviation_detectable"):
            np.testing.assert_array_equal(a[name], b[name])


def test_scores_of_other_settings_are_made_anew(made, tmp_path):
    config, run = made
    config, folder = config.copy_and_resolve_references(), shutil.copytree(run, tmp_path / "run")
    first = deviation(config, str(folder))
    config.deviation.shared_gain_seconds = 0.0
    assert deviation(config, str(folder))["clips"] != first["clips"]


@pytest.mark.parametrize(
    "key, value", [("statistic", "other"), ("samples", 0), ("rate", 1.0), ("shared_gain_seconds", -1.0)]
)
def test_faulty_settings_are_one_line(made, key, value):
    config, run = made
    config = config.copy_and_resolve_references()
    config.deviation[key] = value
    with pytest.raises(NeuroreconError, match=r"--config\.deviation") as error:
        asked(config, str(run))
    assert "\n" not in str(error.value)


def test_a_null_needs_three_clips(made, tmp_path):
    config, run = made
    config = config.copy_and_resolve_references()
    config.deviation.validation_clips = 2
    with pytest.raises(NeuroreconError, match="validation_clips: expected 3 or more"):
        deviation(config, str(shutil.copytree(run, tmp_path / "run")))
