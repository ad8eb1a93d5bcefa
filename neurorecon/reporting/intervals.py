"""Scores as dots with intervals on one axis: geometry in per cent, which the page draws at any width."""

import dataclasses
from collections.abc import Sequence

from neurorecon.reporting.charts import Tick, ticks
from neurorecon.reporting.scores import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, Score

# Names in page.css, where either theme has its own tone.
PAGE_COLOURS = {BLUE: "--blue", ORANGE: "--orange", GREEN: "--green", GREY: "--grey", SKY: "--sky", PURPLE: "--purple"}


@dataclasses.dataclass(frozen=True)
class Interval:
    """A row; positions in per cent of the axis. `clips` are single values, drawn as small dots."""

    score: Score
    at: float
    start: float
    end: float
    clips: list[float]

    @property
    def colour(self) -> str:
        """The CSS variable of its colour."""
        return PAGE_COLOURS[self.score.colour]


@dataclasses.dataclass(frozen=True)
class IntervalChart:
    """Rows over a common axis that holds 0."""

    rows: list[Interval]
    axis: list[Tick]


def interval_chart(scores: Sequence[Score], per_clip: Sequence[float | None] = ()) -> IntervalChart:
    """Lays out scores under each other; `per_clip` are the single values of the first."""
    dots = [value for value in per_clip if value is not None]
    ends = [end for score in scores for end in (score.mean, score.low, score.high) if end is not None]
    low, high = min([0.0, *ends, *dots]), max([0.0, *ends, *dots])
    low, high = (low - 0.03 * (high - low) if low < 0 else 0.0), high + 0.05 * (high - low or 1.0)

    def percent(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    rows = []
    for index, score in enumerate(scores):
        if score.mean is None:
            rows.append(Interval(score, 0, 0, 0, []))
            continue
        start = percent(score.low if score.low is not None else score.mean)
        end = percent(score.high if score.high is not None else score.mean)
        own = [percent(value) for value in dots] if index == 0 and len(dots) > 1 else []
        rows.append(Interval(score, percent(score.mean), start, end, own))
    return IntervalChart(rows, ticks(low, high, 5))
