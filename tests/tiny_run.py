"""A run small enough for tests: a config, a simulated animal, and encoders with random weights for it."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.configs.base import get_config
from experiments.simulate import simulate
from neurorecon.encoders import Factorized, load_encoder, save_encoder
from neurorecon.files import save_json

ORACLE = ("6", "7")
SHAPE = (12, 16)
NUM_NEURONS, NUM_FRAMES = 12, 60
SIZES = {
    "num_models": 2,
    "simulation.num_neurons": NUM_NEURONS,
    "simulation.train": 6,
    "simulation.oracle": 2,
    "simulation.num_frames": NUM_FRAMES,
    "simulation.height": SHAPE[0],
    "simulation.width": SHAPE[1],
    "training.num_steps": 6,
    "training.validation_every": 3,
    "training.validation_trials": 2,
    "training.batch_size": 2,
    "factorized.window_frames": 14,
    "factorized.frame_step": 2,
    "factorized.warmup_frames": 4,
    "factorized.features": (3, 4),
    "factorized.spatial_kernels": (3, 3),
    "factorized.temporal_kernels": (3, 2),
    "num_steps": 6,
    "steps_per_call": 2,
    "skip_frames": 10,
    "prior.adapt_clips": 0,  # two descents a clip; tests/test_adapted.py has them
    "calibration_clips": 2,  # off by default, and takes the longest way through the code
    "linear_decoder.num_lags": 4,
    "linear_decoder.lag_step": 2,
}
CONFIG_FILE = "from tests.tiny_run import tiny_config as get_config\n"


def tiny_config(**changes: Any) -> ml_collections.ConfigDict:
    """The tiny config; a nested key is written with two underscores, such as `training__num_steps`."""
    config = get_config()
    named = {key.replace("__", "."): value for key, value in changes.items()}
    config.update_from_flattened_dict({**SIZES, **named})
    return config


def simulated(folder: Path, **changes: Any) -> Path:
    """A simulated animal in `folder`; its tree."""
    (tree,) = simulate(tiny_config(**changes), str(folder))
    return tree


def random_variables(encoder: Any, seed: int) -> Any:
    """Weights drawn without compiling anything; variances and scales above 0."""
    inputs = jax.ShapeDtypeStruct((1, encoder.window_frames, *encoder.canvas, 5), jnp.float32)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), inputs)
    rng = np.random.default_rng(seed)

    def drawn(path, like):
        name = path[-1].key
        if name in ("var", "scale", "inv_freq"):
            return rng.uniform(0.5, 1.5, like.shape).astype(like.dtype)
        fan_in = np.prod(like.shape[:-1]) if len(like.shape) > 1 else 10
        return rng.normal(0, 1 / np.sqrt(fan_in), like.shape).astype(like.dtype)

    return jax.tree_util.tree_map_with_path(drawn, shapes)


def random_encoders(folder: Path, encoder: Any = None, *, animal: str = "mouse1", num_models: int = 2) -> Path:
    """A work folder like that of a training, for the tiny animal."""
    if encoder is None:
        fields = {k: v for k, v in get_fields().items() if k not in ("stimulus_mean", "stimulus_std")}
        encoder = Factorized(num_neurons=(NUM_NEURONS,), canvas=SHAPE, behaviour_std=(20.0, 20.0, 20.0, 20.0), **fields)
    for model in range(num_models):
        save_encoder(folder / "encoders" / str(model), encoder, random_variables(encoder, model))
    save_json(folder / "encoders" / "animals.json", [animal])
    return folder


def get_fields() -> dict[str, Any]:
    fields = tiny_config().factorized.to_dict()
    return {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in fields.items()}


def with_noise_instead_of(tree: Path, trial_ids: tuple[str, ...], copy: Path) -> Path:
    """A copy of a recording in which these trials show noise; everything else is byte for byte the same."""
    shutil.copytree(tree, copy)
    rng = np.random.default_rng(0)
    for trial_id in trial_ids:
        path = copy / "data" / "videos" / f"{trial_id}.npy"
        movie = np.load(path)
        np.save(path, rng.uniform(0, 255, movie.shape).astype(movie.dtype))
    return copy


def weights(workdir: Path, num_models: int = 2) -> list[np.ndarray]:
    """Every number of the encoders in a work folder."""
    members = [load_encoder(workdir / "encoders" / str(k))[1] for k in range(num_models)]
    return [np.asarray(x) for x in jax.tree.leaves(members)]


def movie(workdir: Path, trial_id: str, animal: str = "mouse1") -> np.ndarray:
    with np.load(workdir / "reconstructions" / animal / f"{trial_id}.npz") as stored:
        return stored["movie"]


def files_and_times(*folders: Path) -> dict[str, int]:
    """Path -> time of its last change, for every file in these folders."""
    paths = [p for folder in folders for p in sorted(folder.rglob("*")) if p.is_file()]
    return {str(p): p.stat().st_mtime_ns for p in paths}
