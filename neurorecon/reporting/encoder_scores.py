"""encoder_metrics.json of a training folder -> what the page tells of its encoders."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.files import read_json
from neurorecon.reporting.charts import Chart, histogram
from neurorecon.reporting.intervals import IntervalChart, interval_chart
from neurorecon.reporting.scores import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, Score, number, summary_score, words

FILE = "encoder_metrics.json"
HEADLINE = "single_trial_correlation"
ENCODERS, LINEAR, BEHAVIOUR, EXPECTED = "encoders", "linear_nonlinear", "behaviour_only", "expected_response"
PREDICTORS = {
    LINEAR: ("Linear-nonlinear", "one filter and one nonlinearity for each neuron, fitted on the same trials", PURPLE),
    BEHAVIOUR: ("Behaviour only", "ridge regression from running, pupil and its position; no movie", ORANGE),
    "mean_response": ("Mean response", "each neuron's mean over training trials, at each frame of a trial", GREY),
    EXPECTED: (
        "Ceiling",
        "the expected response, what the simulated cortex gives without noise; known in simulation only",
        GREEN,
    ),
}
# Whose neurons are shown one by one: class of page.css, and label.
HISTOGRAMS = {
    ENCODERS: ("c-blue", "encoders"),
    LINEAR: ("c-purple", "linear-nonlinear"),
    BEHAVIOUR: ("c-orange", "behaviour only"),
    EXPECTED: ("c-green", "ceiling"),
}
SCORES = {
    HEADLINE: "Single trials",
    "correlation_to_average": "Mean of repeats",
    "feve": "FEVE",
}
SCORE_HINTS = {
    HEADLINE: "Pearson correlation over frames with responses of single trials, mean over neurons",
    "correlation_to_average": "Pearson correlation with the mean response to a movie shown again",
    "feve": "fraction of explainable variance explained, where the stimulus drives the neuron",
}


@dataclasses.dataclass(frozen=True)
class EncoderRow:
    """A predictor, or an animal, with its scores in the order of the columns; None where there is none."""

    name: str
    label: str
    hint: str
    scores: list[Score | None]


@dataclasses.dataclass(frozen=True)
class EncoderSection:
    """What page_encoders.html.jinja needs of one training folder."""

    animal_names: list[str]
    sentence: str
    gains: list[str]
    warning: str
    chart: IntervalChart
    columns: list[tuple[str, str]]
    rows: list[EncoderRow]
    animals: list[EncoderRow]
    neurons: list[Chart]


def encoder_sections(folders: Sequence[str | os.PathLike]) -> list[EncoderSection]:
    """One for each folder that experiments.evaluate has scored encoders in.

    Raises:
      NeuroreconError: a file of scores that can't be read.
    """
    paths = dict.fromkeys(Path(folder) for folder in folders)
    return [_section(path) for path in paths if (path / FILE).is_file()]


def _section(folder: Path) -> EncoderSection:
    metrics = read_json(folder / FILE)
    try:
        scores, animals = metrics["scores"], metrics["animals"]
        single = scores[HEADLINE]
        models = len(metrics["models"])
        clips = sum(animal["clips"] for animal in animals.values())
        tier, leaks = metrics["tier"], metrics["chose_the_best_moment"]
    except (KeyError, TypeError) as error:
        raise NeuroreconError(f"{folder / FILE}: expected encoder scores, found no {error}; evaluate again") from None
    columns = [name for name in SCORES if scores.get(name)]

    def score(name: str, entry: Any) -> Score:
        found = summary_score(name, entry, FILE)
        label, hint, colour = predictor(name, models)
        return dataclasses.replace(found, label=label, hint=hint, colour=colour)

    def row(name: str) -> EncoderRow:
        cells = [score(name, scores[column][name]) if name in scores[column] else None for column in columns]
        label, hint, _ = predictor(name, models)
        return EncoderRow(name, label, hint, cells)

    def animal_row(name: str, of_animal: Mapping[str, Any]) -> EncoderRow:
        cells = [score(ENCODERS, of_animal[c][ENCODERS]) if of_animal.get(c) else None for c in columns]
        return EncoderRow(name, name, f"{of_animal['neurons']:,} neurons, {of_animal['clips']} clips", cells)

    first = score(ENCODERS, single[ENCODERS])
    neurons = sum(animal["neurons"] for animal in animals.values())
    return EncoderSection(
        animal_names=list(animals),
        sentence=_sentence(first, metrics.get("share_of_ceiling"), models=models, clips=clips, neurons=neurons),
        gains=_gains(metrics, models),
        warning=f"The trials of tier {tier} also fitted the encoders or chose their best moment." if leaks else "",
        chart=interval_chart([score(name, entry) for name, entry in single.items()]),
        columns=[(SCORES[name], SCORE_HINTS[name]) for name in columns],
        rows=[row(name) for name in single],
        animals=[animal_row(name, animal) for name, animal in animals.items()] if len(animals) > 1 else [],
        neurons=[chart for name in animals if (chart := _neurons(folder, name, len(animals) > 1))],
    )


def predictor(name: str, models: int) -> tuple[str, str, str]:
    """Label, explanation and colour of what predicts responses."""
    if name == ENCODERS:
        return (f"Encoders, mean of {models}" if models > 1 else "Encoder"), "from movie and behaviour", BLUE
    if name.startswith(f"{ENCODERS}/"):
        return f"Encoder {name.partition('/')[2]}", "one model alone", SKY
    return PREDICTORS.get(name, (*words(name), GREY))


def _sentence(first: Score, share: Any, *, models: int, clips: int, neurons: int) -> str:
    interval = f" (95 % interval {number(first.low)} to {number(first.high)})" if first.low is not None else ""
    who = f"The mean of {models} encoders" if models > 1 else "The encoder"
    text = (
        f"{who} predicts the responses of single trials with a correlation of {number(first.mean)}{interval}, mean "
        f"over {neurons:,} neurons, {clips} clip{'s' * (clips != 1)}"
    )
    ceiling = summary_score("share", share, FILE) if share else None
    if ceiling is not None and ceiling.mean is not None:
        text += f"; {100 * ceiling.mean:.0f} % of what the noise-free response reaches"
    return text + "."


def _gains(metrics: Mapping[str, Any], models: int) -> list[str]:
    """Sentences on what the encoders have over the baselines, and on what further encoders add."""

    def text(name: str, entry: Any) -> str:
        score = summary_score(name, entry, FILE)
        interval = f" [{number(score.low)}, {number(score.high)}]" if score.low is not None else ""
        return number(score.mean) + interval

    found = [
        f"Correlation above {predictor(name, models)[0].lower()}: {text(name, entry)}; paired over clips."
        for name, entry in (metrics.get("differences") or {}).items()
        if name != EXPECTED
    ]
    sizes = [size for size in metrics.get("ensembles") or [] if size.get("models", 1) > 1 and "over_one" in size]
    return found + [
        f"Averaging {size['models']} encoders adds {text('over_one', size['over_one'])} to one." for size in sizes
    ]


def _neurons(folder: Path, animal: str, named: bool) -> Chart | None:
    """Histogram over neurons; None where the scores of single neurons were not kept."""
    path = folder / "encoder_metrics" / f"{animal}.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            names, values = [str(n) for n in file["predictors"]], np.asarray(file[HEADLINE], float)
    except Exception as error:
        raise NeuroreconError(f"{path}: expected scores of neurons, can't be read ({error}); evaluate again") from error
    shown = [name for name in HISTOGRAMS if name in names]
    curves = [values[names.index(name)] for name in shown]
    medians = [float(np.median(v[np.isfinite(v)])) if np.isfinite(v).any() else None for v in curves]
    return histogram(
        f"Neurons of {animal}" if named else "Neuron by neuron",
        curves,
        [f"{HISTOGRAMS[name][1]}, median {number(median)}" for name, median in zip(shown, medians)],
        x_label="correlation with single trials",
        y_label="neurons",
        file=f"neurons_{animal}.csv",
        colours=[HISTOGRAMS[name][0] for name in shown],
    )
