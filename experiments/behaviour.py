"""Does the reconstruction use what the animal did, and which clips come out well?

    python -m experiments.behaviour --config experiments/configs/demo.py --workdir runs/demo

WORKDIR is the folder of a training or a reconstruction. Behaviour (pupil dilation, running speed, pupil centre) is
given to a reconstruction, not decoded. Clips are reconstructed with the behaviour recorded, with that of another
training trial (shuffled), and with the mean of the training trials (absent). Then each clip's movie correlation is set
beside its contrast and motion energy inside the mask, running speed and pupil dilation.

Read it so: a score that hardly falls when behaviour is shuffled says that the movie is read from the responses. What
goes along with quality over clips is no cause, and with ten clips only correlations beyond about 0.6 can be told from
none.

Cost: three descents for each clip, or two where WORKDIR holds the clips. Keys: config.behaviour_max_clips. Writes
WORKDIR/studies/behaviour/; called again, it goes on where it stopped.
"""

import time
from pathlib import Path

import ml_collections
import numpy as np

from experiments import cli, studies
from experiments.evaluate import stored_config
from experiments.inputs import recordings_of
from experiments.reconstruct import KEYS
from neurorecon import runs
from neurorecon.evaluation import motion_energy
from neurorecon.evaluation.bootstrap import Interval
from neurorecon.evaluation.clip_scores import (
    FEW_CLIPS,
    clip_count,
    correlation_interval,
    difference_text,
    interval_text,
    paired_difference,
    score_interval,
)
from neurorecon.recordings import BEHAVIOUR
from neurorecon.reporting.condition_figures import rows_figure, scatters_figure
from neurorecon.reporting.studies import Study

GIVEN = {"recorded": "recorded", "shuffled": "of another trial", "mean": "mean"}
QUANTITIES = {
    "contrast": "contrast (grey values)",
    "motion": "motion (grey values per frame)",
    "running": "running speed",
    "pupil": "pupil dilation",
}
COLUMNS = {
    "animal": "",
    "trial": "",
    **{f"correlation_{given}": f"movie correlation, behaviour {text}" for given, text in GIVEN.items()},
    "contrast": "standard deviation of the true movie's grey values inside the mask",
    "motion": "mean absolute difference of its frames inside the mask, grey values",
    "running": "mean running speed, in the recording's unit",
    "pupil": "mean pupil dilation, in the recording's unit",
}


def behaviour(config: ml_collections.ConfigDict, workdir: str) -> Study:
    """Runs the study; see the module's docstring.

    Raises:
      NeuroreconError: bad config, recordings or encoders, or a descent that is not finite.
    """
    started = time.monotonic()
    config, folder = studies.begin(config, workdir, "behaviour", (*KEYS, "behaviour_max_clips"))
    config = studies.capped(config, config.behaviour_max_clips)
    found = studies.conditions(config, folder, {given: {"behaviour.given": given} for given in GIVEN})
    scores = {given: studies.clip_scores(metrics) for given, metrics in found.items()}
    quantities = _quantities(folder / "recorded")
    clips = list(scores["recorded"])
    rows = [
        {
            "animal": animal,
            "trial": trial,
            **{f"correlation_{given}": scores[given][animal, trial] for given in GIVEN},
            **quantities[animal, trial],
        }
        for animal, trial in clips
    ]
    quality = [scores["recorded"][clip] for clip in clips]
    columns = {name: [quantities[clip][name] for clip in clips] for name in QUANTITIES}
    along = {}
    if len(clips) > 1:
        along = {name: correlation_interval(values, quality) for name, values in columns.items()}
    given_figure = rows_figure(
        {f"behaviour {text}": score_interval(scores[given]) for given, text in GIVEN.items()},
        {f"behaviour {text}": list(scores[given].values()) for given, text in GIVEN.items()},
        x_label="movie correlation",
    )
    clips_figure = scatters_figure(
        {QUANTITIES[name]: values for name, values in columns.items()}, quality, y_label="movie correlation"
    )
    return studies.finish(
        folder,
        started=started,
        config=config,
        title="Behaviour",
        question="Does the reconstruction use what the animal did, and which clips come out well?",
        findings=[*_given_findings(scores), *_along_findings(along, len(clips))],
        columns=COLUMNS,
        rows=rows,
        figures={
            "given": (
                given_figure,
                "Movie correlation with the behaviour recorded, with that of another training trial, and with the mean "
                "of the training trials; mean, 95 % interval over clips, and single clips.",
            ),
            "clips": (
                clips_figure,
                "Movie correlation of each clip over contrast and motion (mean absolute change from frame to frame) of "
                "its true movie inside the mask, running speed and pupil dilation (means over the clip).",
            ),
        },
    )


def _quantities(work: Path) -> dict[tuple[str, str], dict[str, float]]:
    """(animal, trial) -> what the clip showed and the animal did, from the first scored frame on."""
    config = stored_config(str(work))
    found = {}
    for recording in recordings_of(config):
        for path in sorted((work / "reconstructions" / recording.name).glob("*.npz")):
            mask = runs.load_arrays(path)["mask"]
            trial = recording.trial(path.stem)
            movie, did = trial.stimulus[config.skip_frames :], trial.behaviour[config.skip_frames :]
            found[recording.name, path.stem] = {
                "contrast": float(movie[:, mask].std()),
                "motion": float(motion_energy(movie, mask).mean()),
                "running": float(did[:, BEHAVIOUR.index("running_speed")].mean()),
                "pupil": float(did[:, BEHAVIOUR.index("pupil_dilation")].mean()),
            }
    return found


def _given_findings(scores: dict[str, dict[tuple[str, str], float]]) -> list[str]:
    recorded = scores["recorded"]
    found = [
        f"With the behaviour recorded: movie correlation {interval_text(score_interval(recorded))}, "
        f"{clip_count(recorded)}."
    ]
    for given, text in (("shuffled", "With the behaviour of another trial"), ("mean", "With the mean behaviour")):
        difference = paired_difference(scores[given], recorded)
        found.append(f"{text}: {interval_text(score_interval(scores[given]))}, {difference_text(difference)}.")
    return found


def _along_findings(along: dict[str, Interval], count: int) -> list[str]:
    told = {name: interval for name, interval in along.items() if np.isfinite(interval.mean)}
    if not told:
        return ["Too few clips, or clips too alike, to say what goes along with quality."]
    listed = ", ".join(f"{QUANTITIES[n].partition(' (')[0]} {interval_text(i, 2)}" for n, i in told.items())
    clear = [n for n, i in told.items() if np.isfinite(i.low) and not i.low <= 0 <= i.high]
    text = f"Correlation of a clip's quality with {listed} ({count} clips, four quantities looked at)."
    if not clear:
        text += " None can be told from zero"
        text += " with so few clips." if count < 3 * FEW_CLIPS else "."
    return [text]


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    behaviour(config, workdir)


if __name__ == "__main__":
    cli.run(main, __doc__, config="experiments/configs/base.py")
