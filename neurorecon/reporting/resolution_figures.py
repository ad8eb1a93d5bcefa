"""Figures of a resolution study: maps over both scales, spectra, and frames."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neurorecon.evaluation.coherence import pool
from neurorecon.evaluation.resolution import score_map, transfer
from neurorecon.reporting.resolution_findings import AnimalResult
from neurorecon.reporting.study_figures import COLOURS, FAINT, add_legend, line_with_interval, new_figure, study_style

OWN = ("plain", "inverted")
MAX_FRAMES = 5  # of the examples


@study_style()
def resolution_figures(results: Sequence[AnimalResult]) -> dict[str, tuple[Figure, str]]:
    """name -> figure and caption, of all animals together; frames are the first animal's."""
    scores = [s for result in results for s in result.scores]
    variants = {s.variant for s in scores}
    degrees = float(np.mean([r.degrees_per_pixel for r in results]))
    seconds = float(np.mean([1 / r.frame_rate for r in results]))
    figures: dict[str, tuple[Figure, str]] = {}
    for kind in ("noise", "grating"):
        kinds: list[tuple[str, tuple[str, ...]]] = [("noise-free", OWN)]
        if "noise_matched" in variants:
            kinds.append(("with fitted noise", ("noise_matched",)))
        figure, axes = new_figure(rows=len(kinds), width_mm=100, height_mm=70 * len(kinds))
        for axis, (label, chosen) in zip(axes[:, 0], kinds):
            chart = score_map(scores, kind, chosen)
            _map(axis, chart.mean, label)
            if kind == "noise":
                space = [f"{v:g} px, {v * degrees:.1f}°" for v in chart.spatial]
                when = [f"{v:g} frames\n{1000 * v * seconds:.0f} ms" for v in chart.temporal]
                names = {"ylabel": "length constant in space", "xlabel": "length constant in time"}
            else:
                space, when = [f"{v:g}" for v in chart.spatial], [f"{v:g}" for v in chart.temporal]
                names = {"ylabel": "spatial frequency (cycles/degree)", "xlabel": "temporal frequency (Hz)"}
            axis.set_yticks(range(len(space)), space)
            axis.set_xticks(range(len(when)), when)
            axis.set(**names)
        shown = "Gaussian noise" if kind == "noise" else "Gratings"
        figures[kind] = (
            figure,
            f"{shown}: movie correlation inside the evaluation mask, by scale"
            + (", from predicted responses without and with noise" if len(kinds) > 1 else ""),
        )
    figures["spectra"] = (
        _spectra(results),
        "Power of the noise stimuli and of their reconstructions, all conditions together, and the share of amplitude "
        "that comes through in phase",
    )
    figures["frames"] = (
        _frames(results[0]),
        "A frame of noise at each length constant in space, shown and reconstructed; grey outside the evaluation mask",
    )
    return figures


def _map(axis: Axes, values: np.ndarray, label: str) -> None:
    image = axis.imshow(values, vmin=0, vmax=1, origin="lower", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        axis.text(
            column,
            row,
            f"{round(value, 2) + 0.0:.2f}",
            ha="center",
            va="center",
            color="#111" if value > 0.55 else "#eee",
        )
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.figure.colorbar(image, ax=axis, label=f"movie correlation, {label}").outline.set_visible(False)


def _spectra(results: Sequence[AnimalResult]) -> Figure:
    figure, axes = new_figure(columns=1, rows=3, height_mm=180)
    pooled = pool([s for r in results for s in r.spectra])
    noisy = [s for r in results for s in r.noise_spectra]
    lines = [("shown", pooled.truth, FAINT), ("reconstructed", pooled.movie, COLOURS[0])]
    for axis, over, label in (
        (axes[0, 0], 1, "spatial frequency (cycles/degree)"),
        (axes[1, 0], 0, "temporal frequency (Hz)"),
    ):
        x = pooled.spatial if over == 1 else pooled.temporal
        for name, power, colour in lines:
            values = power.sum(over) / pooled.truth.sum()
            axis.plot(x, values, "o-", ms=4, lw=1.6, color=colour, label=name)
        axis.set(xlabel=label, ylabel="power (share of all shown)", yscale="log")
        add_legend(axis)
    axis = axes[2, 0]
    for name, spectra, colour in (
        ("noise-free", pooled, COLOURS[0]),
        ("with fitted noise", noisy and pool(noisy), COLOURS[1]),
    ):
        if spectra:
            shares = transfer(spectra, "spatial")
            line_with_interval(axis, spectra.spatial, shares, shares, shares, label=name, colour=colour)
    axis.axhline(0, color=FAINT, lw=0.8)
    axis.set(xlabel="spatial frequency (cycles/degree)", ylabel="amplitude that comes through")
    add_legend(axis)
    return figure


def _frames(result: AnimalResult) -> Figure:
    """At the longest length constant in time, where space is the limit."""
    when = max(t for _, t in result.frames)
    spaces = sorted(s for s, t in result.frames if t == when)
    spaces = [spaces[i] for i in np.unique(np.linspace(0, len(spaces) - 1, MAX_FRAMES).astype(int))]
    figure, axes = new_figure(columns=2, rows=len(spaces), width_mm=100, height_mm=30 * len(spaces))
    for row, space in zip(axes, spaces):
        for axis, frame, name in zip(row, result.frames[space, when], ("shown", "reconstructed")):
            image = np.where(result.mask, frame.astype(np.float32), 127.5)
            axis.imshow(image, cmap="gray", vmin=0, vmax=255)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
            if space == spaces[0]:
                axis.set_xlabel(name)
                axis.xaxis.set_label_position("top")
        row[0].set_ylabel(f"{space:g} px\n{space * result.degrees_per_pixel:.1f}°")
    return figure
