"""Where does each neuron look, how large a part does it see, and how does that go with where it lies in the cortex?

    python -m experiments.receptive_fields --config experiments/configs/demo.py --workdir runs/demo

WORKDIR is the folder of a training or a reconstruction. Small squares, bright and dark, are shown to the encoders one
at a time all over the screen (Bauer et al. 2026, with single pixels: --config.receptive_fields.spot_pixels=1); a
neuron's receptive field is where a square raises its predicted response by 10 % or more. Beside the study's table and
figures, WORKDIR/studies/receptive_fields/ gets, for each animal, ANIMAL.npz (the maps of every neuron, and what each
encoder says) and ANIMAL.csv (a line for each neuron).

How to read it. Azimuth is to the right and elevation upwards of the screen's centre, in degrees by config.screen. The
width is at half maximum, of bright and dark subfields together, smoothing taken off. The population's map says which
part of the screen is seen, and so where a reconstruction can be good. Retinotopy is a linear regression of azimuth and
of elevation on the position along the surface of the cortex; R2 is of neurons left out of the fit, p from permutations
of the neurons. It needs cell_motor_coordinates in the recording. Of a simulated animal the true centres are known, and
the found ones are compared with them.

Cost: squares x encoders; for the demo (2,304 squares of 2 x 2 pixels in all) about two minutes on two busy cores, with
single pixels four times that. Published weights want a GPU: 15 windows for each pixel. A killed run goes on.
"""

import csv
import time
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from scipy.stats import bootstrap

from experiments import cli
from experiments.inputs import ensemble_of, located, recordings_of
from experiments.receptive_field_maps import mapped_fields
from experiments.studies import begin, finish, screen_pixels_per_degree
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation import bootstrap_mean
from neurorecon.evaluation.retinotopy import Retinotopy, field_shapes, fit_retinotopy
from neurorecon.files import atomic_path
from neurorecon.recordings import Recording
from neurorecon.reporting import receptive_field_figures as figures
from neurorecon.reporting.studies import Study
from neurorecon.stimuli.degrees import visual_angle

COLUMNS = {
    "animal": "recording",
    "measure": "what is measured",
    "unit": "of value, low and high",
    "value": "mean, median or R2, as the measure says",
    "low": "of the 95 % interval over neurons",
    "high": "of the 95 % interval over neurons",
    "p_value": "by permutation of the neurons",
}
EXAMPLES = 4  # neurons in a figure
SEED = 0  # of intervals and permutations
LEAST_NEURONS = 20  # with a receptive field, for a regression


class Fields(NamedTuple):
    """An animal's receptive fields.

    Attributes:
      maps: (polarity, height, width, neuron), 0 to 1.
      responsive: (polarity, neuron) bool. strength: (polarity, neuron) largest relative change.
      population: (polarity, height, width) mean map.
      place: (neuron, 2) centres as row and column of the maps; NaN without a field, as the next two.
      field: (neuron, 2) azimuth and elevation, degrees.
      width: (neuron,) degrees; also NaN where too small to be told from the smoothing.
      true: (neuron, 2) true azimuth and elevation; None where the recording doesn't tell.
      cortex: (neuron, 3) micrometres; None where the recording doesn't tell.
      retinotopy: of the responsive neurons; None without `cortex` or with too few neurons.
    """

    maps: np.ndarray
    responsive: np.ndarray
    strength: np.ndarray
    population: np.ndarray
    place: np.ndarray
    field: np.ndarray
    width: np.ndarray
    true: np.ndarray | None
    cortex: np.ndarray | None
    retinotopy: Retinotopy | None


def receptive_fields(config: ml_collections.ConfigDict, workdir: str) -> Study:
    """Runs the study; see the module.

    Raises:
      NeuroreconError: bad config, anything that can't be read or written or doesn't fit, or no neuron responds.
    """
    started = time.monotonic()
    config, folder = begin(config, workdir, "receptive_fields", ("receptive_fields",))
    config = located(config)
    ensemble = ensemble_of(cli.listed(config.encoders))
    rows: list[dict[str, Any]] = []
    drawn: dict[str, tuple[Any, str]] = {}
    findings: list[str] = []
    widths = {}
    recordings = recordings_of(config)
    for index, recording in enumerate(recordings):
        fields = fields_of(config, recording, mapped_fields(config, folder, ensemble, recording, index))
        _write_neurons(folder / f"{recording.name}.csv", recording, fields)
        several = len(recordings) > 1
        rows += _rows(recording.name, fields)
        findings += [f"{recording.name}: {said}" if several else said for said in _findings(rows, recording, fields)]
        widths[recording.name] = fields.width[np.isfinite(fields.width)]
        drawn |= _figures(config, recording, fields, f"_{recording.name}" if several else "")
    widths = {name: values for name, values in widths.items() if values.size}
    if widths:
        caption = "Widths at half maximum of the receptive fields; lines are medians."
        drawn["widths"] = figures.widths_figure(widths), caption
    return finish(
        folder,
        started=started,
        config=config,
        title="Receptive fields and retinotopy",
        question="Where do the neurons look, and does the cortex hold a map of the visual field?",
        findings=findings,
        columns=COLUMNS,
        rows=rows,
        figures=drawn,
    )


def fields_of(config: ml_collections.ConfigDict, recording: Recording, arrays: dict[str, np.ndarray]) -> Fields:
    """Positions and widths in degrees, and the retinotopy, from what `mapped_fields` returns.

    Raises:
      NeuroreconError: the recording's positions are of another shape.
    """
    spot = config.receptive_fields.spot_pixels
    responsive = arrays["responsive"]
    strength = np.where(responsive, arrays["strength"], 0.0)
    shapes = field_shapes(arrays["maps"], strength, smoothing=config.receptive_fields.smoothing)
    field = _degrees(config, recording, shapes.centre * spot)
    half = shapes.width[:, None] * spot / 2
    ends = [_degrees(config, recording, shapes.centre * spot + sign * half) for sign in (-1, 1)]
    cortex = recording.cell_motor_coordinates
    seen = np.isfinite(field).all(1)
    retinotopy = None
    if cortex is not None and seen.sum() >= LEAST_NEURONS:
        permutations = config.receptive_fields.permutations
        retinotopy = fit_retinotopy(cortex[seen, :2], field[seen], seed=SEED, num_permutations=permutations)
    return Fields(
        arrays["maps"],
        responsive,
        strength,
        arrays["population_mean"],
        shapes.centre,
        field,
        np.abs(ends[1] - ends[0]).mean(1),
        _true_centres(config, recording),
        cortex,
        retinotopy,
    )


def _degrees(config: ml_collections.ConfigDict, recording: Recording, places: np.ndarray) -> np.ndarray:
    """(neuron, 2) azimuth and elevation of rows and columns in pixels from the upper left corner."""
    height, width = recording.frame_shape
    per_degree = screen_pixels_per_degree(config, width)
    right, up = places[:, 1] - width / 2, height / 2 - places[:, 0]
    return visual_angle(np.stack([right, up], axis=1), per_degree)


def _true_centres(config: ml_collections.ConfigDict, recording: Recording) -> np.ndarray | None:
    if "receptive_field_centres" not in recording.extra:
        return None
    centres = np.asarray(recording.extra["receptive_field_centres"], np.float64)
    if centres.shape != (recording.num_neurons, 2):
        raise NeuroreconError(
            f"{recording.path}/meta/recording.json: expected a row and column in receptive_field_centres for each of "
            f"{recording.num_neurons} neurons, found shape {centres.shape}"
        )
    return _degrees(config, recording, centres)


def _rows(animal: str, fields: Fields) -> list[dict[str, Any]]:
    def row(measure: str, unit: str, interval: Any, p_value: float | None = None) -> dict[str, Any]:
        value, low, high = (float(x) if np.isfinite(x) else None for x in interval)
        return {
            "animal": animal, "measure": measure, "unit": unit, "value": value, "low": low, "high": high,
            "p_value": p_value,
        }  # fmt: skip

    rows = [
        row(f"neurons that respond to a {name} square", "%", 100 * np.array(bootstrap_mean(kind, seed=SEED)))
        for name, kind in zip((*figures.POLARITIES, "bright or dark"), (*fields.responsive, fields.responsive.any(0)))
    ]
    rows.append(row("width at half maximum, median", "degrees", _median(fields.width)))
    for name, values in zip(("azimuth", "elevation"), fields.field.T):
        values = values[np.isfinite(values)]
        for share in (0.05, 0.95):
            rows.append(row(f"{name}, {share:.0%} quantile", "degrees", (np.quantile(values, share), np.nan, np.nan)))
    if fields.retinotopy is not None:
        for name, r2, p in zip(("azimuth", "elevation"), fields.retinotopy.r2, fields.retinotopy.p_value):
            rows.append(row(f"{name} from the cortex, R2", "", (r2, np.nan, np.nan), float(p)))
        for name, slope in zip(("azimuth", "elevation"), np.linalg.norm(fields.retinotopy.slope, axis=1)):
            rows.append(row(f"magnification along {name}", "µm/degree", (1 / slope, np.nan, np.nan)))
    if fields.true is not None:
        error = np.linalg.norm(fields.field - fields.true, axis=1)
        rows.append(row("distance from the true centre, median", "degrees", _median(error)))
        for name, x, y in zip(("azimuth", "elevation"), fields.true.T, fields.field.T):
            r = float(np.corrcoef(x[np.isfinite(y)], y[np.isfinite(y)])[0, 1])
            rows.append(row(f"true and found {name}, correlation", "", (r, np.nan, np.nan)))
    return rows


def _median(values: np.ndarray) -> tuple[float, float, float]:
    """Median and its bootstrap interval over neurons; values that are NaN left out."""
    values = values[np.isfinite(values)]
    if not values.size:
        return np.nan, np.nan, np.nan
    middle = float(np.median(values))
    if len(values) < 2:
        return middle, np.nan, np.nan
    rng = np.random.default_rng(SEED)
    found = bootstrap((values,), np.median, n_resamples=1000, method="percentile", rng=rng).confidence_interval
    return middle, float(found.low), float(found.high)


def _findings(rows: list[dict[str, Any]], recording: Recording, fields: Fields) -> list[str]:
    found = {r["measure"]: r for r in rows if r["animal"] == recording.name}

    def said(measure: str, digits: int = 0) -> str:
        row = found[measure]
        text = f"{row['value']:.{digits}f}"
        return text if row["low"] is None else f"{text} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"

    def span(name: str) -> str:
        return f"{said(f'{name}, 5% quantile')} to {said(f'{name}, 95% quantile')} degrees of {name}"

    bright, dark = (said(f"neurons that respond to a {name} square") for name in figures.POLARITIES)
    lines = [
        f"{said('neurons that respond to a bright or dark square')} % of {recording.num_neurons} neurons have a "
        f"receptive field: {bright} % respond to bright squares, {dark} % to dark ones.",
    ]
    if found["width at half maximum, median"]["value"] is not None:
        lines.append(
            f"A receptive field is {said('width at half maximum, median', 1)} degrees wide at half maximum (median); "
            f"nine in ten centres lie within {span('azimuth')}, and nine in ten within {span('elevation')}."
        )
    if fields.retinotopy is not None:
        p = max(fields.retinotopy.p_value)
        lines.append(
            f"Where a neuron lies in the cortex tells where it looks: R2 {said('azimuth from the cortex, R2', 2)} of "
            f"azimuth and {said('elevation from the cortex, R2', 2)} of elevation in neurons left out of the fit (p "
            f"{'<=' if p < 0.01 else '='} {p:.1g}); a degree is {said('magnification along azimuth')} µm of cortex "
            f"along azimuth, {said('magnification along elevation')} µm along elevation."
        )
    elif fields.cortex is None:
        lines.append("The recording has no positions of its neurons in the cortex, so that retinotopy can't be shown.")
    else:
        lines.append(f"Fewer than {LEAST_NEURONS} neurons have a receptive field: too few for retinotopy.")
    if fields.true is not None:
        lines.append(
            f"The true centres of the simulated neurons lie {said('distance from the true centre, median', 1)} degrees "
            f"from the found ones (median); azimuths correlate by {said('true and found azimuth, correlation', 2)}, "
            f"elevations by {said('true and found elevation, correlation', 2)}."
        )
    return lines


def _figures(
    config: ml_collections.ConfigDict, recording: Recording, fields: Fields, suffix: str
) -> dict[str, tuple[Any, str]]:
    animal = f" ({recording.name})" if suffix else ""
    seen = np.isfinite(fields.field).all(1)
    strongest = np.argsort(-fields.strength.max(0), kind="stable")[: min(EXAMPLES, int(seen.sum()))]
    drawn = {
        f"population{suffix}": (
            figures.population_figure(
                fields.population, 1 / screen_pixels_per_degree(config, recording.frame_shape[1]), recording.frame_shape
            ),
            f"Where the population looks{animal}: mean of the maps of all neurons that respond, each 1 at its highest "
            "place. Degrees hold at the screen's centre.",
        ),
        f"examples{suffix}": (
            figures.examples_figure(fields.maps[..., strongest], fields.place[strongest]),
            f"Whole-screen maps of the neurons that respond most{animal}, to bright squares above, dark ones below; "
            "the cross is the centre.",
        ),
    }
    if fields.retinotopy is not None and fields.cortex is not None:
        drawn[f"retinotopy{suffix}"] = (
            figures.retinotopy_figure(fields.cortex[seen, :2], fields.field[seen]),
            f"Every neuron where it lies in the cortex{animal}, coloured by where it looks.",
        )
    if fields.true is not None:
        drawn[f"true_centres{suffix}"] = (
            figures.comparison_figure(fields.true[seen], fields.field[seen]),
            f"Found against true centres of the simulated neurons{animal}.",
        )
    return drawn


def _write_neurons(path: Path, recording: Recording, fields: Fields) -> None:
    """A line for each neuron; empty where there is nothing to say."""
    units = recording.unit_ids
    names = ["neuron", "unit_id", "responds_bright", "responds_dark", "strength_bright", "strength_dark"]
    names += ["azimuth_degrees", "elevation_degrees", "width_degrees", "cortex_x_um", "cortex_y_um", "cortex_z_um"]
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(names)
        for n in range(recording.num_neurons):
            numbers = [*fields.strength[:, n], *fields.field[n], fields.width[n]]
            numbers += list(fields.cortex[n]) if fields.cortex is not None else [np.nan] * 3
            cells = ["" if not np.isfinite(x) else f"{x:.4g}" for x in numbers]
            unit = "" if units is None else units[n]
            writer.writerow([n, unit, *(int(r) for r in fields.responsive[:, n]), *cells])


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    receptive_fields(config, workdir)


if __name__ == "__main__":
    cli.run(main, __doc__, config="experiments/configs/demo.py")
