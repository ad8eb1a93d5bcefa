"""Tables of the page: what a cell shows, and what it is sorted by."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from neurorecon.reporting.scores import finite, number, words

NAMES = ("animal", "trial")  # columns that hold names, even where these are digits


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell: what is shown, and what is sorted by; "" sorts last."""

    text: str
    key: str
    numeric: bool


@dataclasses.dataclass(frozen=True)
class Column:
    """A column: its name in the data, its heading, and what it is."""

    name: str
    label: str
    hint: str
    numeric: bool


@dataclasses.dataclass(frozen=True)
class Row:
    """Cells, and the place on the page that the row leads to, or ""."""

    cells: list[Cell]
    anchor: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the page; `left_out` rows are in the CSV only."""

    columns: list[Column]
    rows: list[Row]
    left_out: int = 0


def cell(value: Any, name: str) -> Cell:
    """A value of the column `name` as it is shown: numbers rounded, lists spelled out, None as n/a."""
    if name in NAMES or isinstance(value, str | bool):
        text = str(value)
        return Cell(text, text, False)
    if isinstance(value, list | tuple):
        text = ", ".join(cell(item, "").text for item in value)
        return Cell(text, text, False)
    known = finite(value)
    return Cell(number(value), "" if known is None else repr(known), True)


def clip_table(rows: Sequence[Mapping[str, Any]], anchors: Mapping[tuple[str, str], str]) -> Table:
    """The clips of metrics.json, columns in its order; a row leads to its film where `anchors` has it."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    names = [n for n in NAMES if n in names] + [n for n in names if n not in NAMES]
    # A grey movie scores 0 for every clip.
    names = [n for n in names if n != "grey" and not any(isinstance(row.get(n), dict | list) for row in rows)]
    columns = [Column(name, *words(name), name not in NAMES) for name in names]
    return Table(
        columns,
        [
            Row(
                [cell(row.get(name), name) for name in names],
                anchors.get((str(row.get("animal")), str(row.get("trial"))), ""),
            )
            for row in rows
        ],
    )


def data_table(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]], most_rows: int) -> Table:
    """Rows under columns (name -> what it is); those after `most_rows` are left out."""
    shown = [Row([cell(row.get(name), name) for name in columns]) for row in rows[:most_rows]]
    numeric = [all(row.cells[i].numeric for row in shown) for i in range(len(columns))]
    return Table(
        [Column(name, name.replace("_", " "), hint, n) for (name, hint), n in zip(columns.items(), numeric)],
        shown,
        len(rows) - len(shown),
    )
