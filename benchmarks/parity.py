"""The published reconstruction script and ours, on the same random weights and trial: how far apart, and how long.

    git clone https://github.com/lRomul/sensorium; git clone https://github.com/Joel-Bauer/movie_reconstruction_code
    python -m venv parity; parity/bin/pip install -e . torch pytorch-argus
    parity/bin/python -m benchmarks.parity --sensorium sensorium --reconstruction movie_reconstruction_code

Runs the published script itself out of the checkout (scripts/reconstruct_videos_natural.py), in a temporary folder laid
out as it expects: weights made by the published model class and saved in its layout, a simulated recording under the
first animal's name, an alpha mask. Only its numbers of iterations are changed, its plots left out, and the movie taken
from it at every stored iteration. Ours reads the same files: the .pth, the tree, the mask. Exits with status 1 where a
stored movie differs by more than --tolerance. Times are of iterations that store nothing, without compilation.

--size paper is the published network with 7,863 neurons and 300 frames: for a GPU, where --tolerance wants raising to
what its matrix products leave of float32.
"""

import argparse
import ast
import contextlib
import importlib
import io
import itertools
import logging
import os
import runpy
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np

from neurorecon.encoders import load_published, predict_trial
from neurorecon.encoders.canvas import crop_from_canvas
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.published_movie_metrics import published_movie_correlation
from neurorecon.reconstruction import published_recipe, reconstruct
from neurorecon.recordings import Trial, open_recording, write_sensorium
from neurorecon.stimuli.natural import natural_movie

SCRIPT = "scripts/reconstruct_videos_natural.py"
EVALUATED_FROM = 32  # the script's own scores leave out 32 frames, the paper 30
NETWORK = {"in_channels": 5, "spatial_kernel": 3, "temporal_kernel": 5, "groups": 2, "softplus_beta": 0.07}
NETWORK |= {"drop_rate": 0.4, "drop_path_rate": 0.1}
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "network": {
            "core_features": (8, 8, 16, 24),
            "spatial_strides": (2, 1, 2, 1),
            "expansion_ratio": 3,
            "se_reduce_ratio": 4,
            "cortex_features": (32, 64),
        },
        "neurons": 25,
        "frames": 64,
    },
    "paper": {
        "network": {
            "core_features": (64,) * 4 + (128,) * 3 + (256,) * 2,
            "spatial_strides": (2, 1, 1, 1, 2, 1, 1, 2, 1),
            "expansion_ratio": 7,
            "se_reduce_ratio": 32,
            "cortex_features": (1024, 2048, 4096),
        },
        "neurons": 7863,
        "frames": 300,
    },
}


class Trajectory(NamedTuple):
    """A descent as it was watched.

    Attributes:
      movies: iteration -> (time, height, width) of the screen.
      seconds: of an iteration.
      responses: (time, neuron) predicted from the true movie, the mean over models.
      correlations: iteration -> movie correlation as the script has it.
    """

    movies: dict[int, np.ndarray]
    seconds: float
    responses: np.ndarray
    correlations: dict[int, float]


class Setting(NamedTuple):
    """What both are run on.

    Attributes:
      folder: laid out as the script expects.
      weights: paths of the models.
      tree: of the recording.
      trial: the first trial of fold 0.
      alpha: (64, 64).
    """

    folder: Path
    weights: list[Path]
    tree: Path
    trial: Trial
    alpha: np.ndarray


def importable(sensorium: Path, reconstruction: Path) -> None:
    """Makes the checkouts importable; what they import but don't need here is stood in for."""
    for folder, inside in ((sensorium, "src/models/dwiseneuro.py"), (reconstruction, SCRIPT)):
        if not (folder / inside).is_file():
            raise NeuroreconError(f"{folder}: expected a checkout with {inside}, found none")
    sys.path[:0] = [str(sensorium.resolve()), str(reconstruction.resolve())]
    plots = mock.MagicMock()
    plots.subplots.return_value = (mock.MagicMock(), mock.MagicMock())
    sys.modules["matplotlib"] = sys.modules["matplotlib.pyplot"] = plots
    plots.pyplot = plots
    for name in ("cv2", "torchvision.transforms.functional", "scipy.ndimage.filters"):
        try:
            importlib.import_module(name)
        except ImportError:
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                sys.modules.setdefault(".".join(parts[:end]), mock.MagicMock())
    for name in ("torch", "argus"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise NeuroreconError(f"{name}: can't be imported ({error}); install torch and pytorch-argus") from None


def prepare(folder: Path, reconstruction: Path, size: dict[str, Any], num_models: int, frames: int) -> Setting:
    """Writes weights, a recording and a mask where the script looks for them."""
    constants: Any = importlib.import_module("src.constants")
    constants.num_neurons = [size["neurons"]]
    constants.sensorium_dir = folder / "data" / "sensorium_all_2023"
    paths = model_paths((reconstruction / SCRIPT).read_text())
    if num_models > len(paths):
        raise NeuroreconError(f"--models: expected at most {len(paths)}, as the script has, found {num_models}")
    weights = [folder / path for path in paths[:num_models]]
    for seed, path in enumerate(weights):
        path.parent.mkdir(parents=True)
        save_random_model(path, size, seed)
    name = constants.index2mouse[0]
    tree = constants.sensorium_dir / name
    trial = random_trial(name, fold_0_movie(frames), size["neurons"])
    write_sensorium(tree, [trial])
    alpha = np.zeros((64, 64), np.float32)
    alpha[20:44, 12:52], alpha[26:38, 20:44] = 0.7, 1.1
    (folder / "reconstructions/masks").mkdir(parents=True)
    np.save(folder / "reconstructions/masks/mask_m0.npy", alpha)
    return Setting(folder, weights, tree, open_recording(tree).trial("0"), alpha)


def model_paths(source: str) -> list[str]:
    """Where the script looks for its models, in its order."""
    found: dict[int, str] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("model_path["):
            (subscript,) = node.targets
            assert isinstance(subscript, ast.Subscript) and isinstance(node.value, ast.Call)
            found[ast.literal_eval(subscript.slice)] = ast.literal_eval(node.value.args[0])
    return [found[number] for number in sorted(found)]


def save_random_model(path: Path, size: dict[str, Any], seed: int) -> None:
    """A model of the published class with random weights and statistics, saved by its own method."""
    torch: Any = importlib.import_module("torch")
    models = importlib.import_module("src.argus_models")
    torch.manual_seed(seed)
    params = {
        "nn_module": ("dwiseneuro", {"readout_outputs": (size["neurons"],), **NETWORK, **size["network"]}),
        "loss": ("mice_poisson", {"log_input": False, "full": False, "eps": 1e-8}),
        "optimizer": ("AdamW", {"lr": 1e-3, "weight_decay": 0.05}),
        "device": "cpu",
        "frame_stack": {"size": 16, "step": 2, "position": "last"},
        "inputs_processor": ("stack_inputs", {"size": (64, 64), "pad_fill_value": 0.0}),
        "responses_processor": ("identity", {}),
    }
    model = models.MouseModel(params)
    importlib.import_module("src.utils").init_weights(model.nn_module)
    first = model.nn_module.core.stem[1].bn
    with torch.no_grad():
        for module in model.nn_module.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.8, 1.2)
                module.bias.normal_(0, 0.2)
        first.running_var.mul_(60.0**2)  # grey values go in as they are
    model.save(path)


def fold_0_movie(frames: int) -> np.ndarray:
    """The first movie of fold 0, the one that the script reconstructs: (time, height, width)."""
    from neurorecon.training.folds import fold  # needs ImageHash, which not every machine to be measured has

    seed = 0
    while fold(movie := natural_movie(seed, num_frames=frames)) != 0:
        seed += 1
    return movie


def random_trial(animal: str, movie: np.ndarray, neurons: int) -> Trial:
    """Random responses and behaviour to a movie (time, height, width)."""
    frames = len(movie)
    rng = np.random.default_rng(0)
    behaviour = np.abs(rng.normal((30.0, 5.0, 300.0, 200.0), (5.0, 5.0, 20.0, 20.0), (frames, 4)))
    responses = rng.gamma(0.5, 6.0, (frames, neurons))
    return Trial("0", animal, "oracle", movie, responses.astype(np.float32), behaviour.astype(np.float32))


def published(setting: Setting, reconstruction: Path, num_updates: int, every: int) -> Trajectory:
    """Runs the published script on all models of the setting, gradients ensembled where they are several."""
    movies: list[np.ndarray] = []
    starts: list[float] = []

    class Clock:
        """In place of the script's progress bar."""

        def __init__(self, steps: Any) -> None:
            self.steps = steps

        def __iter__(self) -> Iterator[int]:
            for step in self.steps:
                starts.append(time.perf_counter())
                yield step

        def set_postfix(self, **values: Any) -> None: ...

        def update(self) -> None: ...

    functions = importlib.import_module("utils_reconstruction.utils_reconstruction")

    def stored(truth: np.ndarray, movie: np.ndarray, path: str, mask: Any = None) -> np.ndarray:
        movies.append(np.array(movie))
        return np.zeros((1, 1, 1))

    source = (reconstruction / SCRIPT).read_text()
    changed = setting.folder / "published.py"
    changed.write_text(with_numbers(source, {"epoch_number_first": num_updates + 1, "track_itter": every}))
    models = [str(k) for k in range(len(setting.weights))]
    arguments = ["--model_list", *models, "--animals", "0", "--start_trial", "0", "--end_trial", "1"]
    with (
        contextlib.chdir(setting.folder),
        contextlib.redirect_stdout(io.StringIO()),
        mock.patch.object(sys, "argv", [str(changed), *arguments]),
        mock.patch("tqdm.tqdm", Clock),
        mock.patch.object(functions, "save_tif", stored),
    ):
        result = runpy.run_path(str(changed))["recon_dict"]
    iterations = [int(i) for i in result["video_itter"]]
    # The first iteration warms up; those that store also predict, score and save.
    plain = [b - a for i, (a, b) in enumerate(itertools.pairwise(starts)) if i > 0 and i not in iterations]
    return Trajectory(
        dict(zip(iterations, movies, strict=True)),
        statistics.median(plain),
        result["responses_predicted_gt"].mean(2).T,
        dict(zip(iterations, result["video_corr"])),
    )


def with_numbers(source: str, numbers: dict[str, int]) -> str:
    """The script with some of its parameters changed."""
    tree = ast.parse(source)
    left = dict(numbers)
    for node in tree.body:
        name = ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else ""
        if name in left:
            node.value = ast.copy_location(ast.Constant(left.pop(name)), node.value)  # type: ignore[attr-defined]
    if left:
        raise NeuroreconError(f"{SCRIPT}: expected it to set {', '.join(left)}; this benchmark knows another version")
    return ast.unparse(tree)


def ours(setting: Setting, num_updates: int, every: int, window_chunk: int | None) -> Trajectory:
    """The published recipe of this project, from the same files."""
    encoders = [load_published(path) for path in setting.weights]
    trial = setting.trial
    screen = trial.stimulus.shape[1:]
    mask = crop_from_canvas(setting.alpha, screen) >= 1
    movies = {0: np.full(trial.stimulus.shape, 127.5, np.float32)}
    ends: list[float] = []

    def on_call(progress: Any) -> None:
        (state,) = progress.states
        movies[progress.step] = crop_from_canvas(np.asarray(state.latent)[0, 0], screen)
        ends.append(time.perf_counter())

    reconstruct(
        encoders,
        trial.responses,
        trial.behaviour,
        recipe=published_recipe(ensemble="gradients", smoothing=0.0),
        update_mask=setting.alpha >= 0.5,
        key=jax.random.key(0),
        num_steps=num_updates,
        steps_per_call=every,
        window_chunk=window_chunk,
        on_call=on_call,
    )
    plain = [(b - a) / every for a, b in itertools.pairwise(ends)]  # the first call compiles
    predicted = [predict_trial(*encoder, trial.stimulus, trial.behaviour) for encoder in encoders]
    late = slice(EVALUATED_FROM, None)
    correlations = {k: published_movie_correlation(trial.stimulus[late], m[late], mask) for k, m in movies.items()}
    return Trajectory(movies, statistics.median(plain), np.mean(predicted, 0), correlations)


def compare(theirs: Trajectory, own: Trajectory, name: str) -> float:
    """Prints distances and times; the largest distance between stored movies, grey levels."""
    print(f"\n{name}")
    print(f"{'iteration':>10}{'largest, grey levels':>22}{'L2 of the change':>18}{'correlation':>14}{'ours':>12}")
    worst = 0.0
    for iteration, movie in theirs.movies.items():
        difference = own.movies[iteration].astype(float) - movie
        largest, change = np.abs(difference).max(), np.linalg.norm(movie.astype(float) - 127.5)
        relative = np.linalg.norm(difference) / change if change else 0.0
        worst = max(worst, float(largest))
        scores = f"{theirs.correlations[iteration]:>14.6f}{own.correlations[iteration]:>12.6f}"
        print(f"{iteration:>10}{largest:>22.2e}{relative:>18.2e}{scores}")
    scale = np.abs(theirs.responses).max()
    print(f"predicted responses: largest distance / scale {np.abs(own.responses - theirs.responses).max() / scale:.2e}")
    print(
        f"seconds an iteration: published {theirs.seconds:.4f}, ours {own.seconds:.4f}, "
        f"published / ours {theirs.seconds / own.seconds:.2f}"
    )
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sensorium", type=Path, required=True, help="checkout of lRomul/sensorium")
    parser.add_argument("--reconstruction", type=Path, required=True, help="checkout of movie_reconstruction_code")
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--models", type=int, default=2, help="of the gradient ensemble (default 2)")
    parser.add_argument("--updates", type=int, default=20, help="multiple of --every (default 20)")
    parser.add_argument("--every", type=int, default=5, help="iterations between stored movies (default 5)")
    parser.add_argument("--frames", type=int, help="of the trial, 48 or more (default: the size's)")
    parser.add_argument("--window_chunk", type=int, help="ours: windows at once, to bound memory")
    parser.add_argument("--tolerance", type=float, default=0.05, help="grey levels (default 0.05)")
    options = parser.parse_args()
    logging.disable(logging.INFO)  # the published code's
    warnings.simplefilter("ignore")  # that its PyTorch was older, and of constant movies
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves a GPU's memory to both
    try:
        if options.every < 2 or options.updates < 2 * options.every or options.updates % options.every:
            raise NeuroreconError("--updates, --every: expected a multiple, at least twice, of two or more")
        importable(options.sensorium, options.reconstruction)
        size = SIZES[options.size]
        torch: Any = importlib.import_module("torch")
        devices = f"torch {torch.__version__}, {'GPU' if torch.cuda.is_available() else 'CPU'}"
        print(f"{devices}; jax {jax.__version__}, {jax.devices()[0].device_kind}; {os.cpu_count()} cores")
        worst = 0.0
        for count in sorted({1, options.models}):
            with tempfile.TemporaryDirectory() as folder:
                frames = options.frames or size["frames"]
                setting = prepare(Path(folder), options.reconstruction, size, count, frames)
                name = "one model" if count == 1 else f"gradients of {count} models"
                theirs = published(setting, options.reconstruction.resolve(), options.updates, options.every)
                own = ours(setting, options.updates, options.every, options.window_chunk)
                worst = max(worst, compare(theirs, own, f"{options.size}, {frames} frames, {name}"))
    except NeuroreconError as error:
        raise SystemExit(f"error: {error}") from None
    if worst > options.tolerance:
        raise SystemExit(f"error: movies differ by {worst:.3g} grey levels, more than {options.tolerance}")


if __name__ == "__main__":
    main()
