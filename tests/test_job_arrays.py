"""Jobs that share the movies of one work folder, and the run that scores them."""

import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import experiments.reconstruct
from experiments import cli
from experiments.job_arrays import Job, first_alone, job_of, told
from experiments.reconstruct import KEYS, main, reconstruct_recordings
from neurorecon import runs
from neurorecon.errors import NeuroreconError
from neurorecon.files import save_npz
from tests.tiny_run import ORACLE, files_and_times, random_encoders, simulated, tiny_config

QUICK = {"calibration_clips": 1, "controls": "grey,shuffled_neurons,linear_decoder", "prior__spectrum": "flat"}
QUICK |= {"default_recipe__likelihood": "poisson", "checkpoint_seconds": 0.0}


class Killed(BaseException):
    """Stands in for the signal: nothing in the library may catch it."""


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    monkeypatch.setattr(experiments.reconstruct, "report", lambda workdir: None)  # films take the most time of all


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    return simulated(folder), random_encoders(folder / "trained")


def config_of(given, **changes):
    return tiny_config(recordings=str(given[0]), encoders=str(given[1]), **QUICK | changes)


@pytest.fixture(scope="module")
def single(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    return SimpleNamespace(folder=folder, metrics=reconstruct_recordings(config_of(given), str(folder), films=False))


def scores(metrics):
    timed = ("seconds", "cost", "config", "versions")
    clips = [{k: v for k, v in clip.items() if k not in timed} for clip in metrics["clips"]]
    return {k: v for k, v in metrics.items() if k not in timed} | {"clips": clips}


def movies(folder):
    return sorted(
        str(p.relative_to(folder)) for part in ("reconstructions", "controls") for p in (folder / part).rglob("*.npz")
    )


def test_two_jobs_and_a_last_run_are_one_run(given, single, tmp_path, capsys):
    main(config_of(given, job="1/2"), str(tmp_path))
    first = movies(tmp_path)
    assert first == [f"{kind}/mouse1/{ORACLE[0]}.npz" for kind in ("controls/shuffled_neurons", "reconstructions")]
    assert "2 of 4 movies are there; when the other jobs are done, the same command without" in capsys.readouterr().out
    times = files_and_times(tmp_path / "reconstructions", tmp_path / "masks", tmp_path / "validation")
    main(config_of(given, job="2/2"), str(tmp_path))
    assert "4 of 4 movies are there; the same command without --config.job scores them" in capsys.readouterr().out
    assert not (tmp_path / "metrics.json").exists() and not list((tmp_path / "progress").glob("*"))
    again = files_and_times(tmp_path / "reconstructions", tmp_path / "masks", tmp_path / "validation")
    assert {path: again[path] for path in times} == times and len(again) == len(times) + 1
    for number, trial in enumerate(ORACLE, 1):
        log = runs.read_metrics(tmp_path / f"reconstruction-{number}-of-2.jsonl")
        assert [r["trial"] for r in log if r["kind"] != "validation"] == [trial, trial]
    times = files_and_times(tmp_path / "reconstructions", tmp_path / "masks", tmp_path / "validation")
    main(config_of(given), str(tmp_path))
    assert files_and_times(tmp_path / "reconstructions", tmp_path / "masks", tmp_path / "validation") == times
    assert scores(runs.read_json(tmp_path / "metrics.json")) == scores(runs.read_json(single.folder / "metrics.json"))
    assert movies(tmp_path) == movies(single.folder)


def test_a_job_that_was_killed_goes_on_and_the_last_run_makes_what_is_missing(given, single, tmp_path, monkeypatch):
    changes = {"calibration_clips": 0, "controls": "grey"}
    original = runs.save_arrays

    def last(*args):
        original(*args)
        raise Killed

    def begun(job):
        with monkeypatch.context() as patch:
            patch.setattr(runs, "save_arrays", last)
            with pytest.raises(Killed):
                main(config_of(given, job=job, **changes), str(tmp_path))

    begun("1/2")
    begun("2/2")
    assert sorted(str(p.relative_to(tmp_path / "progress")) for p in (tmp_path / "progress").rglob("*.npz")) == [
        f"{k}-of-2/reconstruction-mouse1-{trial}.npz" for k, trial in enumerate(ORACLE, 1)
    ]
    main(config_of(given, job="1/2", **changes), str(tmp_path))
    assert [p.name for p in (tmp_path / "progress").glob("*")] == ["2-of-2"]
    reconstruct_recordings(config_of(given, **changes), str(tmp_path), films=False)
    assert not list((tmp_path / "progress").glob("*"))
    plain = runs.load_arrays(single.folder / "validation" / "mouse1" / "1.npz")
    assert plain["movie"].shape == runs.load_arrays(tmp_path / f"reconstructions/mouse1/{ORACLE[1]}.npz")["movie"].shape
    assert len(movies(tmp_path)) == 2


def test_every_movie_is_one_jobs():
    descents = [SimpleNamespace(kind=kind, trial_id=k) for kind in ("validation", "reconstruction") for k in range(7)]
    for total in (1, 2, 3, 9):
        shares = [Job(number, total).share(descents) for number in range(1, total + 1)]
        assert all(share[:7] == descents[:7] for share in shares)
        made = [d.trial_id for share in shares for d in share[7:]]
        assert sorted(made) == list(range(7))
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1


def test_what_is_there_is_told(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    descents = [SimpleNamespace(kind="reconstruction", path=path) for path in paths]
    paths[1].touch()
    assert told(descents).startswith("1 of 3 movies are there; when the other jobs are done, the same command")


@pytest.mark.parametrize("job", ["0/2", "3/2", "1/0", "2", "a/b", "1/2/3", "-1/2", " 1/2"])
def test_bad_values_are_one_line(given, tmp_path, job):
    with pytest.raises(NeuroreconError, match=r"--config\.job: expected K/N") as error:
        main(config_of(given, job=job), str(tmp_path / "run"))
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
    assert job_of(config_of(given)) is None


def test_jobs_need_trained_encoders_and_no_study_takes_them(given, tmp_path):
    config = config_of(given, job="1/2")
    config.encoders = ""
    with pytest.raises(NeuroreconError, match="expected trained encoders"):
        main(config, str(tmp_path / "run"))
    with pytest.raises(NeuroreconError, match=r"--config\.job: expected '' here"):
        reconstruct_recordings(config_of(given, job="1/2"), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_jobs_claim_a_folder_at_the_same_time(given, tmp_path):
    total, failed = 8, []
    together = threading.Barrier(total)

    def claim(number):
        config = config_of(given, job=f"{number}/{total}")
        together.wait()
        try:
            cli.claim(tmp_path, config, "reconstruct", KEYS)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=claim, args=(k + 1,)) for k in range(total)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    begun = runs.read_json(tmp_path / "jobs.json")["reconstruct"]
    assert begun["recordings"] == str(given[0]) and "job" not in begun
    with pytest.raises(NeuroreconError, match="begun with seed = 0, now 1"):
        cli.claim(tmp_path, config_of(given, job="1/8", seed=1), "reconstruct", KEYS)


def test_one_job_prepares_for_all(given, tmp_path):
    """The others wait, and find it done; what is there already holds up nobody."""
    config, animals = config_of(given), ["mouse1", "mouse2"]
    inside, prepared, most = [], [], []
    together = threading.Barrier(4)

    def prepare():
        together.wait()
        with first_alone(config, tmp_path, animals):
            inside.append(1)
            missing = [name for name in animals if not (tmp_path / "masks" / f"{name}.npz").is_file()]
            for name in missing:
                most.append(len(inside))
                save_npz(tmp_path / "masks" / f"{name}.npz", alpha=np.ones(3))
                prepared.append(name)
            inside.pop()

    threads = [threading.Thread(target=prepare) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(prepared) == animals and most == [1, 1]
    (tmp_path / "masks" / ".lock").unlink()
    with first_alone(config, tmp_path, animals):
        assert not (tmp_path / "masks" / ".lock").exists()


def test_without_locks_it_is_said(given, tmp_path, monkeypatch):
    def unsupported(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("experiments.job_arrays.fcntl.flock", unsupported)
    with pytest.raises(NeuroreconError, match="could not be locked"), first_alone(config_of(given), tmp_path, ["a"]):
        raise AssertionError("went in")
    assert Path(tmp_path / "masks").is_dir()
