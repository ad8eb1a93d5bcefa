"""The look of the studies' figures: quiet, readable on a phone, in light and in dark, by colour-blind readers.

    @study_style()
    def figure(...) -> Figure:
        figure, axes = new_figure()
        line_with_interval(axes[0, 0], x, means, lows, highs, label="gradients averaged", colour=COLOURS[0])
        axes[0, 0].set(xlabel="number of encoders", ylabel="movie correlation")
        add_legend(axes[0, 0])
        return figure

No titles: the page has them. A phone shows a figure at its own width, so two panels side by side get small: prefer
rows, or two figures.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

# Okabe & Ito's hues, their lightness brought to the middle: at least 3:1 against white and against the dark page.
COLOURS = ("#2a83c4", "#c97b00", "#0e9470", "#b5609a", "#d65f2a", "#6a7fd0")
TEXT = "#757575"
FAINT = "#9a9a9a"  # single clips, single draws, reference lines
SEQUENTIAL = "cividis"
DIVERGING = "RdBu_r"

_MM = 1 / 25.4


@contextmanager
def study_style() -> Iterator[None]:
    """matplotlib settings for drawing and for saving; a context, or a decorator of the function that draws."""
    with matplotlib.rc_context(
        {
            "font.family": "sans-serif",
            "font.size": 9,
            "text.color": TEXT,
            "axes.labelcolor": TEXT,
            "axes.edgecolor": TEXT,
            "axes.facecolor": "none",
            "axes.linewidth": 0.8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": cycler(color=COLOURS),
            "xtick.color": TEXT,
            "ytick.color": TEXT,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "legend.fontsize": 8,
            "legend.frameon": False,
            "legend.labelcolor": TEXT,
            "figure.facecolor": "none",
            "savefig.facecolor": "none",
            "image.cmap": SEQUENTIAL,
            "image.interpolation": "nearest",
            "svg.fonttype": "none",  # text stays text
            "svg.hashsalt": "neurorecon",  # the same figure gives the same file
        }
    ):
        yield


def new_figure(
    columns: int = 1, rows: int = 1, *, width_mm: float | None = None, height_mm: float | None = None
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes, an array (rows, columns), always of two dimensions.

    Args:
      columns, rows: of panels.
      width_mm, height_mm: of the whole; None: 95 mm and then 75 mm for each column, 65 mm for each row.
    """
    width = 20 + 75 * columns if width_mm is None else width_mm
    height = 65 * rows if height_mm is None else height_mm
    with study_style():
        figure = Figure(figsize=(width * _MM, height * _MM), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False)


def line_with_interval(
    axis: Axes,
    x: Sequence[float] | np.ndarray,
    means: Sequence[float] | np.ndarray,
    lows: Sequence[float] | np.ndarray,
    highs: Sequence[float] | np.ndarray,
    label: str = "",
    colour: str = COLOURS[0],
    **line: Any,
) -> None:
    """Means as dots on a line, their intervals as a band; NaN leaves a gap, a single point gets a bar.

    Args:
      axis: drawn on.
      x, means, lows, highs: of equal length.
      label: for the legend; empty: none.
      colour: of line and band.
      **line: more for `Axes.plot`, such as `ls="--"`.
    """
    x, means, lows, highs = (np.asarray(a, float) for a in (x, means, lows, highs))
    if len(x) == 1:
        axis.plot([x[0], x[0]], [lows[0], highs[0]], color=colour, lw=4, alpha=0.35, solid_capstyle="round")
    else:
        axis.fill_between(x, lows, highs, color=colour, alpha=0.2, lw=0)
    axis.plot(x, means, **{"marker": "o", "ms": 4, "lw": 1.6, "color": colour, "label": label or "_", **line})


def dots_with_interval(
    axis: Axes,
    labels: Sequence[str],
    means: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    *,
    singles: Sequence[Sequence[float]] = (),
    colours: Sequence[str] = (COLOURS[0],),
) -> None:
    """A row for each condition, from the top: mean as a dot, its interval as a bar, single clips as faint dots.

    Args:
      axis: drawn on.
      labels: of the rows.
      means, lows, highs: one for each row; NaN draws none.
      singles: values of each row; empty: none.
      colours: of the rows, repeated as needed.
    """
    for row, (mean, low, high) in enumerate(zip(means, lows, highs, strict=True)):
        colour = colours[row % len(colours)]
        axis.plot([low, high], [row, row], color=colour, lw=4, alpha=0.35, solid_capstyle="round")
        if len(singles):
            axis.plot(singles[row], [row + 0.22] * len(singles[row]), "o", color=FAINT, ms=2.5, lw=0)
        axis.plot([mean], [row], "o", color=colour, ms=6)
    axis.set_yticks(range(len(labels)), list(labels))
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.spines["left"].set_visible(False)
    axis.tick_params(left=False)


def add_legend(axis: Axes, **legend: Any) -> None:
    """A legend without a frame, in the figures' grey; `legend` goes to `Axes.legend`."""
    with study_style():
        axis.legend(**legend)
