"""Receptive fields of an animal's neurons, as its encoders have them: every pixel alone, bright and dark.

    python -m experiments.receptive_fields --workdir runs/mine --recording FOLDER --encoders runs/mine

Writes WORKDIR/receptive_fields/ANIMAL.npz and ANIMAL.png. The npz holds, for the mean over encoders and for each of
them: where each neuron peaks, how strongly it responds, and the population's map; and the mean's map of each neuron.
--responses also writes ANIMAL_modelK.npy, the responses themselves (0.44 GB for 8,000 neurons). --encoders given
several times makes an ensemble. --published compares with the response before the pixel, pads with grey and takes the
means in meta/statistics, as Bauer et al. (2026). With published weights it wants a GPU: 69,000 encoder windows each.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging
from matplotlib.figure import Figure
from tqdm import tqdm

from experiments.inputs import ensemble_of
from neurorecon.errors import NeuroreconError
from neurorecon.files import atomic_path, save_npy, save_npz
from neurorecon.reconstruction.receptive_fields import (
    PUBLISHED_PADDING,
    PixelResponses,
    ReceptiveFieldMaps,
    population_receptive_field,
    probe_pixels,
    receptive_field_maps,
)
from neurorecon.recordings import Recording, open_recording

POLARITIES = ("bright", "dark")
SINGLE = ("responsive", "peaks", "strength", "population_peaks")  # kept of every encoder
EXAMPLES = 4  # neurons in the picture


def receptive_fields(
    workdir: str,
    recording: str,
    encoders: Sequence[str],
    *,
    readout: int | None = None,
    published: bool = False,
    responses: bool = False,
    chunk: int = 32,
) -> Path:
    """Maps the receptive fields of one recording's neurons; returns the path of the npz.

    Args:
      workdir: where to write.
      recording: its folder.
      encoders: work folders of trainings, encoder folders or published `.pth` files.
      readout: of the recording; None finds it by name or number of neurons.
      published: with the published quirks.
      responses: keep the responses of every encoder.
      chunk: pixels on the device at once.

    Raises:
      NeuroreconError: anything that can't be read or written or doesn't fit, or no neuron responds.
    """
    source = open_recording(recording)
    ensemble = ensemble_of(list(encoders))
    readout = ensemble.readout(source, 0) if readout is None else readout
    behaviour = _published_behaviour(source) if published else source.behaviour_mean()
    folder = Path(workdir) / "receptive_fields"
    mean: list[Any] = []
    single = []
    reference = "before" if published else "blank"
    for model, member in enumerate(ensemble.members):  # one at a time: their responses are large
        _check_fit(source, member[0], readout)
        with tqdm(desc=f"encoder {model}", unit="pixel", mininterval=2.0) as bar:
            found = probe_pixels(
                [member],
                behaviour,
                readout=readout,
                padding=PUBLISHED_PADDING if published else None,
                chunk=chunk,
                on_chunk=functools.partial(_show, bar),
            )
        if responses:
            save_npy(folder / f"{source.name}_model{model}.npy", found.responses[0])
        fields = receptive_field_maps(found, reference=reference)
        single.append((fields.responsive, fields.peaks, fields.strength, _population(fields)))
        share = [x / len(ensemble.members) for x in found]
        mean = [a + b for a, b in zip(mean, share)] if mean else share
    fields = receptive_field_maps(PixelResponses(*mean), reference=reference)
    population = {name: population_receptive_field(fields, name) for name in ("peaks", "mean")}
    path = folder / f"{source.name}.npz"
    save_npz(
        path,
        **fields._asdict(),
        population_peaks=population["peaks"],
        population_mean=population["mean"],
        **{f"model_{name}": np.stack(values) for name, values in zip(SINGLE, zip(*single))},
    )
    with atomic_path(path.with_suffix(".png")) as temporary:
        picture(fields, population, source.name).savefig(temporary, dpi=120)
    return path


def picture(fields: ReceptiveFieldMaps, population: dict[str, np.ndarray], title: str) -> Figure:
    """The population's maps and those of the neurons that respond the most, bright pixels above, dark ones below."""
    order = np.argsort(-np.where(fields.responsive, fields.strength, 0).max(0), kind="stable")
    neurons = [int(n) for n in order[:EXAMPLES] if fields.responsive[:, n].any()]
    columns = [("where neurons peak", population["peaks"], "neurons"), ("mean map", population["mean"], "of maximum")]
    columns += [(f"neuron {n}", fields.maps[..., n], "of maximum") for n in neurons]
    height, width = population["peaks"].shape[1:]
    inch = 2.4
    figure = Figure(figsize=(inch * len(columns) + 0.6, 2 * inch * height / width + 1.5), layout="constrained")
    axes = figure.subplots(2, len(columns), squeeze=False)
    for column, (name, maps, unit) in enumerate(columns):
        top = maps.max()  # one scale for both polarities
        for polarity, values in enumerate(maps):
            ax = axes[polarity, column]
            image = ax.imshow(values, vmin=0, vmax=top, cmap="viridis", interpolation="nearest")
            ax.set_xticks([]), ax.set_yticks([])
            if polarity == 0:
                ax.set_title(name, fontsize=9)
            if column == 0:
                share = fields.responsive[polarity].mean()
                ax.set_ylabel(f"{POLARITIES[polarity]} pixel\n{share:.0%} respond", fontsize=9)
        figure.colorbar(image, ax=list(axes[:, column]), location="bottom", shrink=0.8, label=unit)
    figure.suptitle(f"Receptive fields, {title}", fontsize=10)
    return figure


def _population(fields: ReceptiveFieldMaps) -> np.ndarray:
    """Peaks of one encoder; zeros where none of its neurons responds, as the others' may."""
    if not fields.responsive.any():
        return np.zeros(fields.maps.shape[:3], np.float32)
    return population_receptive_field(fields, "peaks")


def _check_fit(source: Recording, encoder: Any, readout: int) -> None:
    sizes = list(encoder.num_neurons)
    if not 0 <= readout < len(sizes) or sizes[readout] != source.num_neurons:
        raise NeuroreconError(
            f"--readout: expected one of {source.num_neurons} neurons as {source.name} has, found number {readout} "
            f"of {sizes}"
        )


def _published_behaviour(source: Recording) -> np.ndarray:
    """The means that the published code reads; where they keep a time axis, their maximum over it."""
    means = []
    for kind in ("behavior", "pupil_center"):
        statistics = source.statistics(kind)
        if "mean" not in statistics:
            raise NeuroreconError(
                f"{source.path}/meta/statistics/{kind}/all/mean.npy: expected it for --published, found no such file"
            )
        mean = statistics["mean"]
        means.append(np.nanmax(mean.reshape(len(mean), -1), axis=1))
    return np.concatenate(means)


def _show(bar: tqdm, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]}")
    logging.set_verbosity(logging.WARNING)
    values = flags.FLAGS
    try:
        path = receptive_fields(
            values.workdir,
            values.recording,
            values.encoders or [values.workdir],
            readout=values.readout,
            published=values.published,
            responses=values.responses,
            chunk=values.chunk,
        )
    except NeuroreconError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(path)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder to write receptive_fields/ into", required=True)
    flags.DEFINE_string("recording", None, "folder of the animal's recording", required=True)
    flags.DEFINE_multi_string("encoders", None, "a training's work folder, an encoder or a .pth file; default: workdir")
    flags.DEFINE_integer("readout", None, "the recording's readout; default: by name or number of neurons")
    flags.DEFINE_bool("published", False, "with the quirks of the published code")
    flags.DEFINE_bool("responses", False, "also write every encoder's responses")
    flags.DEFINE_integer("chunk", 32, "pixels on the device at once")
    app.run(main)
