"""Makes the films and the page of a work folder, again from what is there.

    python -m experiments.report --workdir runs/mine

Of a reconstruction or of a training; the studies that were made there are on the page too. Writes WORKDIR/report.html,
and for reconstructed clips WORKDIR/movies/ANIMAL_TRIAL.mp4 (true, reconstructed and what else there is, side by side),
the reconstruction alone as WORKDIR/movies/ANIMAL_TRIAL.tiff, and WORKDIR/film_strip.png.
"""

import dataclasses
import importlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from tqdm import tqdm

from experiments import cli
from experiments.evaluate import Clip, evaluate, stored_clips, stored_config
from experiments.evaluate_encoders import evaluate_encoders, is_training
from neurorecon.files import read_json
from neurorecon.reporting import (
    ReportClip,
    difference_panel,
    film_strip,
    load_clip,
    spread_frames,
    uncertainty_panel,
    write_movie,
    write_report,
    write_tiff,
)
from neurorecon.reporting.panels import deviation_panel, uncertainty_limit
from neurorecon.reporting.studies import read_studies
from neurorecon.runs import load_arrays

FILMS = 12  # on the page; the table holds every clip
CONFIGS = ("base", "demo", "salamander", "bauer2026")


def report(workdir: str) -> Path:
    """Writes films and page from what a reconstruction or a training left in its work folder; returns the page's path.

    Scores that are missing are computed first.

    Raises:
      NeuroreconError: nothing is there, or a file is damaged.
    """
    folder = Path(workdir)
    config = stored_config(workdir)
    shown: list[ReportClip] = []
    metrics: dict[str, Any] = {}
    versions = None
    if is_training(workdir) and not (folder / "reconstructions").is_dir():
        scored = folder / "encoder_metrics.json"
        versions = (read_json(scored) if scored.is_file() else evaluate_encoders(workdir, config))["versions"]
    else:
        shown, metrics = _clips(folder, config)
    elsewhere = [Path(path) for path in cli.listed(config.encoders)]
    return write_report(
        folder,
        shown,
        metrics,
        config.to_dict(),
        training_folders=[path for path in elsewhere if path.is_dir()],
        commands={study.name: study_command(study.name, study.config, workdir) for study in read_studies(folder)},
        versions=versions,
    )


def _clips(folder: Path, config: ml_collections.ConfigDict) -> tuple[list[ReportClip], dict[str, Any]]:
    """The clips for the page, their films and the film strip written; and the scores of all."""
    metrics = read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {"clips": []}
    clips = list(stored_clips(str(folder), config))
    if [(c["animal"], c["trial"]) for c in metrics["clips"]] != [(c.animal, c.trial) for c in clips]:
        metrics = evaluate(str(folder))  # clips came after the scores
    scores = {(c["animal"], c["trial"]): c for c in metrics["clips"]}
    shown: list[ReportClip] = []
    for stored in tqdm(clips, desc="report", unit="film", mininterval=2.0):
        clip = _with_film(folder, stored, scores[stored.animal, stored.trial])
        if len(shown) < FILMS:
            shown.append(clip)
    # One of the middle, neither the best nor the worst.
    by_score = sorted(shown, key=lambda c: float(scores[c.animal, c.trial]["movie_correlation"]))
    typical = by_score[len(by_score) // 2]
    film_strip(
        typical.truth,
        typical.movie,
        typical.mask,
        folder / "film_strip.png",
        frames=spread_frames(len(typical.truth), 8, config.skip_frames),
        frame_rate=typical.frame_rate,
        linear_decoder=typical.linear_decoder,
    )
    return shown, metrics


def _with_film(folder: Path, stored: Clip, scores: Mapping[str, Any]) -> ReportClip:
    """A clip with what there is to show of it; its mp4 and tiff are written unless they are there."""
    numbers = {k: v for k, v in scores.items() if isinstance(v, float)}
    clip = load_clip(stored.path, stored.truth, frame_rate=stored.frame_rate, scores=numbers)
    decoded = folder / "controls" / "linear_decoder" / stored.animal / f"{stored.trial}.npz"
    if decoded.is_file():
        clip = dataclasses.replace(clip, linear_decoder=load_arrays(decoded)["movie"])
    name = folder / "movies" / f"{stored.animal}_{stored.trial}"
    if not name.with_suffix(".tiff").is_file():
        panels: dict[str, np.ndarray] = {
            "true": clip.truth,
            "reconstructed": clip.movie,
            "difference": difference_panel(clip.truth, clip.movie),
        }
        if clip.linear_decoder is not None:
            panels["linear decoder"] = clip.linear_decoder
        if clip.movie_std is not None:
            panels["uncertainty"] = uncertainty_panel(clip.movie_std, uncertainty_limit(clip.movie_std))
        if clip.deviation is not None:
            panels["deviation"] = deviation_panel(clip.deviation)
        write_movie(name.with_suffix(".mp4"), panels, clip.frame_rate, clip.mask)
        write_tiff(name.with_suffix(".tiff"), clip.movie, clip.frame_rate)
    return clip


def study_command(name: str, config: Mapping[str, Any], workdir: str) -> str:
    """The command that makes a study again: the config file nearest to its config, and the keys that differ.

    Keys that the study took from the work folder are left out, and those that are no longer there.
    """
    path = Path(workdir) / "jobs.json"
    begun = read_json(path) if path.is_file() else {}
    jobs = [begun[name] for name in ("reconstruct", "train") if name in begun]
    taken = {key: {"", *(job.get(key) for job in jobs)} for key in ("recordings", "encoders")}
    taken["encoders"].add(workdir)
    asked = _flat(config)
    candidates = []
    for file in CONFIGS:
        known = _flat(importlib.import_module(f"experiments.configs.{file}").get_config().to_dict())
        changed = {k: v for k, v in asked.items() if v != known.get(k, v) and v not in taken.get(k, ())}
        candidates.append((len(changed), CONFIGS.index(file), changed))
    _, file_index, changes = min(candidates)
    flags = [f"--config.{key}={shlex.quote(str(value))}" for key, value in changes.items()]
    parts = [f"python -m experiments.{name}", f"--config experiments/configs/{CONFIGS[file_index]}.py", *flags]
    return " ".join([*parts, f"--workdir {shlex.quote(workdir)}"])


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = tuple(value) if isinstance(value, list | tuple) else value
    return found


def main(config: None, workdir: str) -> None:
    del config  # it is in the work folder
    print(report(workdir))


if __name__ == "__main__":
    cli.run(main, __doc__, config=None)
