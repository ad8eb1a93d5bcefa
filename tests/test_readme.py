"""The example of the README runs as it is written."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_run import NUM_FRAMES, ORACLE, SHAPE, random_encoders, simulated

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    simulated(folder)
    return random_encoders(folder)


def test_python_example_runs_as_written(demo, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    here = code.replace("runs/demo", str(demo))
    assert here != code
    here, trials = re.subn(r'\.trial\("\d+"\)', f'.trial("{ORACLE[0]}")', here)
    assert trials == 1
    names: dict = {}
    exec(compile(here, "README.md", "exec"), names)
    result = names["result"]
    assert result.movie.shape == (NUM_FRAMES, *SHAPE) and np.isfinite(result.movie).all() and result.movie.std() > 0
    # The example's own loss and prior took part, and what they ask for happened.
    assert {"poisson", "robust", "edges", "loss"} <= result.trace.keys()
    assert result.trace["robust"][-1] < result.trace["robust"][0]
    assert str(result.movie.shape) in capsys.readouterr().out


def test_the_trial_of_the_example_is_an_unseen_one():
    from experiments.configs.demo import get_config

    (trial_id,) = re.findall(r'\.trial\("(\d+)"\)', README)
    simulation = get_config().simulation
    assert simulation.train <= int(trial_id) < simulation.train + simulation.oracle


def test_commands_and_files_of_the_readme_exist():
    root = Path(__file__).resolve().parents[1]
    for module in set(re.findall(r"python -m (experiments\.\w+)", README)):
        assert (root / f"{module.replace('.', '/')}.py").is_file(), module
    for name in set(re.findall(r"experiments/configs/\w+\.py|neurorecon/\w+", README)):
        assert (root / name).exists(), name
    makefile = (root / "Makefile").read_text()
    for target in set(re.findall(r"^    make (\w+)", README, flags=re.MULTILINE)):
        assert re.search(rf"^{target}( \w+)*:", makefile, flags=re.MULTILINE), target
