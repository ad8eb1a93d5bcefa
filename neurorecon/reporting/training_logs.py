"""metrics.jsonl of a training run -> curves per model."""

import collections
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.reporting.scores import finite

Curves = dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]
SHOWN = ("loss", "correlation")


def training_curves(folders: Sequence[str | os.PathLike]) -> Curves:
    """Reads FOLDER/metrics.jsonl of each folder that has one; a list holds one value per model.

    Returns:
      score name -> model label -> (steps, values); scores whose name holds "loss" or "correlation". A step
      that was written twice, as after a resumed run, counts as written last.

    Raises:
      NeuroreconError: a line that is not a JSON object. Passed over: lines without a step, and a torn last
        line, as a killed run leaves.
    """
    points: dict = collections.defaultdict(lambda: collections.defaultdict(dict))
    paths = [Path(folder) / "metrics.jsonl" for folder in folders]
    paths = [path for path in paths if path.is_file()]
    for path in paths:
        for record in _records(path):
            for name, value in record.items():
                if not any(part in name for part in SHOWN):
                    continue
                models = enumerate(value) if isinstance(value, list) else [(record.get("model", 0), value)]
                for model, score in models:
                    label = f"model {model}" if len(paths) == 1 else f"{path.parent.name}, model {model}"
                    if finite(score) is not None:
                        points[name][label][record["step"]] = float(score)
    return {
        name: {label: _sorted(values) for label, values in sorted(models.items())} for name, models in points.items()
    }


def _sorted(values: dict) -> tuple[np.ndarray, np.ndarray]:
    steps = sorted(values)
    return np.asarray(steps, float), np.asarray([values[step] for step in steps], float)


def _records(path: Path) -> list[dict]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise NeuroreconError(f"{path}: expected lines of JSON, but it can't be read ({error})") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line) if line.strip() else None
        except json.JSONDecodeError:
            if number == len(lines):
                break
            raise NeuroreconError(f"{path}: expected JSON on line {number}, found {line!r:.60}; train again") from None
        if record is None:
            continue
        if not isinstance(record, dict):
            raise NeuroreconError(f"{path}: expected a JSON object on line {number}, found {line!r:.60}; train again")
        if finite(record.get("step")) is not None:
            records.append(record)
    return records
