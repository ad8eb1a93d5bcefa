"""A run with posterior samples: `movie_std` beside every reconstruction, its size set by validation clips."""

from pathlib import Path

import numpy as np
import pytest

from experiments.reconstruct import reconstruct_recordings
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation import fit_spread_scale, interval_coverage
from neurorecon.files import read_json
from neurorecon.recordings import open_recording
from neurorecon.runs import load_arrays
from tests.tiny_run import ORACLE, files_and_times, movie, random_encoders, simulated, tiny_config


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("given")
    return simulated(folder), random_encoders(folder / "trained", num_models=1)


def run(given: tuple[Path, Path], workdir: Path, **changes) -> Path:
    tree, trained = given
    config = tiny_config(
        recordings=str(tree),
        encoders=str(trained),
        calibration_clips=0,
        controls="",
        max_clips=1,
        mask__kind="none",
        **changes,
    )
    reconstruct_recordings(config, str(workdir), films=False)
    return workdir


def test_movie_std_stands_beside_the_movie_which_it_leaves_alone(given, tmp_path):
    plain = run(given, tmp_path / "plain")
    changes = {"posterior__samples": 2, "posterior__validation_clips": 2}
    sampled = run(given, tmp_path / "sampled", **changes)
    recording = open_recording(given[0])
    validation = sorted((sampled / "validation" / "mouse1").glob("*.npz"))
    assert len(validation) == 2 and not (plain / "validation").exists()
    stored = [load_arrays(sampled / "reconstructions" / "mouse1" / f"{trial}.npz") for trial in ORACLE[:1]]
    for trial, arrays in zip(ORACLE[:1], stored):
        np.testing.assert_array_equal(arrays["movie"], movie(plain, trial))
        assert arrays["movie_std"].shape == arrays["movie"].shape and arrays["movie_std"].dtype == np.float32
        assert np.isfinite(arrays["movie_std"]).all() and arrays["movie_std"].std() > 0
        without = load_arrays(plain / "reconstructions" / "mouse1" / f"{trial}.npz")
        assert "movie_std" not in without
        assert arrays["encoder_windows"] == pytest.approx(3 * without["encoder_windows"])
    clips = [load_arrays(path) for path in validation]
    truths = [recording.trial(path.stem).stimulus[10:] for path in validation]
    expected = fit_spread_scale(
        truths, [c["movie"][10:] for c in clips], [c["movie_std"][10:] for c in clips], stored[0]["mask"]
    )
    assert float(stored[0]["spread_scale"]) == pytest.approx(expected)
    (shown,) = [recording.trial(trial).stimulus[10:] for trial in ORACLE[:1]]
    (row,) = read_json(sampled / "metrics.json")["clips"]
    covered = interval_coverage(shown, stored[0]["movie"][10:], stored[0]["movie_std"][10:], stored[0]["mask"])
    assert (row["coverage_50"], row["coverage_90"]) == (pytest.approx(covered[0.5]), pytest.approx(covered[0.9]))
    assert 0 < row["coverage_50"] < row["coverage_90"]
    assert "coverage_90" not in read_json(plain / "metrics.json")["summary"]
    before = files_and_times(sampled / "reconstructions", sampled / "validation")
    run(given, sampled, **changes)
    assert files_and_times(sampled / "reconstructions", sampled / "validation") == before


@pytest.mark.parametrize(
    "changes",
    [
        {"posterior__samples": 3},
        {"posterior__validation_clips": -1},
        {"posterior__samples": 2, "recipe": "published"},
        {"posterior__samples": 2, "calibration_clips": 1},
    ],
)
def test_faults_are_one_line_and_leave_no_folder(given, tmp_path, changes):
    config = tiny_config(
        recordings=str(given[0]), encoders=str(given[1]), controls="", **{"calibration_clips": 0} | changes
    )
    with pytest.raises(NeuroreconError) as error:
        reconstruct_recordings(config, str(tmp_path / "run"), films=False)
    assert "--config.posterior" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
