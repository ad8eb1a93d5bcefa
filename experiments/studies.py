"""What the studies share: the work folder that they ask, runs under changed settings, and how they end.

`python -m experiments.NAME --workdir WORKDIR` asks a folder where encoders were trained or clips reconstructed. It
writes under WORKDIR/studies/NAME/ only, and each of its conditions is a work folder of experiments.reconstruct there.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from matplotlib.figure import Figure

from experiments import cli
from experiments.configs.base import get_config
from experiments.inputs import located, recordings_of
from experiments.preparation import Kept
from experiments.reconstruct import KEYS, reconstruct_recordings, trials_of
from neurorecon import runs
from neurorecon.errors import NeuroreconError
from neurorecon.files import atomic_path, read_json
from neurorecon.reporting.studies import FOLDER, Study, study_folder, write_study
from neurorecon.stimuli.degrees import pixels_per_degree

# Of a training or reconstruction that a study takes from the work folder where the config names none.
_SOURCES = ("recordings", "encoders")
_CLIPS = ("tier", "trials", "max_clips", "fold_clips")  # all conditions have the same clips
_kept = Kept()  # conditions of one study have encoders and preparations in common


def begin(
    config: ml_collections.ConfigDict, workdir: str, name: str, keys: Sequence[str]
) -> tuple[ml_collections.ConfigDict, Path]:
    """Claims the study's folder; returns the config, with recordings and encoders, and the folder.

    Args:
      config: as given; empty `recordings` and `encoders` become those of the work folder.
      workdir: of a training or a reconstruction.
      name: of the study.
      keys: of the config, that a study which goes on must not have changed.

    Raises:
      NeuroreconError: nothing was trained or reconstructed there, or the study was begun with other settings.
    """
    config = config.copy_and_resolve_references()
    folder = Path(workdir)
    path = folder / "jobs.json"
    jobs = read_json(path) if path.is_file() else {}
    for job in ("reconstruct", "train"):
        for key in _SOURCES:
            if not config[key] and not config.data:
                config[key] = jobs.get(job, {}).get(key, "")
    if not config.encoders and (folder / "encoders" / "animals.json").is_file():
        config.encoders = str(folder)
    if not (config.recordings or config.data) or not (config.encoders or config.weights):
        raise NeuroreconError(
            f"--workdir {folder}: expected the folder of a training or reconstruction that is done, found none; make "
            "one with experiments.demo, or name --config.recordings and --config.encoders"
        )
    claimed = cli.claim(study_folder(folder, name), config, name, (*_SOURCES, "data", "weights", *_CLIPS, *keys))
    return config, claimed


def condition(
    config: ml_collections.ConfigDict,
    folder: Path,
    name: str,
    changes: Mapping[str, Any] | None = None,
    *,
    masks: Path | None = None,
) -> dict[str, Any]:
    """Reconstructs under changed settings, in a work folder of its own; what is there already is not made again.

    Nor is what the asked work folder or another study there has made under the same settings: it is copied.

    Args:
      config: of the study.
      folder: of the study.
      name: of the condition, a folder name.
      changes: config keys such as "neurons.share" and their values. Controls are left out unless asked for here.
      masks: another condition's work folder, whose masks are used in place of this one's own.

    Returns:
      What stands in the condition's metrics.json.
    """
    changed = config.copy_and_resolve_references()
    changed.controls = ""
    changed.update_from_flattened_dict(dict(changes or {}))
    target = folder / name
    if masks is not None:
        _copy_masks(masks, target)
    workdir = folder.parent.parent
    others = [workdir, *sorted(p.parent for p in (workdir / FOLDER).glob("*/*/jobs.json"))]
    _adopt(changed, target, [other for other in others if other != target])
    return reconstruct_recordings(changed, str(target), films=False, kept=_kept)


def conditions(
    config: ml_collections.ConfigDict,
    folder: Path,
    wanted: Mapping[str, Mapping[str, Any]],
    *,
    share_masks: bool = True,
) -> dict[str, dict[str, Any]]:
    """`condition` for each name, with how many are left and about how long they take; name -> metrics.

    Args:
      config, folder: of the study.
      wanted: name -> changes.
      share_masks: all are scored inside the masks of the first.
    """
    found: dict[str, dict[str, Any]] = {}
    seconds: list[float] = []
    first: Path | None = None
    for number, (name, changes) in enumerate(wanted.items()):
        left = len(wanted) - number
        soon = f", about {max(seconds) * left / 60:.0f} min left" if seconds else ""
        print(f"{folder.name}: {name}, {left} of {len(wanted)} conditions to go{soon}")
        started = time.monotonic()
        found[name] = condition(config, folder, name, changes, masks=first if share_masks else None)
        seconds.append(time.monotonic() - started)
        first = first or folder / name
    return found


def capped(config: ml_collections.ConfigDict, max_clips: int) -> ml_collections.ConfigDict:
    """The config with at most `max_clips` clips (0: no limit), fewer where it asks for fewer itself."""
    config = config.copy_and_resolve_references()
    limits = [limit for limit in (config.max_clips, max_clips) if limit > 0]
    config.max_clips = min(limits, default=0)
    return config


def screen_pixels_per_degree(config: ml_collections.ConfigDict, width: int) -> float:
    """Of the screen in `config.screen`, `width` pixels across.

    Raises:
      NeuroreconError: a screen without size or distance.
    """
    return pixels_per_degree(width, width_cm=config.screen.width_cm, distance_cm=config.screen.distance_cm)


def clip_scores(metrics: Mapping[str, Any], name: str = "movie_correlation") -> dict[tuple[str, str], float]:
    """(animal, trial) -> score, from what `condition` returns."""
    return {(clip["animal"], clip["trial"]): float(clip[name]) for clip in metrics["clips"]}


def finish(
    folder: Path,
    *,
    started: float,
    config: ml_collections.ConfigDict,
    title: str,
    question: str,
    findings: Sequence[str],
    columns: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    figures: Mapping[str, tuple[Figure, str]],
) -> Study:
    """Writes the study, prints what it found and where; see `neurorecon.reporting.studies.Study`.

    Args:
      folder: from `begin`.
      started: `time.monotonic()` at the beginning.
      figures: name -> figure and caption.
    """
    study = Study(
        name=folder.name,
        title=title,
        question=question,
        findings=list(findings),
        columns=dict(columns),
        rows=[dict(row) for row in rows],
        captions={name: caption for name, (_, caption) in figures.items()},
        seconds=round(time.monotonic() - started, 1),
        config=config.to_dict(),
        versions=runs.versions(),
    )
    path = write_study(folder, study, {name: figure for name, (figure, _) in figures.items()})
    print(title)
    for finding in findings:
        print(f"  {finding}")
    print(f"  {study.seconds:.0f} s; table, figures and numbers: {path.parent}")
    return study


def _copy_masks(source: Path, target: Path) -> None:
    for path in (source / "masks").glob("*.npz"):
        if not (target / "masks" / path.name).exists():
            with atomic_path(target / "masks" / path.name) as temporary:
                shutil.copyfile(path, temporary)


def _adopt(config: ml_collections.ConfigDict, target: Path, others: Sequence[Path]) -> None:
    """Copies the clips that `target` is to hold from work folders of the same settings and masks."""
    config = located(config)
    asked = _settings(config.to_dict())
    wanted = None
    for other in others:
        jobs = read_json(other / "jobs.json") if (other / "jobs.json").is_file() else {}
        begun = dict(jobs.get("reconstruct", {}))
        if begun and not begun.get("encoders") and (other / "encoders").is_dir():
            begun["encoders"] = str(other)  # which it trained itself
        if not begun or _settings(begun) != asked:
            continue
        if wanted is None:
            wanted = [(r.name, trial_id) for r in recordings_of(config) for trial_id in trials_of(r, config)]
        for animal in {animal for animal, _ in wanted}:
            if not _same_mask(other / "masks" / f"{animal}.npz", target / "masks" / f"{animal}.npz"):
                break
        else:
            _copy_masks(other, target)
            for animal, trial_id in wanted:
                path = Path("reconstructions") / animal / f"{trial_id}.npz"
                if (other / path).is_file() and not (target / path).is_file():
                    with atomic_path(target / path) as temporary:
                        shutil.copyfile(other / path, temporary)


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a reconstruction depends on; keys that an older work folder lacks have their defaults."""
    return _completed({key: values[key] for key in KEYS if key in values}, {k: get_config().to_dict()[k] for k in KEYS})


def _completed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    full = {**defaults, **values}
    full = {k: _completed(v, defaults[k]) if isinstance(defaults.get(k), dict) else v for k, v in full.items()}
    return json.loads(json.dumps(full))


def _same_mask(given: Path, wanted: Path) -> bool:
    if not given.is_file():
        return False
    if not wanted.is_file():
        return True
    a, b = (runs.load_arrays(path)["alpha"] for path in (given, wanted))
    return a.shape == b.shape and bool((a == b).all())
