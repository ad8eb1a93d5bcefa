"""Figures of the match in space and time. Conditions are keyed by name, the reconstruction first."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from neurorecon.reporting.study_figures import (
    COLOURS,
    DIVERGING,
    FAINT,
    TEXT,
    add_legend,
    dots_with_interval,
    line_with_interval,
    new_figure,
    study_style,
)

CONDITION_COLOURS = {
    "reconstruction": COLOURS[0],
    "linear_decoder": COLOURS[1],
    "shuffled_neurons": COLOURS[3],
    "ceiling": COLOURS[2],
}
# Value, low and high, each of one length.
Curve = tuple[np.ndarray, np.ndarray, np.ndarray]


@study_style()
def coherence_map_figure(spatial: np.ndarray, temporal: np.ndarray, values: np.ndarray) -> Figure:
    """Coherence (S, F) of the reconstruction over frequencies spatial (S,) cycles/degree and temporal (F,) Hz."""
    figure, axes = new_figure(width_mm=105)
    ax = axes[0, 0]
    extent = (0, len(spatial), 0, len(temporal))
    image = ax.imshow(values.T, vmin=0, vmax=1, origin="lower", extent=extent, aspect="auto")
    if values.shape[0] > 1 and values.shape[1] > 1:
        middle = np.arange(values.shape[0]) + 0.5, np.arange(values.shape[1]) + 0.5
        ax.contour(*middle, values.T, levels=[0.5], colors="white", linewidths=1.2)
    _band_ticks(ax.xaxis, spatial, "{:.2g}")
    _band_ticks(ax.yaxis, temporal, "{:.2g}")
    ax.set(xlabel="spatial frequency (cycles/degree)", ylabel="temporal frequency (Hz)")
    figure.colorbar(image, ax=ax, label="coherence of truth and reconstruction")
    return figure


@study_style()
def coherence_curves_figure(
    spatial: np.ndarray,
    temporal: np.ndarray,
    over_space: Mapping[str, Curve],
    over_time: Mapping[str, Curve],
    chance: tuple[np.ndarray, np.ndarray],
) -> Figure:
    """Coherence against spatial frequency above, temporal below, of each condition; dashed: a wrong clip's."""
    figure, axes = new_figure(rows=2)
    parts = (
        (spatial, over_space, chance[0], "spatial frequency (cycles/degree)"),
        (temporal, over_time, chance[1], "temporal frequency (Hz)"),
    )
    for ax, (x, curves, wrong, label) in zip(axes[:, 0], parts):
        for name, curve in curves.items():
            line_with_interval(ax, x, *curve, label=_label(name), colour=CONDITION_COLOURS[name])
        ax.plot(x, wrong, ls="--", lw=1, color=FAINT, label="another clip")
        ax.set_xscale("log")
        ax.set(xlabel=label, ylabel="coherence", ylim=(0, 1))
        ax.xaxis.set_major_locator(FixedLocator(list(x[::2])))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticks(x[::2], [f"{v:.2g}" for v in x[::2]])
    add_legend(axes[0, 0])
    return figure


@study_style()
def over_the_clip_figure(seconds: np.ndarray, curves: Mapping[str, Curve]) -> Figure:
    """Frame correlation over the clip, seconds since its beginning."""
    figure, axes = new_figure()
    ax = axes[0, 0]
    for name, curve in curves.items():
        line_with_interval(ax, seconds, *curve, label=_label(name), colour=CONDITION_COLOURS[name], ms=2.5)
    ax.axhline(0, color=FAINT, lw=0.8)
    ax.set(xlabel="time in the clip (s)", ylabel="frame correlation")
    add_legend(ax, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


@study_style()
def lag_figure(lags: np.ndarray, curves: Mapping[str, Curve], frame_rate: float) -> Figure:
    """Correlation against lag, in milliseconds."""
    figure, axes = new_figure()
    ax = axes[0, 0]
    for name, curve in curves.items():
        line_with_interval(
            ax, lags * 1000 / frame_rate, *curve, label=_label(name), colour=CONDITION_COLOURS[name], ms=2.5
        )
    ax.axvline(0, color=FAINT, lw=0.8)
    ax.set(xlabel="lag of the reconstruction (ms)", ylabel="movie correlation")
    add_legend(ax, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


@study_style()
def scores_by_condition_figure(
    measures: Mapping[str, Mapping[str, tuple[float, float, float]]],
    singles: Mapping[str, Mapping[str, Sequence[float]]],
) -> Figure:
    """A panel for each measure (label -> condition -> mean, low, high), single clips as faint dots."""
    figure, axes = new_figure(rows=len(measures), height_mm=15 + 24 * len(measures))
    for ax, (label, conditions) in zip(axes[:, 0], measures.items()):
        dots_with_interval(
            ax,
            [_label(name) for name in conditions],
            *np.transpose(list(conditions.values())),
            singles=[singles[label][name] for name in conditions],
            colours=[CONDITION_COLOURS[name] for name in conditions],
        )
        ax.axvline(0, color=FAINT, lw=0.8)
        ax.set(xlabel=label)
    return figure


@study_style()
def pixel_map_figure(values: np.ndarray, mask: np.ndarray, degrees_per_pixel: float) -> Figure:
    """Correlation over time of each pixel, (height, width); the mask's border as a line."""
    height, width = values.shape
    figure, axes = new_figure(width_mm=105, height_mm=62)
    ax = axes[0, 0]
    reach = width / 2 * degrees_per_pixel, height / 2 * degrees_per_pixel
    extent = (-reach[0], reach[0], -reach[1], reach[1])
    limit = max(float(np.nanmax(np.abs(values))), 0.1)
    image = ax.imshow(values, extent=extent, cmap=DIVERGING, vmin=-limit, vmax=limit)
    if mask.any() and not mask.all():
        x = (np.arange(width) + 0.5) * degrees_per_pixel - reach[0]
        y = reach[1] - (np.arange(height) + 0.5) * degrees_per_pixel
        ax.contour(x, y, mask, levels=[0.5], colors=TEXT, linewidths=1)
    ax.set(xlabel="azimuth (degrees)", ylabel="elevation (degrees)")
    figure.colorbar(image, ax=ax, label="correlation over time", shrink=0.8)
    return figure


@study_style()
def identification_figure(
    clips: tuple[Sequence[int], Mapping[str, Curve]], seconds: tuple[Sequence[int], Mapping[str, Curve]]
) -> Figure:
    """Accuracy against the number of candidates: clips above, seconds below; dashed: chance."""
    figure, axes = new_figure(rows=2)
    for ax, (ways, curves), what in zip(axes[:, 0], (clips, seconds), ("clips", "seconds")):
        for name, curve in curves.items():
            means, lows, highs = (100 * c for c in curve)
            line_with_interval(ax, ways, means, lows, highs, _label(name), CONDITION_COLOURS[name], ms=3)
        ax.plot(ways, 100 / np.asarray(ways), ls="--", lw=1, color=FAINT, label="chance")
        ax.set_xscale("log")
        ax.set(xlabel=f"{what} to choose from", ylabel="identified (%)", ylim=(0, 104))
        ax.set_xticks(list(ways), [str(n) for n in ways])
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.xaxis.set_minor_locator(NullLocator())
    add_legend(axes[0, 0], loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def _label(name: str) -> str:
    return name.replace("_", " ")


def _band_ticks(axis: Any, values: np.ndarray, form: str) -> None:
    axis.set_ticks(np.arange(len(values)) + 0.5, [form.format(v) for v in values])
    if len(values) > 8:
        for label in axis.get_ticklabels()[1::2]:
            label.set_visible(False)
