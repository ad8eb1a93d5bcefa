"""One clip of the report: its film (all panels in one mp4, so never out of step), mask and curves."""

import dataclasses
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.movie_metrics import frame_correlations
from neurorecon.reporting.charts import Chart, data_uri, line_chart
from neurorecon.reporting.figures import film_strip_image, spread_frames
from neurorecon.reporting.movies import write_mp4
from neurorecon.reporting.panels import (
    DEVIATION_LIMIT,
    DIFFERENCE_LIMIT,
    check_deviation,
    check_mask,
    check_movie,
    deviation_panel,
    difference_panel,
    enlarge,
    grey_panel,
    uncertainty_limit,
    uncertainty_panel,
)
from neurorecon.reporting.scores import number, words


@dataclasses.dataclass(frozen=True)
class ReportClip:
    """One reconstructed clip beside its truth.

    Attributes:
      animal, trial: names, as in metrics.json.
      truth: (time, height, width), grey values 0..255.
      movie: the reconstruction, same shape.
      mask: (height, width) bool, the evaluation mask.
      movie_std: same shape as movie, grey values, or None.
      deviation: same shape as movie, z-scores (see neurorecon.evaluation.local_gain), NaN where not defined, or None.
      linear_decoder: same shape as movie, or None.
      trace: name -> (step,) or (step, ...); further axes are averaged for the plot.
      frame_rate: frames per second.
      scores: the clip's entry of metrics.json.
    """

    animal: str
    trial: str
    truth: np.ndarray
    movie: np.ndarray
    mask: np.ndarray
    movie_std: np.ndarray | None = None
    deviation: np.ndarray | None = None
    linear_decoder: np.ndarray | None = None
    trace: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    frame_rate: float = 30.0
    scores: Mapping[str, object] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.animal}, trial {self.trial}"


def load_clip(
    path: str | os.PathLike, truth: np.ndarray, *, frame_rate: float, scores: Mapping[str, object]
) -> ReportClip:
    """Reads `reconstructions/ANIMAL/TRIAL.npz`; arrays called `trace_NAME` become `trace[NAME]`.

    Raises:
      NeuroreconError: the file is missing, damaged or lacks movie, mask, animal or trial.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise NeuroreconError(f"{path}: no such file; reconstruct the clip first") from None
    except Exception as error:
        raise NeuroreconError(f"{path}: expected an npz, but it can't be read ({error}); delete it") from error
    missing = [name for name in ("movie", "mask", "animal", "trial") if name not in arrays]
    if missing:
        raise NeuroreconError(f"{path}: expected arrays movie, mask, animal and trial, found no {', '.join(missing)}")
    return ReportClip(
        animal=str(arrays["animal"]),
        trial=str(arrays["trial"]),
        truth=truth,
        movie=arrays["movie"],
        mask=arrays["mask"],
        movie_std=arrays.get("movie_std"),
        deviation=arrays.get("deviation"),
        linear_decoder=arrays.get("linear_decoder"),
        trace={name.removeprefix("trace_"): a for name, a in arrays.items() if name.startswith("trace_")},
        frame_rate=frame_rate,
        scores=scores,
    )


@dataclasses.dataclass(frozen=True)
class Panel:
    """A panel of the film: its label, and what its colours mean."""

    label: str
    legend: str = ""
    low: str = ""
    high: str = ""
    bar: str = ""


@dataclasses.dataclass(frozen=True)
class Film:
    """What page.html.jinja needs of one clip. Cell sizes are pixels of the encoded video."""

    clip: ReportClip
    panels: list[Panel]
    video: str
    cell_width: int
    cell_height: int
    num_frames: int
    total_frames: int
    mask: "MaskOutline"
    chart: Chart | None
    correlations: str
    strip: str

    @property
    def scores(self) -> list[tuple[str, str, str]]:
        """(label, explanation, value) of every number that metrics.json has for this clip."""
        numbers = {k: v for k, v in self.clip.scores.items() if v is None or isinstance(v, int | float)}
        return [(*words(name), number(value)) for name, value in numbers.items() if name not in ("animal", "trial")]

    @property
    def height(self) -> int:
        return self.clip.truth.shape[1]

    @property
    def width(self) -> int:
        return self.clip.truth.shape[2]


@dataclasses.dataclass(frozen=True)
class MaskOutline:
    """SVG paths in movie pixels: `outside` to fill (even-odd), `edge` to stroke; and what the mask keeps."""

    outside: str
    edge: str
    num_pixels: int
    num_all: int


def check_clip(clip: ReportClip) -> None:
    """Raises NeuroreconError unless the clip's movies are finite and of one shape, and its mask fits them."""
    movies = {"true movie": clip.truth, "reconstructed movie": clip.movie}
    movies |= {"linear decoder": clip.linear_decoder} if clip.linear_decoder is not None else {}
    movies |= {"movie_std": clip.movie_std} if clip.movie_std is not None else {}
    movies |= {"deviation": clip.deviation} if clip.deviation is not None else {}
    for name, movie in movies.items():
        check = check_deviation if name == "deviation" else check_movie
        shape = check(movie, f"{clip.name}, {name}").shape
        if shape != np.shape(clip.truth):
            raise NeuroreconError(
                f"{clip.name}, {name}: expected the true movie's shape {np.shape(clip.truth)}, found "
                f"{shape}; report the recording that was reconstructed"
            )
    check_mask(clip.mask, clip.truth.shape[1:], f"{clip.name}, mask")


def make_film(clip: ReportClip, skip_frames: int, max_frames: int) -> Film:
    """Encodes the film of a clip and draws its curves; one longer than `max_frames` shows its beginning."""
    check_clip(clip)
    shown = slice(0, max_frames)
    panels = {
        Panel("True"): grey_panel(clip.truth[shown]),
        Panel("Reconstructed"): grey_panel(clip.movie[shown]),
        Panel(
            "Difference",
            "reconstructed minus true, in grey values",
            f"−{DIFFERENCE_LIMIT:.0f}",
            f"+{DIFFERENCE_LIMIT:.0f}",
            "diverging",
        ): difference_panel(clip.truth[shown], clip.movie[shown]),
    }
    if clip.linear_decoder is not None:
        panels[Panel("Linear decoder")] = grey_panel(clip.linear_decoder[shown])
    if clip.movie_std is not None:
        limit = uncertainty_limit(clip.movie_std)
        colours = uncertainty_panel(clip.movie_std[shown], limit)
        panels[Panel("Uncertainty", "standard deviation, in grey values", "0", f"{limit:.0f}", "sequential")] = colours
    if clip.deviation is not None:
        hint = "where the activity departs from what the screen should have given, in standard deviations"
        ends = f"−{DEVIATION_LIMIT:.0f}", f"+{DEVIATION_LIMIT:.0f} z"
        panels[Panel("Deviation", hint, *ends, "deviating")] = deviation_panel(clip.deviation[shown])
    num_frames, height, width = next(iter(panels.values())).shape[:3]
    scale = max(1, round(128 / width))
    cell_width, cell_height = (side * scale + (side * scale) % 2 for side in (width, height))

    def frames() -> Iterator[np.ndarray]:
        row = np.full((cell_height, cell_width * len(panels), 3), 128, np.uint8)
        for time in range(num_frames):
            for index, panel in enumerate(panels.values()):
                left = index * cell_width
                row[: height * scale, left : left + width * scale] = enlarge(panel[time], scale)
            yield row

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        write_mp4(path, frames(), clip.frame_rate)
        video = data_uri("video/mp4", path.read_bytes())
    chart, correlations = _correlation_chart(clip, skip_frames)
    return Film(
        clip=clip,
        panels=list(panels),
        video=video,
        cell_width=cell_width,
        cell_height=cell_height,
        num_frames=num_frames,
        total_frames=clip.truth.shape[0],
        mask=mask_outline(clip.mask),
        chart=chart,
        correlations=correlations,
        strip=_strip(clip, skip_frames),
    )


def mask_outline(mask: np.ndarray) -> MaskOutline:
    """The mask as SVG paths, exact to the pixel."""
    mask = np.asarray(mask, bool)
    height, width = mask.shape
    outside = []
    for y, row in enumerate(mask):
        starts = np.flatnonzero(np.diff(np.concatenate([[0], ~row, [0]]).astype(int)))
        outside += [f"M{a} {y}h{b - a}v1h{a - b}z" for a, b in zip(starts[::2], starts[1::2], strict=True)]
    edge = [f"M{x + 1} {y}v1" for y, x in zip(*np.nonzero(mask[:, 1:] != mask[:, :-1]), strict=True)]
    edge += [f"M{x} {y + 1}h1" for y, x in zip(*np.nonzero(mask[1:] != mask[:-1]), strict=True)]
    return MaskOutline("".join(outside), "".join(edge), int(mask.sum()), height * width)


def png_uri(image: Image.Image) -> str:
    """A PIL image as a PNG data URI."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return data_uri("image/png", buffer.getvalue())


def _correlation_chart(clip: ReportClip, skip_frames: int) -> tuple[Chart | None, str]:
    num_frames = clip.truth.shape[0]
    time = np.arange(num_frames) / clip.frame_rate
    curves = {"Reconstruction": frame_correlations(clip.truth, clip.movie, clip.mask)}
    if clip.linear_decoder is not None:
        curves["Linear decoder"] = frame_correlations(clip.truth, clip.linear_decoder, clip.mask)
    chart = line_chart(
        "Correlation in each frame, inside the mask",
        [time] * len(curves),
        list(curves.values()),
        list(curves),
        x_label="time (s)",
        y_label="correlation",
        file=f"correlation_{clip.animal}_{clip.trial}.csv",
        shade_until=skip_frames / clip.frame_rate,
        x_range=(0.0, num_frames / clip.frame_rate),
        include=(0.0,),
    )
    values = [round(float(r), 3) if np.isfinite(r) else None for r in curves["Reconstruction"]]
    return chart, json.dumps(values, separators=(",", ":"))


def _strip(clip: ReportClip, skip_frames: int) -> str:
    image = film_strip_image(
        clip.truth,
        clip.movie,
        clip.mask,
        frames=spread_frames(clip.truth.shape[0], 6, skip_frames),
        frame_rate=clip.frame_rate,
        linear_decoder=clip.linear_decoder,
    )
    return png_uri(image.quantize(128, dither=Image.Dither.NONE))
