"""One self-contained HTML page for a work folder. It reads files and arrays; it computes no model output."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib import colormaps
from PIL import Image

from neurorecon import __version__
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.decodable import pixel_correlations
from neurorecon.files import atomic_path
from neurorecon.reporting.charts import Chart, ChartGroup, line_chart
from neurorecon.reporting.encoder_scores import encoder_sections
from neurorecon.reporting.films import MaskOutline, ReportClip, check_clip, load_clip, make_film, mask_outline, png_uri
from neurorecon.reporting.intervals import interval_chart
from neurorecon.reporting.panels import UNCERTAINTY_COLOURS
from neurorecon.reporting.scores import (
    Score,
    control_score,
    duration,
    finite,
    headline_scores,
    number,
    summary_score,
    words,
)
from neurorecon.reporting.study_sections import study_sections
from neurorecon.reporting.tables import clip_table
from neurorecon.reporting.training_logs import training_curves

__all__ = ["ReportClip", "load_clip", "write_report"]

HERE = Path(__file__).parent
TITLES = ("Movies reconstructed from neural activity", "Encoders: neural responses predicted from movies")
PAPER_SKIP = 30  # contract: scores are over frames 30 and later unless config.skip_frames says otherwise
MAX_FILM_FRAMES = 900
TRAINING_POINTS = 120
FILMS_AT_ONCE = 3  # further ones unfold
STILL = 1e-3  # grey values
TRAINING_HINTS = {"loss": "lower is better", "correlation": "higher is better; validation clips"}


@dataclasses.dataclass(frozen=True)
class AnimalMap:
    """Where an animal's population looks, and where its reconstructions follow the movie."""

    animal: str
    num_clips: int
    mask: MaskOutline
    height: int
    width: int
    mean_frame: str
    correlation: str
    inside: float | None
    outside: float | None


def write_report(
    workdir: str | os.PathLike,
    clips: Sequence[ReportClip],
    metrics: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    title: str | None = None,
    path: str | os.PathLike | None = None,
    training_folders: Sequence[str | os.PathLike] = (),
    commands: Mapping[str, str] | None = None,
    versions: Mapping[str, str] | None = None,
    max_film_frames: int = MAX_FILM_FRAMES,
) -> Path:
    """Writes the report of a work folder as one HTML file that loads nothing else.

    Args:
      workdir: the work folder. Read from it: studies/; encoder_metrics.json, and metrics.jsonl, there or in its
        `training` folder, for the encoders.
      clips: the clips to show as films; empty where only encoders were trained, which must have been scored then.
      metrics: what metrics.json holds: `clips`, `summary`, `controls`, and where there, `differences`,
        `cost`, `versions`; not looked at without clips.
      config: the configuration of the job, printed as it is.
      title: heading of the page; None: what it shows.
      path: where to write; None means WORKDIR/report.html.
      training_folders: further folders with encoder_metrics.json or metrics.jsonl, as when the encoders were trained
        elsewhere.
      commands: study -> the command that makes it again.
      versions: name -> version, of the job; None: those in `metrics`.
      max_film_frames: a longer clip shows its beginning as film; its curves and scores are whole.

    Returns:
      The path written.

    Raises:
      NeuroreconError: neither clips nor scored encoders, movies that differ in shape or aren't finite, metrics without
        a summary of movie_correlation, a study that can't be read, a disk that can't be written.
    """
    workdir = Path(workdir)
    path = workdir / "report.html" if path is None else Path(path)
    folders = [workdir, workdir / "training", *training_folders]
    encoders = encoder_sections(folders)
    if not clips and not encoders:
        raise NeuroreconError(
            f"{workdir}: expected a reconstructed clip or scored encoders to report, found none; run "
            "experiments.reconstruct, or experiments.evaluate on a training"
        )
    for clip in clips:
        check_clip(clip)
    skip_frames = int(config.get("skip_frames", PAPER_SKIP))
    shown = _clip_parts(clips, metrics if clips else {}, skip_frames, max_film_frames)
    html = _template().render(
        title=title or TITLES[0 if clips else 1],
        css=Markup((HERE / "page.css").read_text()),
        js=Markup((HERE / "page.js").read_text()),
        animals=sorted({c.animal for c in clips} or {name for section in encoders for name in section.animal_names}),
        **shown,
        encoders=encoders,
        training=ChartGroup(_training_charts(folders)),
        studies=study_sections(workdir, commands or {}),
        versions=versions or metrics.get("versions") or {},
        program=__version__,
        config=json.dumps(_plain(config), indent=2, default=str),
        films_at_once=FILMS_AT_ONCE,
        skip_frames=skip_frames,
        skip_seconds=f"{skip_frames / clips[0].frame_rate:g}" if clips else "",
    )
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def _clip_parts(
    clips: Sequence[ReportClip], metrics: Mapping[str, Any], skip_frames: int, max_film_frames: int
) -> dict[str, Any]:
    """What the page tells of reconstructed clips; empty where there are none."""
    scores = headline_scores(metrics) if clips else []
    films = [make_film(clip, skip_frames, max_film_frames) for clip in clips]
    rows = list(metrics.get("clips") or [])
    anchors = {(film.clip.animal, film.clip.trial): f"#clip-{index}" for index, film in enumerate(films)}
    return {
        "sentence": _sentence(scores, len(rows) or len(films)) if clips else "",
        "headline": interval_chart(scores, [finite(row.get("movie_correlation")) for row in rows]),
        "films": films,
        "legends": list({panel.label: panel for film in films for panel in film.panels if panel.legend}.values()),
        "traces": ChartGroup(_trace_charts(clips)),
        "maps": _animal_maps(clips, skip_frames),
        "table": clip_table(rows, anchors),
        "summary": [summary_score(name, entry) for name, entry in (metrics.get("summary") or {}).items()],
        "differences": {name: control_score(name, entry) for name, entry in (metrics.get("differences") or {}).items()},
        "cost": _cost(metrics.get("cost") or {}),
    }


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["number"] = number
    return environment.get_template("page.html.jinja")


def _sentence(scores: Sequence[Score], num_clips: int) -> str:
    """The finding in one sentence, numbers only."""
    first, rest = scores[0], [score for score in scores[1:] if score.mean is not None]
    interval = f" (95 % interval {number(first.low)} to {number(first.high)})" if first.low is not None else ""
    over = "one clip" if num_clips == 1 else f"{num_clips} clips"
    text = f"The reconstructed movies correlate {number(first.mean)}{interval} with the true ones, over {over}"
    if rest:
        text += "; " + ", ".join(f"{score.label.lower()} {number(score.mean)}" for score in rest)
    return text + "."


def _trace_charts(clips: Sequence[ReportClip]) -> list[Chart]:
    """One chart per named trace, one line per clip, losses first; those per window are left out."""
    names = list(dict.fromkeys(name for clip in clips for name in clip.trace if not name.startswith("window_")))
    charts = []
    for name in sorted(names, key=lambda name: (name != "loss", "loss" not in name, names.index(name))):
        traces = {clip.name: np.asarray(clip.trace[name], float) for clip in clips if name in clip.trace}
        curves = {k: v.reshape(len(v), -1).mean(axis=1) for k, v in traces.items() if v.ndim and len(v) > 1}
        if not curves:
            continue
        chart = line_chart(
            words(name)[0],
            [np.arange(len(curve)) for curve in curves.values()],
            list(curves.values()),
            list(curves),
            x_label="update",
            y_label=words(name)[0],
            file=f"trace_{name}.csv",
        )
        charts += [chart] if chart else []
    return charts


def _training_charts(folders: Sequence[str | os.PathLike]) -> list[Chart]:
    charts = []
    for name, models in training_curves(folders).items():
        hint = next((hint for part, hint in TRAINING_HINTS.items() if part in name), "")
        every = max(-(-len(steps) // TRAINING_POINTS) for steps, _ in models.values())
        curves = {label: _means(*curve, every) for label, curve in models.items()}
        chart = line_chart(
            words(name)[0],
            [steps for steps, _ in curves.values()],
            [values for _, values in curves.values()],
            list(curves),
            x_label="training step",
            y_label=words(name)[0],
            file=f"training_{name}.csv",
            hint=hint + (f"; means of {every} steps" if every > 1 else ""),
        )
        charts += [chart] if chart else []
    return charts


def _means(steps: np.ndarray, values: np.ndarray, every: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of `every` values in a row, at the last step of each."""
    starts = np.arange(0, len(steps), every)
    sizes = np.diff(np.append(starts, len(steps)))
    return steps[starts + sizes - 1], np.add.reduceat(values, starts) / sizes


def _animal_maps(clips: Sequence[ReportClip], skip_frames: int) -> list[AnimalMap]:
    maps = []
    for animal in dict.fromkeys(clip.animal for clip in clips):
        own = [clip for clip in clips if clip.animal == animal]
        skips = [skip_frames if skip_frames < len(clip.truth) - 1 else 0 for clip in own]
        truths = [clip.truth[skip:] for clip, skip in zip(own, skips, strict=True)]
        movies = [clip.movie[skip:] for clip, skip in zip(own, skips, strict=True)]
        # A pixel that was never updated keeps its grey, to within rounding: it has no course to correlate.
        still = np.all([np.ptp(movie, axis=0) < STILL for movie in movies], axis=0)
        correlation = np.where(still, np.nan, pixel_correlations(truths, movies))
        mean_frame = np.mean([np.mean(clip.truth, axis=0) for clip in own], axis=0)
        mask = np.asarray(own[0].mask, bool)
        means = [correlation[where][np.isfinite(correlation[where])] for where in (mask, ~mask)]
        inside, outside = (float(values.mean()) if values.size else None for values in means)
        maps.append(
            AnimalMap(
                animal=animal,
                num_clips=len(own),
                mask=mask_outline(mask),
                height=mask.shape[0],
                width=mask.shape[1],
                mean_frame=png_uri(Image.fromarray(np.clip(np.rint(mean_frame), 0, 255).astype(np.uint8))),
                correlation=png_uri(_heat_map(correlation)),
                inside=inside,
                outside=outside,
            )
        )
    return maps


def _heat_map(correlation: np.ndarray) -> Image.Image:
    """Correlations from 0 (and below) to 1 in cividis; transparent where not defined."""
    colours = colormaps[UNCERTAINTY_COLOURS](np.clip(np.where(np.isfinite(correlation), correlation, 0), 0, 1))
    colours[..., 3] = np.isfinite(correlation)
    return Image.fromarray((colours * 255).round().astype(np.uint8))


def _cost(cost: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, value in cost.items():
        if name == "encoder_windows":
            rows.append(("Encoder windows, forward and back", number(value)))
        elif name == "seconds":
            rows.append(("Time", duration(value)))
        else:
            rows.append((words(name)[0], number(value) if isinstance(value, int | float) else str(value)))
    return rows


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return value
