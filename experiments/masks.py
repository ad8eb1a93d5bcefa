"""Where on the screen is the movie reconstructed, and what do masks do to it?

    python -m experiments.masks --config experiments/configs/demo.py --workdir runs/demo

WORKDIR is the folder of a training or a reconstruction. Two masks are meant. The evaluation mask says where movies are
scored: nowhere masked, the standard one (config.mask.threshold), a strict one (config.masks.strict), and a sweep of
thresholds of the map from which they come, with the part of the visual field that each covers, in degrees from the
screen's geometry (config.screen). The update mask says where the responses may move pixels at all; the published recipe
always has one, the default recipe none. Clips are reconstructed with each of the three as update mask.

Read it so: a score inside a stricter mask is higher because it asks for less of the screen. Compare recordings at one
coverage in degrees. An update mask that lowers the score inside the same evaluation mask takes away pixels that the
responses tell of; what they show then has to be explained elsewhere.

Cost: three descents for each clip, or two where WORKDIR holds the clips. With --config.recipe=published a descent is
999 steps over overlapping windows, in place of 40, and wants a GPU. Keys: config.masks. Writes WORKDIR/studies/masks/;
called again, it goes on where it stopped.
"""

import time
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from experiments import cli, studies
from experiments.evaluate import stored_clips, stored_config
from experiments.reconstruct import KEYS
from neurorecon import runs
from neurorecon.encoders.canvas import crop_from_canvas
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation import movie_correlation
from neurorecon.evaluation.clip_scores import (
    Scores,
    clip_count,
    difference_text,
    interval_text,
    paired_difference,
    score_interval,
)
from neurorecon.reporting.condition_figures import Curve, curves_figure, rows_figure
from neurorecon.reporting.studies import Study
from neurorecon.stimuli.screen_area import ScreenArea, screen_area

LEAST_PIXELS = 20  # a correlation inside fewer says nothing
COLUMNS = {
    "update": "where responses move pixels",
    "evaluation": "where the movie is scored",
    "threshold": "of the map from which the evaluation mask comes",
    "share": "of the screen, the mean over animals",
    "square_degrees": "solid angle of the mask, the mean over animals",
    "width_degrees": "from the mask's left to its right edge, the mean over animals",
    "height_degrees": "from its top to its bottom, the mean over animals",
    "clips": "number of clips",
    "correlation": "movie correlation, mean over clips",
    "low": "its 95 % interval over clips, lower limit",
    "high": "upper limit",
}


def masks(config: ml_collections.ConfigDict, workdir: str) -> Study:
    """Runs the study; see the module's docstring.

    Raises:
      NeuroreconError: no mask to vary, bad config, or a descent that is not finite.
    """
    started = time.monotonic()
    config, folder = studies.begin(config, workdir, "masks", (*KEYS, "masks", "screen"))
    settings = config.masks
    config = studies.capped(config, settings.max_clips)
    if config.mask.kind == "none":
        raise NeuroreconError("--config.mask.kind: expected sensitivity or alpha for this study, found none")
    standard = 1.0 if config.mask.kind == "alpha" else config.mask.threshold
    thresholds = _thresholds(settings.thresholds)
    updates = {"everywhere": 0.0, "standard": standard, "strict": settings.strict}
    wanted = {
        f"update_{name}": {"mask.restrict": name != "everywhere", "mask.update_threshold": threshold}
        for name, threshold in updates.items()
    }
    if config.recipe == "default":  # leaves the rest as it is, so that a reconstruction of WORKDIR serves
        wanted["update_everywhere"] = {}
    studies.conditions(config, folder, wanted)
    everywhere = folder / "update_everywhere"
    evaluations: dict[str, float | None] = {"whole screen": None, "standard": standard, "strict": settings.strict}
    areas = {name: _area(config, everywhere, threshold) for name, threshold in evaluations.items()}
    inside = {name: _scores(everywhere, threshold) for name, threshold in evaluations.items()}
    updated = {name: _scores(folder / f"update_{name}", standard) for name in updates}
    swept = {t: _scores(everywhere, t) for t in thresholds}
    swept = {t: scores for t, scores in swept.items() if scores}
    rows = [
        *(_row("everywhere", name, evaluations[name], areas[name], scores) for name, scores in inside.items()),
        *(
            _row(name, "standard", standard, areas["standard"], s)
            for name, s in updated.items()
            if name != "everywhere"
        ),
        *(_row("everywhere", "sweep", t, _area(config, everywhere, t), scores) for t, scores in swept.items()),
    ]
    sweep = [_area(config, everywhere, t).square_degrees for t in swept]
    curve = Curve("", sweep, [score_interval(scores) for scores in swept.values()])
    coverage = curves_figure(
        [curve],
        x_label="visual field inside the mask (square degrees)",
        y_label="movie correlation inside",
        mark=areas["standard"].square_degrees,
    )
    bars = rows_figure(
        {
            **{f"scored: {name}": score_interval(scores) for name, scores in inside.items()},
            **{f"updated: {name} mask": score_interval(updated[name]) for name in ("standard", "strict")},
        },
        {
            **{f"scored: {name}": list(scores.values()) for name, scores in inside.items()},
            **{f"updated: {name} mask": list(updated[name].values()) for name in ("standard", "strict")},
        },
        x_label="movie correlation",
    )
    return studies.finish(
        folder,
        started=started,
        config=config,
        title="Masks",
        question="Where on the screen is the movie reconstructed, and what do masks do to it?",
        findings=_findings(inside, updated, areas),
        columns=COLUMNS,
        rows=rows,
        figures={
            "coverage": (
                coverage,
                "Movie correlation inside masks of rising threshold, over the part of the visual field that they "
                "cover; mean and 95 % interval over clips. Dotted: the standard mask.",
            ),
            "masks": (
                bars,
                "Movies descended without an update mask, scored on the whole screen and inside two masks; below, "
                "movies whose update was kept inside a mask, scored inside the standard one. Small dots: clips.",
            ),
        },
    )


def _thresholds(text: str) -> list[float]:
    try:
        values = sorted({float(value) for value in cli.listed(text)})
    except ValueError:
        values = []
    if not values or not np.isfinite(values).all():
        raise NeuroreconError(f"--config.masks.thresholds: expected numbers, found {text!r}")
    return values


def _map(work: Path, animal: str, shape: tuple[int, int]) -> np.ndarray:
    return crop_from_canvas(runs.load_arrays(work / "masks" / f"{animal}.npz")["alpha"], shape)


def _scores(work: Path, threshold: float | None) -> Scores:
    """Inside the map at a threshold (None: the whole screen); empty where that leaves an animal too few pixels."""
    config = stored_config(str(work))
    scores = {}
    for clip in stored_clips(str(work), config):
        shape = clip.truth.shape[1:]
        mask = np.ones(shape, bool) if threshold is None else _map(work, clip.animal, shape) >= threshold
        if mask.sum() < LEAST_PIXELS:
            return {}
        movie = runs.load_arrays(clip.path)["movie"]
        score = movie_correlation(clip.truth[config.skip_frames :], movie[config.skip_frames :], mask)
        scores[clip.animal, clip.trial] = score if np.isfinite(score) else 0.0  # an even movie tells nothing
    return scores


def _area(config: ml_collections.ConfigDict, work: Path, threshold: float | None) -> ScreenArea:
    """The mean over animals."""
    frames = {clip.animal: clip.truth.shape[1:] for clip in stored_clips(str(work), stored_config(str(work)))}
    areas = []
    for animal, shape in frames.items():
        mask = np.ones(shape, bool) if threshold is None else _map(work, animal, shape) >= threshold
        areas.append(screen_area(mask, per_degree=studies.screen_pixels_per_degree(config, shape[1])))
    return ScreenArea(*np.mean(areas, axis=0).tolist())


def _row(update: str, evaluation: str, threshold: float | None, area: ScreenArea, scores: Scores) -> dict[str, Any]:
    interval = score_interval(scores) if scores else (None, None, None)
    return dict(zip(COLUMNS, (update, evaluation, threshold, *area, len(scores), *interval), strict=True))


def _findings(inside: dict[str, Scores], updated: dict[str, Scores], areas: dict[str, ScreenArea]) -> list[str]:
    whole, standard = inside["whole screen"], inside["standard"]
    area = areas["standard"]
    found = [
        f"The standard mask covers {100 * area.share:.0f} % of the screen: {area.square_degrees:,.0f} square degrees, "
        f"{area.width:.0f} degrees wide and {area.height:.0f} high. Inside it the movie correlation is "
        f"{interval_text(score_interval(standard))}, on the whole screen {interval_text(score_interval(whole))}; "
        f"difference {difference_text(paired_difference(standard, whole))}, {clip_count(standard)}."
    ]
    if inside["strict"]:
        strict = areas["strict"]
        found.append(
            f"A strict mask of {strict.square_degrees:,.0f} square degrees: "
            f"{interval_text(score_interval(inside['strict']))}, "
            f"{difference_text(paired_difference(inside['strict'], standard))} to the standard one."
        )
    for name in ("standard", "strict"):
        difference = paired_difference(updated[name], updated["everywhere"])
        found.append(
            f"Update kept inside the {name} mask: {interval_text(score_interval(updated[name]))} inside the standard "
            f"mask, {difference_text(difference)} to none."
        )
    return found


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    masks(config, workdir)


if __name__ == "__main__":
    cli.run(main, __doc__, config="experiments/configs/base.py")
