"""How many neurons does a reconstruction need, and which?

    python -m experiments.ablation --config experiments/configs/demo.py --workdir runs/demo

WORKDIR is the folder of a training or a reconstruction. Clips are reconstructed from some of the neurons: shares
(config.ablation.shares) or numbers (config.ablation.counts) of them, at random in several draws, anew for each clip, or
by reliability: how well the encoders predict a neuron on validation trials, never on the clips reported. Neurons left
out are left out of the loss (config.neurons.ablation = "exclude"); the published code set their responses to zero
("zero_target"), which tells the descent that they were silent.

Read it so: a curve that still rises at all neurons says that recording more would help. Where the most reliable neurons
do nearly as well as all, the others are noise to the encoders: better encoders would help.

Cost: a descent for each share, draw, order and clip. Keys: config.ablation. Writes WORKDIR/studies/ablation/; called
again, it goes on where it stopped.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from experiments import cli, studies
from experiments.inputs import located, recordings_of
from experiments.reconstruct import KEYS
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.bootstrap import Interval
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

ORDERS = {"random": "random", "most_reliable": "most reliable", "least_reliable": "least reliable"}
COLUMNS = {
    "neurons": "number of neurons, the mean over animals where they are shares",
    "share": "of the recorded neurons",
    "order": "which neurons are kept",
    "draws": "of neurons",
    "clips": "number of clips",
    "correlation": "movie correlation inside the mask, mean over draws and clips",
    "low": "its 95 % interval over clips, lower limit",
    "high": "upper limit",
    "difference": "to all neurons on the same clips",
    "difference_low": "its 95 % interval, lower limit",
    "difference_high": "upper limit",
}


class Level(NamedTuple):
    """A share or a number of neurons.

    Attributes:
      share: of the neurons, the mean over animals.
      neurons: mean number over animals.
      name: for folders.
      changes: config keys that ask for it.
    """

    share: float
    neurons: float
    name: str
    changes: dict[str, Any]


def ablation(config: ml_collections.ConfigDict, workdir: str) -> Study:
    """Runs the study; see the module's docstring.

    Raises:
      NeuroreconError: bad config, recordings or encoders, or a descent that is not finite.
    """
    started = time.monotonic()
    config, folder = studies.begin(config, workdir, "ablation", (*KEYS, "ablation"))
    settings = config.ablation
    config = studies.capped(config, settings.max_clips)
    orders = cli.listed(settings.orders)
    if not orders or not set(orders) <= set(ORDERS) or settings.draws < 1:
        raise NeuroreconError(
            f"--config.ablation: expected orders among {', '.join(ORDERS)} and at least one draw, found "
            f"{settings.orders!r} and {settings.draws}"
        )
    sizes = [recording.num_neurons for recording in recordings_of(located(config))]
    levels = _levels(settings, sizes)
    wanted: dict[str, dict[str, Any]] = {"all": {}}
    parts: dict[tuple[str, str], list[str]] = {}
    for order in orders:
        for level in levels:
            draws = settings.draws if order == "random" else 1
            names = [f"{order}_{level.name}_{draw}" for draw in range(draws)]
            parts[order, level.name] = names
            for draw, name in enumerate(names):
                wanted[name] = {**level.changes, "neurons.order": order, "neurons.seed": config.neurons.seed + draw}
    found = {name: studies.clip_scores(m) for name, m in studies.conditions(config, folder, wanted).items()}
    everything = found["all"]
    whole = Level(1.0, float(np.mean(sizes)), "all", {})
    scores = {
        order: {level.name: mean_scores([found[n] for n in parts[order, level.name]]) for level in levels}
        for order in orders
    }
    rows = [
        _row(level, order, len(parts[order, level.name]), scores[order][level.name], everything)
        for order in orders
        for level in levels
    ]
    rows.append(_row(whole, "all", 1, everything, everything))
    every = [*levels, whole]
    curves = [
        Curve(
            ORDERS[order],
            [level.neurons for level in every],
            [score_interval(s) for s in [*scores[order].values(), everything]],
        )
        for order in orders
    ]
    figure = curves_figure(
        curves,
        x_label="number of neurons",
        y_label="movie correlation",
        ticks=[round(level.neurons) for level in every],
        log=True,
    )
    return studies.finish(
        folder,
        started=started,
        config=config,
        title="Number of neurons",
        question="How many neurons does a reconstruction need, and which?",
        findings=_findings(scores, levels, whole, everything),
        columns=COLUMNS,
        rows=rows,
        figures={
            "correlation": (
                figure,
                "Movie correlation over the number of neurons, mean and 95 % interval over clips; neurons at random, "
                "or those that the encoders predict best on validation trials.",
            )
        },
    )


def doubling(scores: list[Scores], neurons: list[float]) -> Interval:
    """What a doubling of the neurons adds: slope over log2(neurons) in each clip, mean and interval over clips."""
    x = np.log2(neurons)
    x = x - x.mean()
    slopes = {clip: float(np.dot(x, [s[clip] for s in scores]) / np.dot(x, x)) for clip in scores[0]}
    return score_interval(slopes)


def _levels(settings: ml_collections.ConfigDict, sizes: list[int]) -> list[Level]:
    """From few neurons to many, without the whole population."""
    mean = float(np.mean(sizes))
    key = "counts" if settings.counts else "shares"
    try:
        values = sorted({float(value) for value in cli.listed(settings[key])})
        if key == "counts":
            whole, fits = min(sizes), all(v == int(v) and 1 <= v <= min(sizes) for v in values)
        else:
            whole, fits = 1, all(0 < v <= 1 for v in values)
    except ValueError:
        values, whole, fits = [], 1, False
    values = [value for value in values if value < whole]
    if not fits or not values:
        expected = f"numbers from 1 to {min(sizes)}" if key == "counts" else "shares above 0, up to 1, one below 1"
        raise NeuroreconError(f"--config.ablation.{key}: expected {expected}, found {settings[key]!r}")
    if key == "counts":
        return [
            Level(
                float(np.mean([v / n for n in sizes])),
                v,
                f"{int(v)}_neurons",
                {"neurons.count": int(v), "neurons.share": 1.0},
            )
            for v in values
        ]
    return [Level(v, v * mean, f"{v:g}", {"neurons.share": v, "neurons.count": 0}) for v in values]


def _row(level: Level, order: str, draws: int, scores: Scores, everything: Scores) -> dict[str, Any]:
    whole = order == "all"
    difference = (None, None, None) if whole else paired_difference(scores, everything)
    values = (round(level.neurons), level.share, ORDERS.get(order, order), draws, len(scores))
    return dict(zip(COLUMNS, (*values, *score_interval(scores), *difference), strict=True))


def _findings(
    scores: Mapping[str, Mapping[str, Scores]], levels: list[Level], whole: Level, everything: Scores
) -> list[str]:
    few = levels[0]
    found = [
        f"All {whole.neurons:,.0f} neurons: movie correlation {interval_text(score_interval(everything))}, "
        f"{clip_count(everything)}."
    ]
    for order, by_level in scores.items():
        least = by_level[few.name]
        found.append(
            f"{100 * few.share:g} % of them ({few.neurons:,.0f}), {ORDERS[order]}: "
            f"{interval_text(score_interval(least))}, {difference_text(paired_difference(least, everything))} to all."
        )
    if "random" in scores:
        slope = doubling([*scores["random"].values(), everything], [level.neurons for level in [*levels, whole]])
        last = paired_difference(everything, scores["random"][levels[-1].name])
        found.append(
            f"Each doubling of random neurons adds {difference_text(slope)}; the last step, from "
            f"{levels[-1].neurons:,.0f} to {whole.neurons:,.0f}, adds {difference_text(last)}."
        )
    if {"random", "most_reliable"} <= set(scores):
        gain = paired_difference(scores["most_reliable"][few.name], scores["random"][few.name])
        found.append(
            f"Of equally few ({few.neurons:,.0f}), the most reliable neurons against random ones: "
            f"{difference_text(gain)}."
        )
    return found


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    ablation(config, workdir)


if __name__ == "__main__":
    cli.run(main, __doc__, config="experiments/configs/base.py")
