"""What a ceiling study found: sentences and a figure."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from neurorecon.evaluation.bootstrap import Interval
from neurorecon.evaluation.clip_scores import Scores, paired_difference, score_interval
from neurorecon.evaluation.clip_scores import interval_text as text
from neurorecon.reporting.study_figures import COLOURS, dots_with_interval, new_figure, study_style

COLUMNS = {
    "animal": "name of the recording",
    "trial": "of the clip",
    "recorded": "movie correlation inside the evaluation mask, from recorded responses",
    "noise_matched": "from responses predicted by other encoders, with fitted noise",
    "predicted": "from responses predicted by other encoders, without noise",
    "other_architecture": "from responses predicted by an encoder of another architecture, without noise",
    "same_encoders": "from responses predicted by the encoders that invert, without noise",
}
LABELS = {
    "recorded": "recorded",
    "noise_matched": "predicted,\nwith fitted noise",
    "predicted": "predicted by\nother encoders",
    "other_architecture": "predicted by another\narchitecture",
    "same_encoders": "predicted by the\nencoders that invert",
}
Rows = Sequence[Mapping[str, Any]]


def findings(rows: Rows, num_predicting: int, num_inverting: int, other: str) -> list[str]:
    """Sentences, the most important first.

    Args:
      rows: one for each clip, with the keys of `COLUMNS`.
      num_predicting, num_inverting: encoders.
      other: the other architecture's name; empty where it was left out.
    """
    clips = f"{len(rows)} clip{'s' * (len(rows) != 1)}"
    noise, rest, gap = (
        _difference(rows, *pair)
        for pair in (("predicted", "noise_matched"), ("noise_matched", "recorded"), ("predicted", "recorded"))
    )
    share = f", {100 * noise.mean / gap.mean:.0f} % of the gap" if gap.low > 0 else ""
    found = [
        f"From recorded responses {clips} come out at a movie correlation of {text(_mean(rows, 'recorded'))}; from "
        f"responses that other encoders predict at {text(_mean(rows, 'noise_matched'))} with the noise of recorded "
        f"ones and at {text(_mean(rows, 'predicted'))} without noise.",
        f"Noise costs {text(noise)} of the {text(gap)} between noise-free and recorded responses, paired over the "
        f"clips{share}.",
    ]
    if rest.low > 0:
        found.append(
            f"Recorded responses stay {text(rest)} below noise-matched ones: noise of that size does not explain it, "
            "but mistakes of the encoders and noise that neurons share can."
        )
    elif rest.high < 0:
        above = Interval(-rest.mean, -rest.high, -rest.low)
        found.append(
            f"Recorded responses lie {text(above)} above noise-matched ones: the fitted noise, which holds the "
            "encoders' mistakes too, is larger than theirs."
        )
    else:
        found.append(
            f"Recorded and noise-matched responses can't be told apart ({text(rest)}): noise of the fitted size "
            "explains the gap."
        )
    if other:
        found.append(
            f"Responses predicted by another architecture ({other}) give {text(_mean(rows, 'other_architecture'))}, "
            f"{text(_difference(rows, 'other_architecture', 'predicted'))} from those of the same architecture."
        )
    else:
        found.append(
            "Another architecture was left out (--config.ceiling.other_architecture): encoders of one architecture "
            "share mistakes, which lifts the ceiling."
        )
    found.append(
        f"Encoders that invert their own predictions, as published, reach {text(_mean(rows, 'same_encoders'))}: "
        f"{text(_difference(rows, 'same_encoders', 'predicted'))} from what other encoders' predictions give."
    )
    inverters = "one encoder inverts" if num_inverting == 1 else f"{num_inverting} encoders invert"
    predictors = "one other predicts" if num_predicting == 1 else f"{num_predicting} others predict"
    found.append(
        f"In every condition the same {inverters} and {predictors}. Predicted responses make ceilings only as far as "
        "encoders are right: an upper bound."
    )
    return found


@study_style()
def ceiling_figure(rows: Rows) -> tuple[Figure, str]:
    """A row for each kind of responses; figure and caption."""
    shown = [name for name in LABELS if all(row[name] is not None for row in rows)]
    intervals = [_mean(rows, name) for name in shown]
    figure, axes = new_figure(width_mm=110, height_mm=12 + 14 * len(shown))
    dots_with_interval(
        axes[0, 0],
        [LABELS[name] for name in shown],
        [i.mean for i in intervals],
        [i.low for i in intervals],
        [i.high for i in intervals],
        singles=[[row[name] for row in rows] for name in shown],
        colours=[COLOURS[0] if name == "recorded" else COLOURS[1] for name in shown],
    )
    axes[0, 0].set(xlabel="movie correlation", xlim=(min(0.0, *(row[n] for row in rows for n in shown)), 1))
    return (
        figure,
        "Movie correlation by kind of responses, the same clips and inverting encoders: mean, 95 % interval, clips",
    )


def _mean(rows: Rows, name: str) -> Interval:
    return score_interval(_scores(rows, name))


def _difference(rows: Rows, a: str, b: str) -> Interval:
    return paired_difference(_scores(rows, a), _scores(rows, b))


def _scores(rows: Rows, name: str) -> Scores:
    return {(row["animal"], row["trial"]): row[name] for row in rows}
