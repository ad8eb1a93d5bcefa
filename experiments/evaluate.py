"""Scores the reconstructions in a work folder beside their controls, again from what is there; or its encoders.

    python -m experiments.evaluate --workdir runs/mine

Writes WORKDIR/metrics.json: scores are over the evaluation mask and from frame config.skip_frames on. Where encoders
were trained in the folder, writes WORKDIR/encoder_metrics.json and encoder_metrics/ANIMAL.npz: their correlation with
responses on the trials of config.tier, alone and in ensembles of 1, 2, 4, ..., beside baselines.
--linear_nonlinear=train adds a linear-nonlinear encoder, trained in WORKDIR/linear_nonlinear on the same trials, and
--linear_nonlinear=FOLDER takes it from there; the one in WORKDIR/linear_nonlinear is always compared with.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from absl import flags

from experiments import cli
from experiments.evaluate_encoders import encoder_table, evaluate_encoders, is_training
from experiments.inputs import recordings_of
from neurorecon import runs
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation import bootstrap_difference, grey_movie, interval_coverage, movie_metrics
from neurorecon.evaluation.bootstrap import summarise
from neurorecon.evaluation.decodable import smoothed_correlation, smoothed_movie
from neurorecon.files import read_json, save_json

ORDER = ("grey", "prior_alone", "shuffled_neurons", "linear_decoder", "convolutional_decoder", "ceiling")
ADDED = ("convolutional_decoder",)  # by an entry point of its own, after the reconstruction
SEED = 0  # of the bootstrap: the same scores give the same intervals


class Clip(NamedTuple):
    """A reconstructed clip, and the movie that was shown.

    Attributes:
      animal, trial: which.
      path: of its `.npz`.
      truth: (time, height, width).
      frame_rate: of the recording, Hz.
    """

    animal: str
    trial: str
    path: Path
    truth: np.ndarray
    frame_rate: float


class Pooled:
    """Correlation over the pixels x frames of all clips together, plain and after smoothing in time (sigma 2 frames).

    For one long recording cut into trials, whose cuts mean nothing. Kept as sums: no movie is held.
    """

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, np.ndarray]] = {}

    def add(self, name: str, truth: np.ndarray, movie: np.ndarray, mask: np.ndarray) -> None:
        """Adds a clip, (time, height, width), inside the mask (height, width)."""
        pairs = {"plain": (truth, movie), "smoothed": (smoothed_movie(truth, 2.0), smoothed_movie(movie, 2.0))}
        for kind, (x, y) in pairs.items():
            x, y = (np.asarray(z, np.float64)[:, mask].ravel() for z in (x, y))
            sums = np.array([x.size, x.sum(), y.sum(), x @ x, y @ y, x @ y])
            kinds = self._sums.setdefault(name, {})
            kinds[kind] = kinds.get(kind, 0.0) + sums

    def scores(self) -> dict[str, dict[str, float]]:
        """name -> plain and smoothed correlation; 0 for a constant movie, which tells nothing."""

        def correlation(sums: np.ndarray) -> float:
            n, x, y, xx, yy, xy = sums
            scale = (xx - x * x / n) * (yy - y * y / n)
            return float((xy - x * y / n) / np.sqrt(scale)) if scale > 1e-6 * xx * yy / n else 0.0

        return {name: {kind: correlation(s) for kind, s in kinds.items()} for name, kinds in self._sums.items()}


def stored_config(workdir: str) -> ml_collections.ConfigDict:
    """The config of a work folder.

    Raises:
      NeuroreconError: there is none, or it is damaged.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise NeuroreconError(
            f"--workdir {workdir}: expected the work folder of a reconstruction or training, found no config.json"
        )
    return cli.checked(ml_collections.ConfigDict(read_json(path)))


def stored_clips(workdir: str, config: ml_collections.ConfigDict) -> Iterator[Clip]:
    """The reconstructed clips in a work folder, in the order of the recordings and trials.

    Raises:
      NeuroreconError: no clip, or a recording that can't be read.
    """
    found = False
    for recording in recordings_of(config):
        folder = Path(workdir) / "reconstructions" / recording.name
        paths = [p for p in folder.glob("*.npz") if p.stem.isdigit()]
        for path in sorted(paths, key=lambda p: int(p.stem)):
            found = True
            yield Clip(recording.name, path.stem, path, recording.trial(path.stem).stimulus, recording.frame_rate)
    if not found:
        raise NeuroreconError(f"{workdir}: expected reconstructions/ANIMAL/TRIAL.npz, found none; reconstruct first")


def evaluate(workdir: str) -> dict[str, Any]:
    """Scores every clip and control in a work folder; writes and returns what stands in metrics.json.

    Raises:
      NeuroreconError: no reconstruction is there, or a file is damaged.
    """
    config = stored_config(workdir)
    skip = config.skip_frames
    clips: list[dict[str, Any]] = []
    asked = {*cli.listed(config.controls), *(n for n in ADDED if (Path(workdir) / "controls" / n).is_dir())}
    controls: dict[str, list[float]] = {name: [] for name in ORDER if name in asked}
    cost = {"encoder_windows": 0.0, "seconds": 0.0}
    pooled = Pooled()
    for clip in stored_clips(workdir, config):
        stored = runs.load_arrays(clip.path)
        truth, mask = clip.truth[skip:], stored["mask"]
        if len(truth) < 2:
            raise NeuroreconError(
                f"--config.skip_frames: expected less than the {len(clip.truth)} frames of {clip.path}"
            )
        scores = movie_metrics(truth, stored["movie"][skip:], mask)
        scores["smoothed_correlation"] = smoothed_correlation(truth, stored["movie"][skip:], mask)
        row: dict[str, Any] = {"animal": clip.animal, "trial": clip.trial, **scores}
        row |= {k: float(stored[k]) for k in cost}
        if "movie_std" in stored:
            covered = interval_coverage(truth, stored["movie"][skip:], stored["movie_std"][skip:], mask)
            row |= {f"coverage_{round(100 * level)}": share for level, share in covered.items()}
        cost = {k: v + row[k] for k, v in cost.items()}
        for name in controls:
            movie = _control(Path(workdir), name, clip)
            if movie is not None:
                row[name] = movie_metrics(truth, movie[skip:], mask)["movie_correlation"]
                controls[name].append(row[name])
                pooled.add(name, truth, movie[skip:], mask)
        pooled.add("reconstruction", truth, stored["movie"][skip:], mask)
        clips.append(row)
    names = [k for k in clips[0] if isinstance(clips[0][k], float) and k not in (*cost, *ORDER)]
    complete = [name for name, values in controls.items() if len(values) == len(clips)]
    metrics = {
        "clips": clips,
        "summary": {name: _summary(clips, name) for name in names},
        "controls": {name: _summary(clips, name) for name in complete},
        "differences": {name: _difference(clips, name) for name in complete if name != "ceiling"},
        "pooled": pooled.scores(),
        "cost": cost,
        "versions": runs.versions(),
        "config": config.to_dict(),
    }
    save_json(Path(workdir) / "metrics.json", metrics)
    return metrics


def _control(workdir: Path, name: str, clip: Clip) -> np.ndarray | None:
    if name == "grey":
        return grey_movie(clip.truth.shape)
    path = workdir / "controls" / name / clip.animal / f"{clip.trial}.npz"
    return runs.load_arrays(path)["movie"] if path.is_file() else None


def _summary(clips: list[dict[str, Any]], name: str) -> dict[str, Any]:
    groups: dict[str, list[float]] = {}
    for clip in clips:
        groups.setdefault(clip["animal"], []).append(clip[name])
    return summarise(groups, seed=SEED)


def _difference(clips: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Reconstruction minus control on the same clips."""
    mean, low, high = bootstrap_difference([c["movie_correlation"] for c in clips], [c[name] for c in clips], seed=SEED)
    return {"mean": mean, "ci95": [low, high]}


def table(metrics: dict[str, Any]) -> str:
    """The scores with their controls, for a terminal."""

    def row(label: str, value: dict[str, Any]) -> str:
        low, high = value["ci95"]
        interval = "" if low is None or not np.isfinite(low) else f"[{low:.3f}, {high:.3f}]"
        return f"  {label:<34}{value['mean']:>8.3f}  {interval}"

    count = len(metrics["clips"])
    lines = [f"Movie correlation inside the mask, {count} clip{'s' * (count != 1)}, mean [95 % interval over clips]"]
    lines.append(row("reconstruction", metrics["summary"]["movie_correlation"]))
    lines += [row(name.replace("_", " "), value) for name, value in metrics["controls"].items()]
    lines += [
        row(f"reconstruction - {name.replace('_', ' ')}", value) for name, value in metrics["differences"].items()
    ]
    for level in (50, 90):
        if f"coverage_{level}" in metrics["summary"]:
            lines.append(row(f"truth inside its {level} % intervals", metrics["summary"][f"coverage_{level}"]))
    cost = metrics["cost"]
    lines.append(f"  cost: {cost['encoder_windows']:.0f} encoder windows, {cost['seconds']:.0f} s")
    return "\n".join(lines)


def main(config: None, workdir: str, linear_nonlinear: str = "") -> None:
    del config  # it is in the work folder
    stored = stored_config(workdir)
    if linear_nonlinear:
        stored.evaluation.linear_nonlinear = linear_nonlinear
    trained = is_training(workdir)
    if not trained or (Path(workdir) / "reconstructions").is_dir():
        print(table(evaluate(workdir)))
    if trained:
        print(encoder_table(evaluate_encoders(workdir, stored)))


if __name__ == "__main__":
    LINEAR = flags.DEFINE_string(
        "linear_nonlinear", "", "Work folder of linear-nonlinear encoders to compare with; 'train': trains them first."
    )
    cli.run(lambda config, workdir: main(config, workdir, LINEAR.value), __doc__, config=None)
