"""Published DwiseNeuro weights (.pth) to an encoder's folder: Orbax variables and architecture.json.

    python -m experiments.import_weights --checkpoint FILE.pth --workdir DIR

Writes DIR/encoders/0/, which `experiments.reconstruct` takes as an encoder; --checkpoint given several times
writes DIR/encoders/0/, 1/, ... in that order. Needs no PyTorch and runs no pickle; takes seconds.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging

from neurorecon.encoders.checkpoints import load_encoder, save_encoder
from neurorecon.encoders.published import load_published
from neurorecon.errors import NeuroreconError


def import_weights(checkpoints: Sequence[str], workdir: str) -> list[Path]:
    """Converts checkpoints; returns the encoders' folders. An encoder that is already there is left as it is.

    Raises:
      NeuroreconError: a checkpoint can't be read, a folder holds another encoder or can't be written.
    """
    folders = []
    for index, checkpoint in enumerate(checkpoints):
        encoder, variables = load_published(checkpoint)
        folder = Path(workdir) / "encoders" / str(index)
        if folder.exists():
            present, present_variables = load_encoder(folder)
            same = present == encoder and jax.tree.all(jax.tree.map(np.array_equal, present_variables, variables))
            if not same:
                raise NeuroreconError(f"{folder}: already holds another encoder; choose another --workdir or remove it")
        else:
            save_encoder(folder, encoder, variables)
        folders.append(folder)
    return folders


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]}")
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step otherwise
    try:
        folders = import_weights(flags.FLAGS.checkpoint, flags.FLAGS.workdir)
    except NeuroreconError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    for folder in folders:
        print(folder)


if __name__ == "__main__":
    # Defined here, so that importing this module next to another entry point makes no flag twice.
    flags.DEFINE_multi_string("checkpoint", None, "a published .pth file", required=True)
    flags.DEFINE_string("workdir", None, "folder to write encoders/ into", required=True)
    app.run(main)
