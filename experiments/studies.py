"""What the studies share: the work folder that they ask, runs under changed settings, and how they end.

`python -m experiments.NAME --workdir WORKDIR` asks a folder where encoders were trained or clips reconstructed. It
writes under WORKDIR/studies/NAME/ only, and each of its conditions is a work folder of experiments.reconstruct there.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from matplotlib.figure import Figure

from experiments.reconstruct import reconstruct_recordings
from neurorecon import runs
from neurorecon.errors import NeuroreconError
from neurorecon.files import read_json
from neurorecon.reporting.studies import Study, study_folder, write_study

# Of a training or reconstruction that a study takes from the work folder where the config names none.
_SOURCES = ("recordings", "encoders")


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
    claimed = runs.claim(study_folder(folder, name), config.to_dict(), name, (*_SOURCES, "data", "weights", *keys))
    return config, claimed


def condition(
    config: ml_collections.ConfigDict, folder: Path, name: str, changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Reconstructs under changed settings, in a work folder of its own; what is there already is not made again.

    Args:
      config: of the study.
      folder: of the study.
      name: of the condition, a folder name.
      changes: config keys such as "neurons.share" and their values. Controls are left out unless asked for here.

    Returns:
      What stands in the condition's metrics.json.
    """
    changed = config.copy_and_resolve_references()
    changed.controls = ""
    changed.update_from_flattened_dict(dict(changes or {}))
    return reconstruct_recordings(changed, str(folder / name), films=False)


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
