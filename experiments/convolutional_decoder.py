"""Trains the convolutional decoder for the clips of a reconstruction, and decodes them, as a control beside it.

    python -m experiments.convolutional_decoder --config experiments/configs/demo.py --workdir runs/mine

WORKDIR is that of experiments.reconstruct. Writes WORKDIR/controls/convolutional_decoder/ANIMAL.npz, the decoder, and
ANIMAL/TRIAL.npz with `movie` for each reconstructed clip, and scores everything again (experiments.evaluate). Called
again, it goes on where it stopped.
"""

from typing import Any

import ml_collections
import numpy as np
from tqdm import tqdm

from experiments import cli
from experiments.decoder_training import claimed, settings_of, trained_decoder
from experiments.evaluate import evaluate, stored_clips, stored_config, table
from experiments.inputs import recordings_of
from neurorecon import runs
from neurorecon.files import save_npz


def decode_clips(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
    """Trains a decoder for each animal, decodes its clips, scores them; returns what stands in metrics.json.

    Args:
      config: `config.convolutional_decoder` and `config.seed` count; all else is the work folder's.
      workdir: of a reconstruction.

    Raises:
      NeuroreconError: no reconstruction is there, bad settings, or a training begun with others.
    """
    settings_of(config)
    stored = stored_config(workdir)
    clips = list(stored_clips(workdir, stored))
    root = claimed(config, workdir)
    for recording in recordings_of(stored):
        mine = [c for c in clips if c.animal == recording.name]
        left = [c for c in mine if not (root / c.animal / f"{c.trial}.npz").is_file()]
        if not left:
            continue
        mask = runs.load_arrays(mine[0].path)["mask"]
        decoder = trained_decoder(config, stored, root, recording, mask)
        for clip in tqdm(left, desc=f"{recording.name}: decodes", unit="clip", mininterval=2.0):
            movie = np.clip(decoder.predict(recording.target(clip.trial).responses), 0.0, 255.0)
            save_npz(root / clip.animal / f"{clip.trial}.npz", movie=movie.astype(np.float32))
    return evaluate(workdir)


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    print(table(decode_clips(config, workdir)))


if __name__ == "__main__":
    cli.run(main, __doc__, config="experiments/configs/base.py")
