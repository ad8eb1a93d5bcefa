"""Where on the screen an animal's neurons look: measured, trained, or given; kept in the work folder."""

from pathlib import Path

import jax
import ml_collections
import numpy as np

from experiments.inputs import Ensemble
from neurorecon import runs
from neurorecon.errors import NeuroreconError
from neurorecon.files import save_npz
from neurorecon.reconstruction import masks
from neurorecon.recordings import Trial
from neurorecon.recordings.npy import load_numbers

MASK_TRIALS = 6  # training clips on which the encoders' sensitivity is measured


def alpha_of(
    config: ml_collections.ConfigDict,
    folder: Path,
    fit: list[Trial],
    ensemble: Ensemble,
    readout: int,
    name: str,
    index: int,
) -> np.ndarray:
    """An animal's alpha mask, (height, width) of the screen or canvas; kept in `folder`/masks/NAME.npz.

    Args:
      config, folder, ensemble: of the run.
      fit: training trials, or those of the fold that trains the mask.
      readout, name, index: of the animal, among those of the encoders and of the run.

    Raises:
      NeuroreconError: an unknown kind of mask, or a given one that is missing or does not fit.
    """
    path = folder / "masks" / f"{name}.npz"
    if path.is_file():
        return runs.load_arrays(path)["alpha"]
    if config.mask.files:
        alpha = given_alpha(Path(config.mask.files), name, index)
        encoder = ensemble.members[0][0]
        if alpha.shape not in (tuple(encoder.screen), tuple(encoder.canvas)) or not np.isfinite(alpha).all():
            raise NeuroreconError(
                f"--config.mask.files {config.mask.files}: {name}: expected a finite mask of {tuple(encoder.screen)} "
                f"or {tuple(encoder.canvas)}, found {alpha.shape}"
            )
        save_npz(path, alpha=alpha, kind=config.mask.kind)
        return alpha
    if config.mask.kind == "none":
        alpha = np.ones(fit[0].stimulus.shape[1:], np.float32)
    elif config.mask.kind == "sensitivity":
        few = fit[:: max(1, len(fit) // MASK_TRIALS)][:MASK_TRIALS]
        alpha = masks.sensitivity_map(
            ensemble.members,
            [t.stimulus for t in few],
            [t.behaviour for t in few],
            readout=readout,
            key=jax.random.key(config.seed),
        )
    elif config.mask.kind == "alpha":
        alpha = masks.train_alpha_mask(
            *ensemble.members[0],
            [t.stimulus for t in fit],
            [t.behaviour for t in fit],
            [t.responses for t in fit],
            readout=readout,
            num_steps=config.mask.num_steps,
            key=jax.random.key(config.seed),
        )
    else:
        raise NeuroreconError(f"--config.mask.kind: expected sensitivity, alpha or none, found {config.mask.kind!r}")
    save_npz(path, alpha=np.asarray(alpha), kind=config.mask.kind)
    return np.asarray(alpha)


def given_alpha(folder: Path, name: str, index: int) -> np.ndarray:
    """The mask of an animal in `config.mask.files`, (height, width) of the screen or canvas.

    Raises:
      NeuroreconError: there is none, or it can't be read.
    """
    own, published = folder / f"{name}.npz", folder / f"mask_m{index}.npy"
    if own.is_file():
        return runs.load_arrays(own)["alpha"]
    if published.is_file():
        return load_numbers(published)
    raise NeuroreconError(f"--config.mask.files: expected {own} or {published.name} there, found neither")
