"""The convolutional decoder of an animal, trained once for a work folder, whichever part of a run asks for it first."""

import shutil
import time
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from tqdm import tqdm

from experiments import cli
from experiments.inputs import fold_trials
from neurorecon import runs
from neurorecon.decoders import (
    ConvolutionalDecoder,
    DecoderSettings,
    LinearStage,
    fit_convolutional_decoder,
    fit_linear_stage,
    load_decoder,
)
from neurorecon.decoders.fitting import DecoderState
from neurorecon.decoders.settings import check_decoder_settings
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.linear_decoder import LinearDecoder
from neurorecon.files import save_npz
from neurorecon.recordings import Recording
from neurorecon.training.trainer import split_trials

KEYS = ("convolutional_decoder", "seed")
NAME = "convolutional_decoder"


def claimed(config: ml_collections.ConfigDict, workdir: str | Path) -> Path:
    """The folder of the decoders and their movies in a work folder, begun with these settings.

    Raises:
      NeuroreconError: it was begun with others.
    """
    root = Path(workdir) / "controls" / NAME
    cli.claim(root, config, NAME, KEYS)
    return root


def settings_of(config: ml_collections.ConfigDict) -> DecoderSettings:
    """`config.convolutional_decoder`.

    Raises:
      NeuroreconError: a value out of its range.
    """
    settings = DecoderSettings(**config.convolutional_decoder.to_dict())
    check_decoder_settings(settings)
    return settings


def trained_decoder(
    config: ml_collections.ConfigDict,
    stored: ml_collections.ConfigDict,
    root: Path,
    recording: Recording,
    mask: np.ndarray,
) -> ConvolutionalDecoder:
    """The animal's decoder: from `root`/ANIMAL.npz, or trained on the trials that its encoders were trained on.

    Args:
      config: whose `convolutional_decoder`, `seed` and `checkpoint_seconds` count.
      stored: of the reconstruction, which says what trials are for.
      root: see `claimed`.
      recording: of the animal.
      mask: (height, width) bool, where movies are scored.

    Raises:
      NeuroreconError: bad settings, or a decoder of another mask.
    """
    settings = settings_of(config)
    path, progress = root / f"{recording.name}.npz", root / "progress" / recording.name
    if path.is_file():
        decoder = load_decoder(path)
        if not np.array_equal(decoder.mask, mask):
            raise NeuroreconError(f"{path}: trained for another mask; remove it and run the same command again")
        return decoder
    fit, validation = _trials(stored, recording)
    shortest = min(t.num_frames for t in (*fit, *validation))
    given: dict[str, Any] = {
        "mask": mask,
        "seed": config.seed,
        "settings": settings,
        "skip_frames": min(stored.skip_frames, shortest // 2),
    }
    trials = (
        [t.responses for t in fit],
        [t.stimulus for t in fit],
        [t.responses for t in validation],
        [t.stimulus for t in validation],
    )
    linear = progress / "linear.npz"
    if linear.is_file():
        stage = LinearStage.from_arrays(runs.load_arrays(linear))
    else:
        with tqdm(total=settings.folds + 1, desc=f"{recording.name}: linear part", unit="fit") as bar:
            stage = fit_linear_stage(*trials, **given, on_fit=lambda done, _: bar.update(done - bar.n))
        save_npz(linear, **stage.to_arrays())
    tell_components(recording, stage.decoder)
    checkpoints = runs.Checkpoints(progress / "checkpoints")
    with tqdm(total=settings.num_steps, desc=f"{recording.name}: network", unit="step", mininterval=2.0) as bar:
        saved = time.monotonic()

        def restored(state: DecoderState) -> DecoderState:
            found = checkpoints.restore(state)
            bar.update(0 if found is None else int(found.step))
            return state if found is None else found

        def on_step(state: DecoderState, record: dict[str, Any]) -> None:
            nonlocal saved
            bar.update()
            if "validation_correlation" in record:
                bar.set_postfix_str(f"validation correlation {record['validation_correlation']:.3f}")
            if time.monotonic() - saved > config.checkpoint_seconds and record["step"] < settings.num_steps:
                checkpoints.save(record["step"], state)
                saved = time.monotonic()

        decoder = fit_convolutional_decoder(*trials, **given, stage=stage, restored=restored, on_step=on_step)
    decoder.save(path)
    shutil.rmtree(progress, ignore_errors=True)
    print(
        f"{recording.name}: movie correlation on validation trials {decoder.validation_correlation:.3f}, "
        f"of the linear part {decoder.linear_correlation:.3f}"
    )
    return decoder


def tell_components(recording: Recording, decoder: LinearDecoder) -> None:
    """Prints that a linear decoder sees less than all neurons, if it does."""
    if decoder.components:
        print(
            f"{recording.name}: the linear decoder has the {decoder.components} leading principal components of "
            f"{recording.num_neurons} neurons, which would not fit into its memory"
        )


def _trials(stored: ml_collections.ConfigDict, recording: Recording) -> tuple[list[Any], list[Any]]:
    """Those that experiments.reconstruct fits its linear decoder and chooses by."""
    fit, validation = split_trials(
        recording, validation_tier=stored.validation_tier, num_validation=stored.training.validation_trials
    )
    unseen = set(fold_trials(recording, stored.fold)) if stored.fold >= 0 else set()
    fit, validation = ([i for i in ids if i not in unseen] for ids in (fit, validation))
    if not fit or not validation:
        raise NeuroreconError(
            f"{recording.name}: expected training and validation trials outside fold {stored.fold}, found {len(fit)} "
            f"and {len(validation)}; raise --config.training.validation_trials"
        )
    return [recording.target(i) for i in fit], [recording.target(i) for i in validation]
