"""A study: one question asked of a recording, answered by a table, figures and sentences; the report page shows them.

WORKDIR/studies/NAME/ holds study.json, table.csv and one SVG for each figure.
"""

import csv
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from neurorecon.errors import NeuroreconError
from neurorecon.files import atomic_path, read_json, save_json
from neurorecon.reporting.study_figures import study_style

FOLDER = "studies"


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study found.

    Attributes:
      name: of its folder, entry point and guide (docs/NAME.md).
      title: a few words.
      question: one sentence.
      findings: sentences with numbers and intervals, the most important first.
      columns: name -> what it is, with its unit.
      rows: of the table; a missing value is None.
      captions: figure name -> caption; the file is NAME.svg beside study.json.
      seconds: that its last run took, which may have gone on from an earlier one.
      config, versions: of the run.
    """

    name: str
    title: str
    question: str
    findings: Sequence[str]
    columns: Mapping[str, str]
    rows: Sequence[Mapping[str, Any]]
    captions: Mapping[str, str]
    seconds: float
    config: Mapping[str, Any]
    versions: Mapping[str, str]


def study_folder(workdir: str | os.PathLike, name: str) -> Path:
    """Where a study of this work folder keeps everything that it writes."""
    return Path(workdir) / FOLDER / name


def write_study(folder: Path, study: Study, figures: Mapping[str, Figure]) -> Path:
    """Writes table.csv, the figures and, last, study.json; returns the latter's path.

    Raises:
      NeuroreconError: rows that don't have the columns, figures without captions, or the folder can't be written.
    """
    for number, row in enumerate(study.rows):
        if set(row) != set(study.columns):
            raise NeuroreconError(
                f"study {study.name}: expected columns {sorted(study.columns)} in row {number}, found {sorted(row)}"
            )
    if set(figures) != set(study.captions):
        raise NeuroreconError(
            f"study {study.name}: expected captions of the figures {sorted(figures)}, found {sorted(study.captions)}"
        )
    with atomic_path(folder / "table.csv") as path, open(path, "w", newline="") as handle:
        writer = csv.DictWriter(handle, list(study.columns))
        writer.writeheader()
        writer.writerows(study.rows)
    for name, figure in figures.items():
        with study_style(), atomic_path(folder / f"{name}.svg") as path:
            figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None})
    save_json(folder / "study.json", dataclasses.asdict(study))
    return folder / "study.json"


def read_studies(workdir: str | os.PathLike) -> list[Study]:
    """The finished studies of a work folder, by name.

    Raises:
      NeuroreconError: one can't be read.
    """
    fields = {f.name for f in dataclasses.fields(Study)}
    found = []
    for path in sorted((Path(workdir) / FOLDER).glob("*/study.json")):
        values = read_json(path)
        if not isinstance(values, dict) or set(values) != fields:
            raise NeuroreconError(f"{path}: expected the keys of a study, found something else; run the study again")
        found.append(Study(**values))
    return found


def figure_svg(folder: Path, name: str) -> str:
    """A figure as an <svg> element whose ids clash with no other figure's on the page.

    Raises:
      NeuroreconError: the file is missing or no SVG.
    """
    path = folder / f"{name}.svg"
    text = path.read_text() if path.is_file() else ""
    start = text.find("<svg")
    if start < 0:
        raise NeuroreconError(f"{path}: expected an SVG figure, found none; run the study again")
    prefix = f"{folder.name}-{name}-"
    return re.sub(r'((?:id="|url\(#|href="#))', rf"\g<1>{prefix}", text[start:])
