"""An encoder trained here, exported, and loaded by the published PyTorch module: how far its predictions are apart.

    parity/bin/python -m benchmarks.published_export --sensorium sensorium

Checkout and PyTorch as for `benchmarks.training_speed`. A few steps on two random animals, `export_published` to a
.pth, `argus.load_model` of the checkout's MouseModel; both predict the same random inputs in evaluation mode. The
distance is the largest difference over the largest prediction; exits with status 1 where it is above --tolerance, by
default ten times what the published code's own float32 and float64 runs differ by.
"""

import argparse
import importlib
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import speed, training_speed
from neurorecon.encoders import DwiseNeuro, export_published
from neurorecon.encoders.canvas import make_inputs
from neurorecon.errors import NeuroreconError
from neurorecon.recordings.prepared import PreparedRecording
from neurorecon.training.trainer import TrainingSettings, train

NEURONS = 31  # odd: the published readout rounds up to its groups
ANIMALS = 2


def trained(recordings: list[PreparedRecording], num_steps: int) -> tuple[DwiseNeuro, Any]:
    """A small encoder after a few published steps, its running mean as training saves it."""
    encoder = DwiseNeuro(num_neurons=tuple(r.num_neurons for r in recordings), **speed.SMALL)
    settings = TrainingSettings(
        num_steps=num_steps,
        batch_size=2,
        optimiser="adamw",
        learning_rate=1e-3,
        warmup_steps=1,
        ema_decay=0.9,
        ema_warmup=False,
        balanced=False,
        validation_every=num_steps,
        validation_trials=1,
    )
    state = train(encoder, recordings, settings, num_models=1, seed=0)
    return encoder, jax.tree.map(lambda x: np.asarray(x[0]), state.ema)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sensorium", type=Path, required=True, help="checkout of lRomul/sensorium")
    parser.add_argument("--steps", type=int, default=3, help="of training (default 3)")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="(default 1e-5)")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    try:
        training_speed.importable(options.sensorium)
        torch: Any = importlib.import_module("torch")
        argus: Any = importlib.import_module("argus")
        importlib.import_module("src.argus_models")  # makes MouseModel known to argus
        with tempfile.TemporaryDirectory() as folder:
            recordings = training_speed.random_recordings(Path(folder), ANIMALS, NEURONS, (36, 64))
            encoder, variables = trained(recordings, options.steps)
            path = Path(folder) / "trained.pth"
            export_published(encoder, variables, path)
            model = argus.load_model(path, device="cpu", loss=None, optimizer=None)
        model.eval()
        rng = np.random.default_rng(1)
        stimulus = rng.uniform(0, 255, (2, encoder.window_frames, 36, 64)).astype(np.float32)
        behaviour = rng.uniform(0, 50, (2, encoder.window_frames, 4)).astype(np.float32)
        inputs = np.array(make_inputs(jnp.asarray(stimulus), jnp.asarray(behaviour), encoder.canvas, encoder.padding))
        ours = encoder.apply(variables, inputs, readout=None)
        worst = 0.0
        for animal in range(ANIMALS):
            theirs = model.predict(torch.from_numpy(np.moveaxis(inputs, -1, 1).copy()), animal).numpy().swapaxes(1, 2)
            scale = float(np.abs(theirs).max())
            distance = float(np.abs(np.asarray(ours[animal]) - theirs).max()) / scale
            print(f"animal {animal}: {theirs.shape}, largest prediction {scale:.4g}, distance / largest {distance:.2e}")
            worst = max(worst, distance)
    except NeuroreconError as error:
        raise SystemExit(f"error: {error}") from None
    if not worst <= options.tolerance:
        raise SystemExit(f"error: predictions differ by {worst:.3g}, more than {options.tolerance}")


if __name__ == "__main__":
    main()
