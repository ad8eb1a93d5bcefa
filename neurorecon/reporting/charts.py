"""Line charts and histograms as geometry in per cent: the page draws them at any width and in either theme."""

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
    """A path in a box of 1000 x 1000 with y down; `colour` is a class of page.css, `filled` shades what is under it."""

    label: str
    colour: str
    path: str
    filled: bool = False


@dataclasses.dataclass(frozen=True)
class Chart:
    """Everything page.html.jinja needs to draw one chart.

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
        csv=data_uri("text/csv", text.encode()),
        file=file,
    )


def histogram(
    title: str,
    values: Sequence[np.ndarray],
    labels: Sequence[str],
    *,
    x_label: str,
    y_label: str,
    file: str,
    colours: Sequence[str] = COLOURS,
    hint: str = "",
    bins: int = 40,
) -> Chart | None:
    """Counts of each of `values` in common bins of a round width; None if no value is finite.

    At most as many `values` as `colours`, which are classes of page.css.
    """
    kept = [np.asarray(v, float)[np.isfinite(v)] for v in values]
    if not any(v.size for v in kept):
        return None
    edges = _round_bins(min(v.min() for v in kept if v.size), max(v.max() for v in kept if v.size), bins)
    counts = [np.histogram(v, edges)[0] for v in kept]
    high = 1.04 * max(1, max(count.max() for count in counts))
    low_x, high_x = float(edges[0]), float(edges[-1])
    lines = []
    for label, colour, count in zip(labels, colours, counts):
        x = (np.repeat(edges, 2) - low_x) / (high_x - low_x)
        y = 1 - np.concatenate([[0], np.repeat(count, 2), [0]]) / high
        path = "M" + "L".join(f"{1000 * a:.1f} {1000 * b:.1f}" for a, b in zip(x, y, strict=True))
        lines.append(Line(label, colour, path, filled=True))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([f"{x_label}, from", "to", *labels])
    for row in zip(edges[:-1], edges[1:], *counts, strict=True):
        writer.writerow([f"{row[0]:.7g}", f"{row[1]:.7g}", *row[2:]])
    return Chart(
        title=title,
        hint=hint,
        x_label=x_label,
        y_label=y_label,
        x_ticks=ticks(low_x, high_x, 6),
        y_ticks=[Tick(100 - tick.percent, tick.text) for tick in ticks(0, high, 4)],
        lines=lines,
        shade=0.0,
        csv=data_uri("text/csv", out.getvalue().encode()),
        file=file,
    )


def _round_bins(low: float, high: float, count: int) -> np.ndarray:
    """Edges of at most about `count` bins that hold low .. high; one of them at 0 where that is inside."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    return np.asarray(MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))


def data_uri(kind: str, content: bytes) -> str:
    """Bytes as a URI that needs no file beside the page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def ticks(low: float, high: float, count: int) -> list[Tick]:
    """At most about `count` round ticks within low .. high."""
    values = [v for v in MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low <= v <= high]
    largest = max((abs(v) for v in values), default=0.0)
    # Narrow enough for the margin: 150k, 2.5M; past billions in powers of ten.
    unit, suffix = (1e6, "M") if largest >= 1e6 else (1e3, "k") if largest >= 1e4 else (1.0, "")
    step = min(np.diff(values), default=abs(high - low) or 1.0) / unit
    decimals = next((d for d in range(7) if abs(round(step, d) - step) < 1e-6 * step), 6)

    def text(value: float) -> str:
        if largest >= 1e10:
            return f"{value:.2g}"
        return f"{value / unit + 0.0:,.{decimals}f}{suffix if value else ''}"

    return [Tick(round(100 * (v - low) / (high - low), 3), text(v)) for v in values]


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
