"""What may import what: imports point down the flow, and every package that is imported is declared."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the ground up. A layer imports from lower lines only, never from its own line or from a higher one.
LAYERS = [
    ["errors"],
    ["files", "hosts"],
    ["recordings", "stimuli", "evaluation"],
    ["simulation"],
    ["encoders"],
    ["training"],
    ["reconstruction", "decoders"],
    ["runs"],
    ["reporting"],
    ["experiments"],
]
HEIGHT = {layer: height for height, line in enumerate(LAYERS) for layer in line}

# Reconstruction has responses, behaviour and encoders; the true movie cannot reach it.
FORBIDDEN = {
    "reconstruction": {"recordings", "stimuli", "simulation", "training", "runs"},
    "decoders": {"recordings", "stimuli", "simulation"},  # trained on arrays that it is given
}
# Numbers come from arrays, and pages from numbers: neither knows how a movie was made.
ONLY = {"evaluation": {"errors", "files"}, "reporting": {"errors", "files", "evaluation"}}

ACCELERATED = {"jax", "jaxlib", "flax", "optax", "orbax"}
WITHOUT_ACCELERATION = ["errors", "files", "recordings", "stimuli", "simulation", "evaluation", "reporting"]
CONFIGURATION = {"absl", "ml_collections"}

MAX_LINES = 400
VAGUE = re.compile(r"(^|_)(utils?|misc|common|helpers?)(_|$)")

# Distributions that are needed and not imported: used through another, or commands.
USED_UNSEEN = {"array-record", "mypy", "pytest-xdist", "ruff"}


def modules(root: Path, *folders: str) -> Iterator[tuple[Path, str]]:
    """(file, dotted name) of each module under the folders; a package goes by the name of its folder."""
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            yield path, ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, name: str) -> Iterator[str]:
    """Dotted names that a file imports, wherever in it, `from a import b` as `a.b`, relative ones resolved."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                source = ".".join([*package[: len(package) - node.level + 1], *source.split(".")]).strip(".")
            yield from (f"{source}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))


def layer(name: str) -> str:
    """The layer of a dotted name: `experiments`, or what follows `neurorecon`; empty for all else."""
    first, _, rest = name.partition(".")
    if first == "neurorecon":
        return rest.partition(".")[0] or "neurorecon"
    return first if first in ("experiments", "tests", "benchmarks") else ""


def violations(root: Path) -> list[str]:
    """A line for each import that points up or sideways in the flow."""
    found = []
    for path, name in modules(root, "neurorecon", "experiments"):
        above = layer(name)
        for target in sorted(set(imported(path, name))):
            below = layer(target)
            if not below or below == above or target == "neurorecon.__version__":
                continue
            allowed = (
                HEIGHT.get(below, len(LAYERS)) < HEIGHT.get(above, -1)
                and below not in FORBIDDEN.get(above, set())
                and below in ONLY.get(above, {below})
            )
            if not allowed:
                found.append(f"{path.relative_to(root)}: {above} may not import {below} ({target})")
    return found


def third_party(root: Path, *folders: str) -> set[str]:
    """Names of the top-level packages that are neither ours nor Python's."""
    names = {target.partition(".")[0] for path, name in modules(root, *folders) for target in imported(path, name)}
    return names - sys.stdlib_module_names - {"neurorecon", "experiments", "tests", "benchmarks"}


def declared(requirements: list[str]) -> set[str]:
    """Normalised names of the distributions in a list of requirements."""
    return {normal(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in requirements}


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def distributions(packages: set[str]) -> set[str]:
    """Normalised names of the distributions that hold the packages."""
    owners = packages_distributions()
    return {normal(owner) for package in packages for owner in owners.get(package, [f"{package}: not installed"])}


def test_imports_point_down_the_flow() -> None:
    assert violations(ROOT) == []


def test_every_module_has_a_layer() -> None:
    unknown = {layer(name) for _, name in modules(ROOT, "neurorecon")} - set(HEIGHT) - {"neurorecon"}
    assert not unknown, f"give {sorted(unknown)} a place in LAYERS"


@pytest.mark.parametrize(
    "source, target",
    [
        ("neurorecon/reconstruction/loop.py", "from neurorecon.recordings import open_recording"),
        ("neurorecon/reconstruction/loop.py", "from neurorecon import recordings"),
        ("neurorecon/reconstruction/loop.py", "from .. import recordings"),
        ("neurorecon/reconstruction/loop.py", "from ..training.trainer import train"),
        ("neurorecon/reconstruction/__init__.py", "from ..runs import open_run"),
        ("neurorecon/reconstruction/loop.py", "def f():\n    import neurorecon.runs"),
        ("neurorecon/training/trainer.py", "from neurorecon.reconstruction import reconstruct"),
        ("neurorecon/evaluation/movie_metrics.py", "import importlib\nimportlib.import_module('neurorecon.encoders')"),
        ("neurorecon/recordings/sensorium.py", "import neurorecon.stimuli.natural as natural"),
        ("neurorecon/reporting/page.py", "from neurorecon.recordings import Trial"),
        ("neurorecon/runs.py", "from neurorecon.reporting import write_report"),
        ("neurorecon/encoders/canvas.py", "import experiments.train"),
        ("experiments/train.py", "from tests.shared_data import SHARED"),
        ("neurorecon/newcomer.py", "from neurorecon.errors import NeuroreconError"),
        ("neurorecon/__init__.py", "from neurorecon.encoders import load_published"),
    ],
)
def test_an_import_up_or_sideways_is_found(tmp_path: Path, source: str, target: str) -> None:
    path = tmp_path / source
    path.parent.mkdir(parents=True)
    path.write_text(target + "\n")
    assert len(violations(tmp_path)) == 1


def test_an_import_down_or_within_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "neurorecon/reconstruction/loop.py"
    path.parent.mkdir(parents=True)
    path.write_text("import jax\nfrom neurorecon.encoders.canvas import make_inputs\nfrom . import losses\n")
    assert violations(tmp_path) == []


@pytest.mark.parametrize("name", WITHOUT_ACCELERATION)
def test_layers_of_plain_numpy(name: str) -> None:
    inside = [name] if (ROOT / f"neurorecon/{name}").is_dir() else []
    assert inside or (ROOT / f"neurorecon/{name}.py").is_file()
    used = {
        target.partition(".")[0]
        for path, module in modules(ROOT, "neurorecon")
        if layer(module) == name
        for target in imported(path, module)
    }
    assert not used & ACCELERATED


def test_configuration_stops_at_the_experiments() -> None:
    assert not third_party(ROOT, "neurorecon") & CONFIGURATION


def test_modules_are_short_and_named_for_one_thing() -> None:
    for path, name in modules(ROOT, "neurorecon", "experiments"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MAX_LINES, f"{path.relative_to(ROOT)}: {lines} lines"
        assert not any(VAGUE.search(part) for part in name.split(".")), f"{name} says nothing of what it holds"


def test_dependencies_are_those_in_use() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    runtime, test = declared(project["dependencies"]), declared(project["optional-dependencies"]["test"])
    assert distributions(third_party(ROOT, "neurorecon", "experiments")) == runtime - USED_UNSEEN
    assert distributions(third_party(ROOT, "tests")) - runtime == test - USED_UNSEEN
