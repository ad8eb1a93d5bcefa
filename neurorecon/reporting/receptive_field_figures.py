"""Figures of receptive fields: examples, the population's map, widths, and positions in the cortex."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from neurorecon.reporting.study_figures import COLOURS, FAINT, add_legend, new_figure, study_style

POLARITIES = ("bright", "dark")


@study_style()
def population_figure(maps: np.ndarray, degrees_per_pixel: float, pixels: tuple[int, int]) -> Figure:
    """Mean map of the population, (polarity, height, width), bright above, dark below.

    Args:
      maps: 0 to 1.
      degrees_per_pixel: at the screen's centre.
      pixels: height and width of the screen.
    """
    figure, axes = new_figure(rows=2, width_mm=105, height_mm=110)
    extent = _extent(degrees_per_pixel, pixels)
    for ax, values, polarity in zip(axes[:, 0], maps, POLARITIES):
        image = ax.imshow(values, extent=extent, vmin=0, vmax=maps.max())
        ax.set(ylabel=f"{polarity} square\nelevation (degrees)")
    axes[-1, 0].set(xlabel="azimuth (degrees)")
    figure.colorbar(image, ax=list(axes[:, 0]), label="mean map of responsive neurons", shrink=0.7)
    return figure


@study_style()
def examples_figure(maps: np.ndarray, centres: np.ndarray) -> Figure:
    """Maps of single neurons, (polarity, height, width, example), bright above, dark below; a cross at each centre.

    Args:
      maps: 0 to 1.
      centres: (example, 2) row and column, in places of the map.
    """
    count = maps.shape[-1]
    figure, axes = new_figure(count, 2, width_mm=30 * count + 8, height_mm=46)
    for row, name, polarity in zip(axes, POLARITIES, maps):
        for column, ax in enumerate(row):
            ax.imshow(polarity[..., column], vmin=0, vmax=1)
            ax.plot(centres[column, 1] - 0.5, centres[column, 0] - 0.5, "+", color="white", ms=6, mew=0.8)
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    return figure


@study_style()
def widths_figure(widths: Mapping[str, np.ndarray]) -> Figure:
    """Histogram of receptive field widths at half maximum, degrees, of each animal."""
    figure, axes = new_figure(height_mm=55)
    ax = axes[0, 0]
    top = max(float(np.quantile(w, 0.995)) for w in widths.values())
    for (name, values), colour in zip(widths.items(), COLOURS * len(widths)):
        ax.hist(values, bins=np.linspace(0, top, 31), histtype="stepfilled", color=colour, alpha=0.45, label=name)
        ax.axvline(np.median(values), color=colour, lw=1.6)
    ax.set(xlabel="width of the receptive field (degrees)", ylabel="neurons")
    if len(widths) > 1:
        add_legend(ax)
    return figure


@study_style()
def retinotopy_figure(cortex: np.ndarray, field: np.ndarray) -> Figure:
    """Neurons where they lie in the cortex, coloured by azimuth (above) and elevation (below).

    Args:
      cortex: (neuron, 2) micrometres.
      field: (neuron, 2) azimuth and elevation, degrees.
    """
    figure, axes = new_figure(rows=2, width_mm=105, height_mm=150)
    for ax, values, name in zip(axes[:, 0], field.T, ("azimuth", "elevation")):
        low, high = np.quantile(values, [0.02, 0.98])
        dots = ax.scatter(*cortex.T, c=values, s=5, lw=0, vmin=low, vmax=high)
        ax.set(ylabel="second axis of the cortex (µm)", aspect="equal")
        figure.colorbar(dots, ax=ax, label=f"{name} (degrees)", shrink=0.8)
    axes[-1, 0].set(xlabel="first axis of the cortex (µm)")
    return figure


@study_style()
def comparison_figure(true: np.ndarray, found: np.ndarray) -> Figure:
    """Found against true positions, (neuron, 2) azimuth and elevation, degrees; the line is where they agree."""
    figure, axes = new_figure(rows=2, height_mm=130)
    for ax, x, y, name in zip(axes[:, 0], true.T, found.T, ("azimuth", "elevation")):
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        ax.plot(ends, ends, color=FAINT, lw=1)
        ax.plot(x, y, "o", color=COLOURS[0], ms=2, alpha=0.5, mew=0)
        ax.set(xlabel=f"true {name} (degrees)", ylabel=f"found {name} (degrees)")
    return figure


def _extent(degrees_per_pixel: float, pixels: Sequence[int]) -> tuple[float, float, float, float]:
    height, width = (n / 2 * degrees_per_pixel for n in pixels)
    return -width, width, -height, height
