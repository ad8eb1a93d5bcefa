"""Figures of scores under several conditions: curves with intervals, rows of dots, scatters over clips."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from neurorecon.evaluation.bootstrap import Interval
from neurorecon.reporting.study_figures import (
    COLOURS,
    FAINT,
    add_legend,
    dots_with_interval,
    line_with_interval,
    new_figure,
    study_style,
)


class Curve(NamedTuple):
    """A line of a figure: `intervals` over `x`."""

    label: str
    x: Sequence[float]
    intervals: Sequence[Interval]


@study_style()
def curves_figure(
    curves: Sequence[Curve],
    *,
    x_label: str,
    y_label: str,
    ticks: Sequence[float] = (),
    log: bool = False,
    mark: float = 0,
) -> Figure:
    """Means with bands over x.

    Args:
      curves: one or more.
      x_label, y_label: with units.
      ticks: places on x to label; empty: matplotlib's choice.
      log: base 2 axis of x.
      mark: place on x at which a vertical line stands; 0: none.
    """
    figure, axes = new_figure()
    axis = axes[0, 0]
    for number, curve in enumerate(curves):
        means, lows, highs = (np.array([interval[k] for interval in curve.intervals], float) for k in range(3))
        line_with_interval(
            axis,
            curve.x,
            means,
            lows,
            highs,
            label=curve.label,
            colour=COLOURS[number % len(COLOURS)],
            ls=("-", "--")[number % 2],
        )
    if log:
        axis.set_xscale("log", base=2)
    if len(ticks):
        axis.set_xticks(list(ticks), [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    if mark:
        axis.axvline(mark, color=FAINT, lw=0.8, ls=":")
    axis.set(xlabel=x_label, ylabel=y_label)
    if len(curves) > 1:
        add_legend(axis)
    return figure


@study_style()
def rows_figure(
    intervals: Mapping[str, Interval], singles: Mapping[str, Sequence[float]], *, x_label: str, zero: bool = False
) -> Figure:
    """A row for each condition: mean, interval and single clips.

    Args:
      intervals: label -> mean and interval, from the top.
      singles: label -> values of the clips; labels may be missing.
      x_label: with its unit.
      zero: draw a line at 0.
    """
    figure, axes = new_figure(height_mm=16 + 11 * len(intervals))
    axis = axes[0, 0]
    means, lows, highs = ([interval[k] for interval in intervals.values()] for k in range(3))
    values = [singles.get(label, ()) for label in intervals]
    dots_with_interval(axis, list(intervals), means, lows, highs, singles=values)
    if zero:
        axis.axvline(0, color=FAINT, lw=0.8, zorder=0)
    axis.set_xlabel(x_label)
    return figure


@study_style()
def scatters_figure(panels: Mapping[str, Sequence[float]], y: Sequence[float], *, y_label: str) -> Figure:
    """A panel for each quantity, two side by side: a dot for each clip.

    Args:
      panels: label of x, with its unit -> value of each clip.
      y: value of each clip.
      y_label: with its unit.
    """
    rows = -(-len(panels) // 2)
    figure, axes = new_figure(2, rows, width_mm=110, height_mm=50 * rows)
    for axis, (label, x) in zip(axes.flat, panels.items()):
        axis.plot(x, y, "o", color=COLOURS[0], ms=4, alpha=0.8)
        axis.set_xlabel(label)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure.supylabel(y_label, fontsize=9)
    return figure
