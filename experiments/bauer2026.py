"""The variants of Bauer, Margrie & Clopath (eLife 2026), and their numbers beside the published ones.

    python -m experiments.bauer2026 --workdir runs/bauer2026 --config.data=DATA --config.weights=WEIGHTS

Each variant is a work folder of experiments.reconstruct, WORKDIR/VARIANT/; masks are shared through WORKDIR/masks/.
Writes WORKDIR/table.txt and WORKDIR/table.json. --config.variants=standard,strict_mask runs some of them. Called again,
it goes on where it stopped. See experiments/configs/bauer2026.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from experiments import cli
from experiments.bauer2026_stimuli import score_stimuli
from experiments.inputs import Ensemble, ensemble_of, located, recordings_of
from experiments.reconstruct import reconstruct_recordings
from neurorecon import runs
from neurorecon.encoders import predict_trial
from neurorecon.encoders.canvas import crop_from_canvas
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation import average_movies
from neurorecon.evaluation.bootstrap import summarise
from neurorecon.evaluation.published_movie_metrics import published_frame_correlation, published_movie_correlation
from neurorecon.files import atomic_path, read_json, save_json, save_npz
from neurorecon.recordings import Recording, Trial

VARIANTS: dict[str, dict[str, Any]] = {
    "standard": {},
    "gradients": {"published_recipe.ensemble": "gradients"},
    "no_mask": {"mask.update_threshold": 0.0},  # as published: pixels of negative alpha stay grey even so
    "strict_mask": {"mask.update_threshold": 1.0},
    "predicted": {"responses": "predicted"},
    "neurons_50": {"neurons.share": 0.5},
    "neurons_25": {"neurons.share": 0.25},
    "neurons_12.5": {"neurons.share": 0.125},
    "stimuli": {},  # noise and gratings, see experiments/bauer2026_stimuli.py
}
SMOOTHING = 0.5  # sigma of the final Gaussian in frames and pixels
SEED = 0  # of the bootstrap


class Row(NamedTuple):
    """A line of the paper's table.

    Attributes:
      name: what.
      published: its value.
      variant, score: which of our scores it stands beside; a variant of None is not part of this replication.
      interval: published 95 % interval.
    """

    name: str
    published: float
    variant: str | None = None
    score: str = "movie"
    interval: tuple[float, float] | None = None


ROWS = (
    Row("movie correlation, all models averaged", 0.569, "standard", interval=(0.542, 0.596)),
    Row("frame correlation", 0.512, "standard", "frame"),
    Row("1 model", 0.444, "standard", "models_1"),
    Row("2 models averaged", 0.505, "standard", "models_2"),
    Row("4 models averaged", 0.547, "standard", "models_4"),
    Row("gradients ensembled instead", 0.552, "gradients"),
    Row("no final smoothing", 0.533, "standard", "unsmoothed"),
    Row("no update mask", 0.510, "no_mask"),
    Row("strict mask", 0.551, "strict_mask"),
    Row("whole screen, standard mask (about)", 0.20, "standard", "whole_screen"),
    Row("from predicted responses", 0.766, "predicted"),
    Row("12.5 % of the neurons", 0.344, "neurons_12.5"),
    Row("25 % of the neurons", 0.427, "neurons_25"),
    Row("50 % of the neurons", 0.512, "neurons_50"),
    Row("100 % of the neurons", 0.569, "standard"),
    Row("static-image baseline (Yoshida & Ohki 2020)", 0.238),
    # The published means leave out every animal but the one with most neurons: arrays padded with NaN.
    Row("responses: recorded / predicted from the true movie", 0.379, "standard", "responses_truth_published"),
    Row("responses: recorded / predicted from the reconstruction", 0.442, "standard", "responses_movie_published"),
    Row("  the same over all animals, true movie", float("nan"), "standard", "responses_truth"),
    Row("  the same over all animals, reconstruction", float("nan"), "standard", "responses_movie"),
    Row("Gaussian noise of 8 pixels, 4 frames", 0.91, "stimuli", "noise_8_4"),
    Row("Gaussian noise of 0 pixels, 4 frames", 0.2, "stimuli", "noise_0_4"),
    Row("gratings of 0.018 cycles per degree, static", 0.84, "stimuli", "grating_0.018_0"),
    Row("gratings of 0.036 cycles per degree, static", 0.74, "stimuli", "grating_0.036_0"),
    Row("gratings of 0.071 cycles per degree, static", 0.51, "stimuli", "grating_0.071_0"),
    Row("gratings of 0.143 cycles per degree, static", 0.12, "stimuli", "grating_0.143_0"),
    Row("gratings of 0.018 cycles per degree, 1.88 Hz", 0.77, "stimuli", "grating_0.018_1.875"),
    Row("gratings of 0.018 cycles per degree, 3.75 Hz", 0.34, "stimuli", "grating_0.018_3.75"),
    Row("gratings of 0.018 cycles per degree, 7.5 Hz", -0.02, "stimuli", "grating_0.018_7.5"),
)


def replicate(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
    """Reconstructs in every variant and scores them; writes and returns the table.

    Raises:
      NeuroreconError: bad config, recordings or weights, or a descent that is not finite.
    """
    chosen = cli.listed(config.variants) or list(VARIANTS)
    for variant in chosen:
        if variant not in VARIANTS:
            raise NeuroreconError(f"--config.variants: expected some of {', '.join(VARIANTS)}, found {variant!r}")
    if not config.save_movies or config.recipe != "published":
        raise NeuroreconError("--config: expected recipe 'published' and save_movies, as in configs/bauer2026.py")
    found = located(config)
    recordings = recordings_of(found)
    folder = Path(workdir)
    scores: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for variant in sorted(chosen, key=list(VARIANTS).index):  # the last one takes the masks of the others
        print(f"variant {variant}")
        if variant == "stimuli":
            scores[variant] = score_stimuli(found, folder, recordings)
            continue
        varied = config.copy_and_resolve_references()
        varied.update_from_flattened_dict(VARIANTS[variant])
        work = folder / variant
        _share_masks(folder / "masks", work / "masks")
        reconstruct_recordings(varied, str(work), films=variant == "standard")
        _share_masks(work / "masks", folder / "masks")
        scores[variant] = {}
        for recording in recordings:
            alpha = runs.load_arrays(work / "masks" / f"{recording.name}.npz")["alpha"]
            alpha = crop_from_canvas(alpha, recording.frame_shape)
            scores[variant][recording.name] = {
                trial.id: _scores(trial, movies, alpha, config.skip_frames, subsets=variant == "standard")
                for trial, movies in _clips(work, recording)
            }
    if "standard" in scores:
        _score_responses(found, folder / "standard", recordings, scores["standard"])
    rows = [_row(row, scores) for row in ROWS]
    save_json(folder / "table.json", {"rows": rows, "scores": scores, "versions": runs.versions()})
    with atomic_path(folder / "table.txt") as path:
        path.write_text(table(rows) + "\n")
    return {"rows": rows, "scores": scores}


def _share_masks(source: Path, target: Path) -> None:
    """Every variant updates and scores within the same masks, which one of them trains."""
    for path in source.glob("*.npz"):
        if not (target / path.name).is_file():
            save_npz(target / path.name, **runs.load_arrays(path))


def _clips(work: Path, recording: Recording) -> Iterator[tuple[Trial, np.ndarray]]:
    """Each reconstructed clip of an animal with its movies (model, time, height, width)."""
    for path in sorted((work / "reconstructions" / recording.name).glob("*.npz"), key=lambda p: int(p.stem)):
        yield recording.target(path.stem), runs.load_arrays(path)["movies"]


def _scores(trial: Trial, movies: np.ndarray, alpha: np.ndarray, skip: int, *, subsets: bool) -> dict[str, float]:
    """Published scores of one clip, in the published order: frames left out, averaged, smoothed, correlated.

    Args:
      trial: what was shown.
      movies: (model, time, height, width).
      alpha: (height, width), the animal's mask; scored where it is at least 1.
      skip: frames left out at the start.
      subsets: also the scores of fewer models, without smoothing and on the whole screen.
    """
    truth, movies = trial.stimulus[skip:], movies[:, skip:]
    inside = alpha >= 1
    smooth = average_movies(list(movies), smoothing=SMOOTHING)
    scores = {
        "movie": published_movie_correlation(truth, smooth, inside),
        "frame": published_frame_correlation(truth, smooth, inside),
    }
    if not subsets:
        return scores
    scores["unsmoothed"] = published_movie_correlation(truth, average_movies(list(movies)), inside)
    # Grey outside the update mask, on every pixel that the published code calls the screen.
    screen = np.where(alpha >= 0.5, smooth, 127.5)
    scores["whole_screen"] = published_movie_correlation(truth, screen, alpha >= 0)
    total = len(movies)
    for size in (1, 2, 4):
        if size < total:  # models k, k + 1, ... round the circle: each counts as often as the others
            some = [[movies[(k + i) % total] for i in range(size)] for k in range(total)]
            each = [published_movie_correlation(truth, average_movies(m, smoothing=SMOOTHING), inside) for m in some]
            scores[f"models_{size}"] = float(np.mean(each))
    return scores


def _score_responses(
    config: ml_collections.ConfigDict,
    work: Path,
    recordings: list[Recording],
    scores: dict[str, dict[str, dict[str, float]]],
) -> None:
    """Adds to each clip how well responses are predicted from its true movie and from its reconstruction.

    As published: each model predicts from the whole true movie and from its own movie, grey outside alpha >= 1; the
    predictions are averaged over models; one correlation over all neurons x frames.
    """
    ensemble: Ensemble | None = None
    largest = max(recordings, key=lambda recording: recording.num_neurons).name
    for index, recording in enumerate(recordings):
        for trial, movies in _clips(work, recording):
            path = work / "responses" / recording.name / f"{trial.id}.json"
            if not path.is_file():
                ensemble = ensemble or ensemble_of(cli.listed(config.encoders))
                readout = ensemble.readout(recording, index)
                mask = runs.load_arrays(work / "reconstructions" / recording.name / f"{trial.id}.npz")["mask"]
                own = [np.where(mask, movie, 127.5).astype(np.float32) for movie in movies]
                shown = {"truth": [trial.stimulus] * len(movies), "movie": own}
                found = {}
                for name, stimuli in shown.items():
                    predicted = [
                        predict_trial(encoder, variables, stimulus, trial.behaviour, readout=readout)
                        for (encoder, variables), stimulus in zip(ensemble.members, stimuli)
                    ]
                    recorded = np.maximum(trial.responses, 0.0)[config.skip_frames :]
                    mean = np.mean(predicted, axis=0)[config.skip_frames :]
                    found[f"responses_{name}"] = float(np.corrcoef(recorded.ravel(), mean.ravel())[0, 1])
                save_json(path, found)
            found = read_json(path)
            if recording.name == largest:
                found |= {f"{name}_published": value for name, value in found.items()}
            scores[recording.name][trial.id] |= found


def _row(row: Row, scores: dict[str, dict[str, dict[str, dict[str, float]]]]) -> dict[str, Any]:
    line: dict[str, Any] = {"name": row.name, "published": row.published, "published_ci95": row.interval}
    line |= {"variant": row.variant, "score": row.score if row.variant else None, "mean": None, "ci95": None}
    animals = scores.get(row.variant or "", {})
    groups = {name: [c[row.score] for c in clips.values() if row.score in c] for name, clips in animals.items()}
    groups = {name: values for name, values in groups.items() if values}
    if groups:
        line |= {**summarise(groups, seed=SEED), "clips": sum(map(len, groups.values()))}
    return line


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text: published beside ours."""
    lines = [f"{'Movie correlation inside alpha >= 1, frames 30 on':<58}{'published':>22}{'ours':>26}{'clips':>7}"]
    for row in rows:
        published = _number(row["published"], row["published_ci95"])
        ours = "not run" if row["variant"] else "not part of this"
        if row["mean"] is not None:
            ours = _number(row["mean"], row["ci95"])
        lines.append(f"{row['name']:<58}{published:>22}{ours:>26}{row.get('clips', ''):>7}")
    return "\n".join(lines)


def _number(value: float, interval: Any) -> str:
    if not np.isfinite(value):
        return "-"
    known = interval is not None and all(x is not None and np.isfinite(x) for x in interval)
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if known else "")


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    print(table(replicate(config, workdir)["rows"]))


if __name__ == "__main__":
    cli.run(main, __doc__, config="experiments/configs/bauer2026.py")
