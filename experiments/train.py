"""Trains an ensemble of encoders on one or more recordings.

    python -m experiments.train --config experiments/configs/base.py --workdir runs/mine --config.recordings=FOLDER

Writes WORKDIR/encoders/K/ (Orbax and architecture.json), config.json and metrics.jsonl. Called again, it goes on where
it stopped, or says that it is done. With --config.hosts=auto the same command, started once on each of several hosts
that share WORKDIR, is one training; see docs/clusters.md.
"""

import shutil
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from experiments import cli
from experiments.cli import listed
from experiments.inputs import Ensemble, check_architecture, encoder_of, ensemble_of, recordings_of
from neurorecon import hosts, runs
from neurorecon.encoders import ARCHITECTURES, save_encoder
from neurorecon.errors import NeuroreconError
from neurorecon.files import save_json
from neurorecon.recordings.prepared import PreparedRecording, prepare
from neurorecon.training.distillation import Teachers, make_teachers
from neurorecon.training.initialise import stimulus_statistics
from neurorecon.training.new_animals import encoder_for, with_cores
from neurorecon.training.sharding import training_mesh
from neurorecon.training.trainer import (
    TrainingSettings,
    TrainState,
    check_settings,
    initial_state,
    split_trials,
    train,
)

# A run goes on only with the same of these, and of the encoder's own block.
KEYS = (
    "recordings",
    "subset",
    "encoder",
    "training",
    "num_models",
    "seed",
    "validation_tier",
)


def train_encoders(config: ml_collections.ConfigDict, workdir: str) -> Ensemble:
    """Trains, or goes on, or finds that it is done; returns the encoders.

    Raises:
      NeuroreconError: bad config, recordings or checkpoint, or a loss that is not finite.
    """
    hosts.expect_joined(config.hosts)
    if config.num_models < 1:
        raise NeuroreconError(f"--config.num_models: expected at least 1, found {config.num_models}")
    # Before the work folder is claimed: a slip must not stand there as what the job was begun with.
    check_architecture(config)
    settings = settings_of(config)
    trained = hosts.from_first((Path(workdir) / "encoders" / "animals.json").is_file)
    if not trained:
        training_mesh(settings, num_models=config.num_models)
    cores = [] if trained else _cores(config)
    sources = recordings_of(config)
    for source in sources:
        split_trials(source, validation_tier=config.validation_tier, num_validation=settings.validation_trials)
    teachers = None if trained else _teachers(config, sources)
    folder = Path(hosts.from_first(lambda: str(cli.claim(workdir, config, "train", (*KEYS, config.encoder)))))
    if trained:
        _say(f"{folder / 'encoders'}: {config.num_models} trained encoders are there")
        return ensemble_of([str(folder)])
    # Small recordings stay in memory; larger ones are mapped from a cache in the work folder.
    prepared = [_prepared(r, folder / "cache") for r in sources]
    encoder = encoder_for(cores[0][0], prepared) if cores else encoder_of(config, **_fields(config, prepared))
    state, checkpoints = _restored(encoder, prepared, settings, config, folder, [variables for _, variables in cores])
    start = int(state.step)
    log = runs.MetricsLog(folder / "metrics.jsonl", last_step=start) if hosts.is_first() else None
    bar = tqdm(
        total=settings.num_steps, initial=start, desc="train", unit="step", mininterval=2.0, smoothing=0.05,
        disable=not hosts.is_first(),
    )  # fmt: skip
    saved = time.monotonic()

    def logged(record: dict[str, Any]) -> bool:
        """Writes the record; whether it is time for a checkpoint."""
        if log is not None:
            log.write(record)
        bar.update()
        if "validation_correlation" in record:
            bar.set_postfix_str(f"validation correlation {np.mean(record['validation_correlation']):.3f}")
        return time.monotonic() - saved > config.checkpoint_seconds and record["step"] < settings.num_steps

    def on_step(state: TrainState, record: dict[str, Any]) -> None:
        nonlocal saved
        if hosts.from_first(partial(logged, record)):
            checkpoints.save(record["step"], hosts.gathered(state) if hosts.several() else state)
            saved = time.monotonic()

    state = train(
        encoder,
        prepared,
        settings,
        num_models=config.num_models,
        seed=config.seed,
        validation_tier=config.validation_tier,
        state=state,
        teachers=teachers,
        on_step=on_step,
    )
    bar.close()
    best, scores = hosts.gathered((state.best, state.best_score))
    with tempfile.TemporaryDirectory() as nowhere:
        # Orbax wants to be called by all hosts, of which the first alone writes numbers; it alone has a folder to stay.
        encoders = folder / "encoders" if hosts.is_first() else Path(nowhere)
        for model in range(config.num_models):
            save_encoder(encoders / str(model), encoder, jax.tree.map(lambda x, m=model: x[m], best))
    hosts.from_first(partial(_finish, folder, [r.name for r in prepared]))
    _say(
        f"{folder / 'encoders'}: trained; single-trial correlation on validation trials "
        f"{', '.join(f'{float(x):.3f}' for x in scores)}"
    )
    return ensemble_of([str(folder)])


def _finish(folder: Path, animals: list[str]) -> None:
    save_json(folder / "encoders" / "animals.json", animals)  # last: it says that the encoders are whole
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def settings_of(config: ml_collections.ConfigDict) -> TrainingSettings:
    """`config.training`; with `core_from`, the core is not trained.

    Raises:
      NeuroreconError: a value out of its range.
    """
    values = config.training.to_dict()
    for key in ("distil_from", "distil_ratio"):
        values.pop(key)
    settings = TrainingSettings(frozen_core=bool(values.pop("core_from")), **values)
    check_settings(settings)
    return settings


def _cores(config: ml_collections.ConfigDict) -> list[tuple[Any, Any]]:
    """The trained encoders whose cores are taken; none where `training.core_from` is empty."""
    if not config.training.core_from:
        return []
    members = ensemble_of(listed(config.training.core_from)).members
    for encoder, _ in members:
        if type(encoder) is not ARCHITECTURES[config.encoder]:
            raise NeuroreconError(
                f"--config.training.core_from {config.training.core_from}: expected encoders of the architecture "
                f"{config.encoder}, found {type(encoder).__name__}; set --config.encoder"
            )
    return members


def _teachers(config: ml_collections.ConfigDict, sources: list[Any]) -> Teachers | None:
    """The trained encoders that teach the new ones; None where `training.distil_from` is empty."""
    if not config.training.distil_from:
        return None
    if config.encoder != "dwiseneuro":
        raise NeuroreconError(
            "--config.training.distil_from: expected --config.encoder=dwiseneuro, whose readouts share one pass of "
            f"the core, found {config.encoder}"
        )
    found = ensemble_of(listed(config.training.distil_from))
    names = [r.name for r in sources]
    student = encoder_of(config, **_fields(config, sources))
    animals = names if found.animals is None else found.animals
    return make_teachers(found.members, animals, student, names, config.training.distil_ratio)


def _fields(config: ml_collections.ConfigDict, prepared: Sequence[Any]) -> dict[str, Any]:
    shapes = {r.frame_shape for r in prepared}
    if len(shapes) > 1:
        raise NeuroreconError(f"--config.recordings: expected one frame size, found {sorted(shapes)}")
    shape = tuple(prepared[0].frame_shape)
    fields: dict[str, Any] = {"num_neurons": tuple(r.num_neurons for r in prepared)}
    if config.encoder == "dwiseneuro":
        if config.dwiseneuro.readout_kind == "gaussian":
            # Behaviour in raw units would saturate the readout's part for it.
            at_readout = config.dwiseneuro.behaviour_at == "readout"
            return fields | {"canvas": shape, "screen": shape} | (stimulus_statistics(prepared) if at_readout else {})
        side = max(64, *shape)
        return fields | {"canvas": (side, side), "screen": shape}
    return fields | {"canvas": shape} | stimulus_statistics(prepared)


def _restored(
    encoder: Any,
    prepared: list[PreparedRecording],
    settings: TrainingSettings,
    config: ml_collections.ConfigDict,
    folder: Path,
    cores: list[Any],
) -> tuple[TrainState, runs.Checkpoints]:
    state = initial_state(encoder, prepared, settings, num_models=config.num_models, key=jax.random.key(config.seed))
    if cores:
        state = with_cores(state, cores, settings)
    if hosts.several():  # as it is saved: whole, by the first
        state = hosts.gathered(state)
    checkpoints = runs.Checkpoints(folder / "checkpoints")
    found = checkpoints.restore(state)
    if found is not None:
        _say(f"{folder}: goes on at step {int(found.step)} of {settings.num_steps}")
    return (state if found is None else found), checkpoints


def _prepared(recording: Any, cache: Path) -> PreparedRecording:
    """The recording ready for drawing; the first of several hosts makes the cache, the others then find it."""
    if _bytes(recording) < 2 << 30:
        return prepare(recording, None)
    return hosts.after_first(lambda: prepare(recording, cache))


def _bytes(recording: Any) -> int:
    height, width = recording.frame_shape
    return recording.num_trials * 300 * (height * width + 4 * recording.num_neurons)


def _say(line: str) -> None:
    if hosts.is_first():
        print(line)


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    hosts.join(config.hosts)
    train_encoders(config, workdir)


if __name__ == "__main__":
    cli.run(main, __doc__, config="experiments/configs/base.py")
