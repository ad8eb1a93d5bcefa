"""The command line: one line on stderr and a status other than 0 for every slip, and no traceback."""

import subprocess
import sys
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from experiments import cli
from experiments.configs.base import get_config
from neurorecon.errors import NeuroreconError
from neurorecon.recordings import write_sensorium
from tests.recording_examples import make_trials, one_line

ROOT = Path(__file__).resolve().parents[1]
JOBS = ("simulate", "import_arrays", "train", "reconstruct", "evaluate", "report", "import_weights", "demo")


def start(*arguments):
    """The command, started: several run at once."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def refused(process, *words):
    out, err = process.communicate(timeout=240)
    assert process.returncode not in (0, None), out + err
    lines = err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    assert "Traceback" not in err + out
    for word in words:
        assert word in err, f"{word!r} not in {err!r}"


def test_help_of_every_command():
    running = {job: start(f"experiments.{job}", "--help") for job in JOBS}
    for job, process in running.items():
        out, err = process.communicate(timeout=240)
        assert "Traceback" not in err, job
        assert f"python -m experiments.{job}" in out or job == "demo", job
        assert "workdir" in out or job == "import_arrays", job


def test_slips_on_the_command_line(tmp_path):
    (tmp_path / "file").write_text("x")
    broken, other, raising = (tmp_path / f"{name}.py" for name in ("broken", "other", "raising"))
    broken.write_text("def get_config(:\n")
    other.write_text("x = 1\n")
    raising.write_text("import numpy as np\n\ndef get_config():\n    return undefined_name\n")
    not_config = tmp_path / "not_config.py"
    not_config.write_text("def get_config():\n    return {'seed': 1}\n")
    write_sensorium(tmp_path / "mouse", make_trials())
    run, mouse = tmp_path / "run", f"--config.recordings={tmp_path / 'mouse'}"
    work = f"--workdir={run}"
    cases = {
        "train": [
            ([work], ["--config.recordings", "found none"]),
            ([work, "--config.recordings=/absent"], ["/absent", "expected the folder of a recording"]),
            ([work, mouse, "--config.training.num_step=3"], ["num_step", "'num_steps'"]),
            ([work, mouse, "--config.num_modles=3"], ["'num_models'"]),
            ([work, mouse, "--config.num_models=many"], ["num_models"]),
            ([work, "--config=/absent/config.py"], ["/absent/config.py"]),
            ([work, f"--config={broken}"], ["--config", "broken.py"]),
            ([work, f"--config={other}"], ["get_config"]),
            ([work, f"--config={raising}"], ["undefined_name"]),
            ([work, f"--config={not_config}"], ["get_config"]),
            ([work, mouse, "--wrkdir=x"], ["wrkdir"]),
            ([work, mouse, "stray"], ["stray"]),
            ([mouse], ["workdir"]),
            ([f"--workdir={tmp_path / 'file'}", mouse, "--config.training.validation_trials=1"], ["found a file"]),
        ],
        "reconstruct": [
            ([work, mouse, "--config.tier=oracel"], ["'oracle'"]),
            ([work, mouse, "--config.trials=99"], ["99"]),
        ],
        "evaluate": [([work], ["config.json"]), ([work, "--config.seed=1"], ["config"])],
        "report": [([f"--workdir={tmp_path / 'absent'}"], ["config.json"])],
    }
    for job, of_job in cases.items():
        for first in range(0, len(of_job), 3):
            several = of_job[first : first + 3]
            running = [start(f"experiments.{job}", *arguments) for arguments, _ in several]
            for process, (_, words) in zip(running, several):
                refused(process, *words)
    assert not run.exists()  # nothing half-written


# In this process.


def test_config_takes_the_defaults_of_base():
    short = ml_collections.ConfigDict({"seed": 3, "training": {"num_steps": 7}})
    full = cli.checked(short)
    assert full.seed == 3 and full.training.num_steps == 7
    assert full.training.batch_size == get_config().training.batch_size
    assert full.to_dict().keys() == get_config().to_dict().keys()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"sede": 1}, ["sede", "'seed'"]),
        ({"training": {"num_setps": 1}}, ["training.num_setps", "'num_steps'"]),
        ({"training": 3}, ["training", "keys of its own"]),
        ({"seed": "zero"}, ["seed", "int", "'zero'"]),
        ({"num_steps": 2.5}, ["num_steps", "int"]),
    ],
)
def test_wrong_config_is_one_line(changes, words):
    with pytest.raises(NeuroreconError) as error:
        cli.checked(ml_collections.ConfigDict(changes))
    one_line(error, *words)


@pytest.mark.parametrize("value", [None, {"seed": 1}, 3])
def test_no_config_at_all_is_one_line(value):
    with pytest.raises(NeuroreconError) as error:
        cli.checked(value)
    one_line(error, "get_config")


def test_lists_become_what_the_command_line_gives():
    full = cli.checked(ml_collections.ConfigDict({"recordings": ["a", "b"], "factorized": {"features": [4, 5]}}))
    assert full.recordings == "a,b" and cli.listed(full.recordings) == ["a", "b"]
    assert tuple(full.factorized.features) == (4, 5)
    assert cli.listed(" a, b,, ") == ["a", "b"] and cli.listed("") == []


def test_every_config_is_a_config():
    import importlib

    for path in (ROOT / "experiments" / "configs").glob("*.py"):
        if path.stem != "__init__":
            full = cli.checked(importlib.import_module(f"experiments.configs.{path.stem}").get_config())
            assert np.isfinite(full.training.learning_rate)


def test_no_key_hides_behind_a_method_of_configdict():
    """`config.update` is the method, whatever the config says: such a switch would always be on."""

    def names(config):
        for key, value in config.items():
            yield key
            if isinstance(value, ml_collections.ConfigDict):
                yield from names(value)

    assert not set(names(get_config())) & set(dir(ml_collections.ConfigDict))
