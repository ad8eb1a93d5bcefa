"""How many encoders does a reconstruction need, and should their movies be averaged or their gradients?

    python -m experiments.ensemble_size --config experiments/configs/demo.py --workdir runs/demo

WORKDIR is the folder of a training or a reconstruction with two encoders or more. Every encoder reconstructs the clips
alone; the movies of subsets of encoders are averaged. Beside it, each subset descends to one movie, its gradients
averaged at every step. The published recipe averages movies, the default recipe gradients.

Read it so: where the curve is flat, more encoders are not worth their training. Averaging movies helps most where
single movies are noisy, as under the published recipe, which has no movie prior.

Cost: a descent for each encoder and clip, and one for each subset and clip. Keys: config.ensemble_size. Writes
WORKDIR/studies/ensemble_size/; called again, it goes on where it stopped.
"""

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from experiments import cli, studies
from experiments.evaluate import stored_clips, stored_config
from experiments.inputs import ensemble_of, located
from experiments.reconstruct import KEYS
from neurorecon import runs
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation import movie_metrics
from neurorecon.evaluation.clip_scores import (
    Scores,
    clip_count,
    difference_text,
    interval_text,
    mean_scores,
    paired_difference,
    score_interval,
)
from neurorecon.reporting.condition_figures import Curve, curves_figure
from neurorecon.reporting.studies import Study

MOVIES, GRADIENTS = "movies averaged", "gradients averaged"
COLUMNS = {
    "encoders": "number of encoders",
    "combined": "what is averaged over encoders",
    "subsets": "subsets of encoders that were drawn",
    "clips": "number of clips",
    "correlation": "movie correlation inside the mask, mean over subsets and clips",
    "low": "its 95 % interval over clips, lower limit",
    "high": "upper limit",
    "gain": "difference to one encoder on the same clips",
    "gain_low": "its 95 % interval, lower limit",
    "gain_high": "upper limit",
}

Subset = tuple[int, ...]


def ensemble_size(config: ml_collections.ConfigDict, workdir: str) -> Study:
    """Runs the study; see the module's docstring.

    Raises:
      NeuroreconError: fewer than two encoders, bad config, or a descent that is not finite.
    """
    started = time.monotonic()
    config, folder = studies.begin(config, workdir, "ensemble_size", (*KEYS, "ensemble_size"))
    settings = config.ensemble_size
    config = studies.capped(config, settings.max_clips)
    count = len(ensemble_of(cli.listed(located(config).encoders)).members)
    subsets = drawn_subsets(count, _sizes(settings.sizes, count), settings.subsets, settings.seed)
    drawn = [subset for size in subsets.values() for subset in size]
    singles: list[Subset] = sorted({(member,) for subset in drawn for member in subset})
    subsets |= {1: singles} if 1 in subsets else {}  # all are there, and the others are compared with all
    everyone = tuple(range(count))  # first: all are scored inside its mask
    found = studies.conditions(
        config, folder, {_name(s): _changes(config, s, count) for s in _order(everyone, singles, drawn)}
    )
    alone = {s: studies.clip_scores(found[_name(s)]) for s in singles}
    scores: dict[str, dict[int, Scores]] = {MOVIES: {}, GRADIENTS: {}}
    for size, chosen in subsets.items():
        scores[MOVIES][size] = mean_scores([_averaged(folder, s) if size > 1 else alone[s] for s in chosen])
        scores[GRADIENTS][size] = mean_scores([studies.clip_scores(found[_name(s)]) for s in chosen])
    # The same clips and, for the gain, every encoder that takes part.
    reference = mean_scores(list(alone.values()))
    rows = [
        _row(size, kind, len(subsets[size]), by_size[size], reference)
        for kind, by_size in scores.items()
        for size in by_size
    ]
    curves = [
        Curve(kind, list(by_size), [score_interval(by_size[size]) for size in by_size])
        for kind, by_size in scores.items()
    ]
    figure = curves_figure(curves, x_label="number of encoders", y_label="movie correlation", ticks=sorted(subsets))
    return studies.finish(
        folder,
        started=started,
        config=config,
        title="Ensemble size",
        question="How many encoders does a reconstruction need, and what should be averaged over them?",
        findings=_findings(scores, reference),
        columns=COLUMNS,
        rows=rows,
        figures={
            "correlation": (
                figure,
                "Movie correlation over the number of encoders, mean and 95 % interval over clips; movies of single "
                "encoders averaged, or their gradients at each step of one descent.",
            )
        },
    )


def drawn_subsets(count: int, sizes: Sequence[int], most: int, seed: int) -> dict[int, list[Subset]]:
    """size -> subsets of `count` encoders: all of them, or `most` different ones drawn by the seed."""
    chosen = {}
    for size in sizes:
        every: list[Subset] = list(itertools.combinations(range(count), size))
        if len(every) > most:
            places = np.random.default_rng([seed, size]).choice(len(every), most, replace=False)
            every = [every[place] for place in sorted(places.tolist())]
        chosen[size] = every
    return chosen


def _sizes(text: str, count: int) -> list[int]:
    if count < 2:
        raise NeuroreconError(f"--config.encoders: expected two encoders or more for this study, found {count}")
    try:
        sizes = sorted({int(size) for size in cli.listed(text)}) or list(range(1, count + 1))
    except ValueError:
        sizes = [0]
    if sizes[0] < 1 or sizes[-1] > count:
        raise NeuroreconError(f"--config.ensemble_size.sizes: expected numbers from 1 to {count}, found {text!r}")
    return sizes


def _order(everyone: Subset, singles: Sequence[Subset], drawn: Sequence[Subset]) -> list[Subset]:
    return list(dict.fromkeys([everyone, *singles, *drawn]))


def _name(subset: Subset) -> str:
    return "encoders_" + "_".join(map(str, subset))


def _changes(config: ml_collections.ConfigDict, subset: Subset, count: int) -> dict[str, Any]:
    changes: dict[str, Any] = {"members": "" if len(subset) == count else ",".join(map(str, subset))}
    if config.recipe == "published":
        changes["published_recipe.ensemble"] = "gradients"
    return changes


def _averaged(folder: Path, subset: Subset) -> Scores:
    """Scores of the mean of what the encoders reconstruct alone."""
    works = [folder / _name((member,)) for member in subset]
    config = stored_config(str(works[0]))
    scores = {}
    for clip in stored_clips(str(works[0]), config):
        relative = clip.path.relative_to(works[0])
        stored = [runs.load_arrays(work / relative) for work in works]
        movie = np.mean([arrays["movie"] for arrays in stored], axis=0, dtype=np.float64)
        skip = config.skip_frames
        found = movie_metrics(clip.truth[skip:], np.asarray(movie)[skip:], stored[0]["mask"])
        scores[clip.animal, clip.trial] = found["movie_correlation"]
    return scores


def _row(size: int, kind: str, subsets: int, scores: Scores, reference: Scores) -> dict[str, Any]:
    mean, low, high = score_interval(scores)
    gain = paired_difference(scores, reference) if size > 1 else (None, None, None)
    values = (size, kind, subsets, len(scores), mean, low, high, *gain)
    return dict(zip(COLUMNS, values, strict=True))


def _findings(scores: dict[str, dict[int, Scores]], reference: Scores) -> list[str]:
    most = max(scores[MOVIES])
    found = []
    if most > 1:
        for kind in (GRADIENTS, MOVIES):
            last = scores[kind][most]
            found.append(
                f"{most} encoders, {kind}: movie correlation {interval_text(score_interval(last))} against "
                f"{interval_text(score_interval(reference))} of one; gain "
                f"{difference_text(paired_difference(last, reference))}, {clip_count(last)}."
            )
        between = paired_difference(scores[GRADIENTS][most], scores[MOVIES][most])
        found.append(f"Gradients averaged minus movies averaged, {most} encoders: {difference_text(between)}.")
    else:
        found.append(f"One encoder: movie correlation {interval_text(score_interval(reference))}.")
    return found


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    ensemble_size(config, workdir)


if __name__ == "__main__":
    cli.run(main, __doc__, config="experiments/configs/base.py")
