"""Line charts as geometry in per cent: the page draws them at any width and in either theme."""

import base64
import csv
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

MOST_POINTS = 600  # a line drawn through more is thinned; its CSV is not


@dataclasses.dataclass(frozen=True)
class Tick:
    """A tick at `percent` of the axis."""

    percent: float
    text: str


@dataclasses.dataclass(frozen=True)
class Line:
    """A path in a box of 1000 x 1000 with y down; `colour` is a class of page.css."""

    label: str
    colour: str
    path: str


@dataclasses.dataclass(frozen=True)
class Chart:
    """Everything page.html.jinja needs to draw one line chart.

    Attributes:
      shade: per cent of the width, from the left, that the scores leave out.
      csv: data URI of all numbers.
      file: name under which the browser saves them.
    """

    title: str
    hint: str
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    shade: float
    csv: str
    file: str


@dataclasses.dataclass(frozen=True)
class ChartGroup:
    """Charts shown side by side."""

    charts: list[Chart]

    @property
    def shared_legend(self) -> bool:
        """True if one legend serves all charts."""
        return len(self.charts) > 1 and len({tuple(line.label for line in chart.lines) for chart in self.charts}) == 1


COLOURS = ("c-blue", "c-orange", "c-green", "c-purple", "c-vermillion", "c-sky")


def line_chart(
    title: str,
    x: Sequence[np.ndarray],
    y: Sequence[np.ndarray],
    labels: Sequence[str],
    *,
    x_label: str,
    y_label: str,
    file: str,
    hint: str = "",
    shade_until: float | None = None,
    x_range: tuple[float, float] | None = None,
    include: Sequence[float] = (),
) -> Chart | None:
    """A chart of `y[i]` over `x[i]`; NaN leaves a gap. None if no point is finite.

    More than `len(COLOURS)` lines share one faint colour, with their mean on top where they have the same x.
    """
    xs, ys = [np.asarray(a, float) for a in x], [np.asarray(a, float) for a in y]
    labels = list(labels)
    points = np.concatenate([a[np.isfinite(a)] for a in ys] + [np.asarray(include, float)])
    if not any(np.isfinite(a).any() for a in ys):
        return None
    low_x, high_x = x_range or (min(a.min() for a in xs if a.size), max(a.max() for a in xs if a.size))
    if high_x <= low_x:
        low_x, high_x = low_x - 0.5, low_x + 0.5
    low, high = float(points.min()), float(points.max())
    room = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - room, high + room
    text = _csv(xs, ys, labels, x_label)
    colours = [COLOURS[i] if len(ys) <= len(COLOURS) else "c-faint" for i in range(len(ys))]
    if len(ys) > len(COLOURS) and all(np.array_equal(a, xs[0]) for a in xs):
        stacked = np.stack(ys)
        counts = np.isfinite(stacked).sum(axis=0)
        sums = np.where(np.isfinite(stacked), stacked, 0.0).sum(axis=0)
        xs, labels, colours = [*xs, xs[0]], [*labels, "mean"], [*colours, COLOURS[0]]
        ys = [*ys, np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)]
    lines = [
        Line(label, colour, _path((a - low_x) / (high_x - low_x), (high - b) / (high - low)))
        for label, colour, a, b in zip(labels, colours, xs, ys, strict=True)
    ]
    shade = 0.0 if shade_until is None else 100 * (shade_until - low_x) / (high_x - low_x)
    return Chart(
        title=title,
        hint=hint,
        x_label=x_label,
        y_label=y_label,
        x_ticks=ticks(low_x, high_x, 6),
        y_ticks=[Tick(100 - tick.percent, tick.text) for tick in ticks(low, high, 4)],
        lines=lines,
        shade=float(np.clip(shade, 0, 100)),
        csv="data:text/csv;base64," + base64.b64encode(text.encode()).decode(),
        file=file,
    )


def ticks(low: float, high: float, count: int) -> list[Tick]:
    """At most about `count` round ticks within low .. high."""
    values = [v for v in MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low <= v <= high]
    step = min(np.diff(values), default=abs(high - low) or 1.0)
    decimals = next((d for d in range(7) if abs(round(step, d) - step) < 1e-6 * step), 6)
    return [Tick(round(100 * (v - low) / (high - low), 3), _tick_text(v, decimals)) for v in values]


def _tick_text(value: float, decimals: int) -> str:
    return f"{value + 0.0:,.{decimals}f}" if abs(value) < 1e6 else f"{value:.3g}"


def _path(x: np.ndarray, y: np.ndarray) -> str:
    every = max(1, -(-len(x) // MOST_POINTS))
    keep = np.unique(np.append(np.arange(0, len(x), every), len(x) - 1))
    parts, pen_down = [], False
    for a, b in zip(x[keep], y[keep], strict=True):
        if not np.isfinite(b):
            pen_down = False
            continue
        parts.append(f"{'L' if pen_down else 'M'}{1000 * a:.1f} {1000 * b:.1f}")
        pen_down = True
    return "".join(parts)


def _csv(xs: list[np.ndarray], ys: list[np.ndarray], labels: list[str], x_label: str) -> str:
    """One row per x, one column per line; empty where a line has no value."""
    columns = [dict(zip(a.tolist(), b.tolist(), strict=True)) for a, b in zip(xs, ys, strict=True)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([x_label, *labels])
    for position in sorted(set().union(*columns)):
        cells = [column.get(position) for column in columns]
        row = ["" if cell is None or not np.isfinite(cell) else f"{cell:.7g}" for cell in cells]
        writer.writerow([f"{position:.7g}", *row])
    return out.getvalue()
