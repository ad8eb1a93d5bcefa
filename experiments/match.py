"""How well do the reconstructed movies match what was shown, in space, in time and as a whole?

    python -m experiments.match --config experiments/configs/demo.py --workdir runs/demo

WORKDIR is the folder of a reconstruction; of a training alone, its clips are reconstructed first. Beside the
reconstruction stand the controls that the folder holds for every clip: linear decoder, shuffled neurons, ceiling.

How to read it. Coherence says which detail and which pace come through: 1 where the reconstruction is the truth
through some linear filter, 0.5 where half of the power is accounted for; the dashed line pairs each reconstruction with
another clip's truth, and is what chance gives. The lag is where truth and reconstruction agree best; above 0 the
reconstruction is late. Identification asks which of N movies of the recording, and which second of them, is most like
the reconstruction; chance is 1 / N. Motion energy is the mean absolute change from frame to frame, image motion the
velocity that the whole picture moves with. All scores are inside the evaluation mask and from config.skip_frames on;
the map of pixels covers the whole screen. Intervals are over clips (and animals, where there are several) and say
nothing of other animals.

Cost: about a minute for a dozen clips, once they are reconstructed. Degrees come from config.screen.
"""

import time
from pathlib import Path
from typing import Any

import ml_collections
from tqdm import tqdm

from experiments import cli
from experiments.inputs import located
from experiments.match_clips import identify, matched_clips, settings
from experiments.match_findings import (
    COLUMNS,
    coherence_findings,
    identification_findings,
    pixel_map,
    scores_findings,
    time_findings,
)
from experiments.reconstruct import reconstruct_recordings
from experiments.studies import begin, finish
from neurorecon.evaluation.match import ClipMatch, clip_match
from neurorecon.reporting.studies import Study


def match(config: ml_collections.ConfigDict, workdir: str) -> Study:
    """Runs the study; see the module.

    Raises:
      NeuroreconError: bad config, nothing to reconstruct with, or clips too short to be matched.
    """
    started = time.monotonic()
    config, folder = begin(config, workdir, "match", ("screen", "match", "skip_frames"))
    config = located(config)
    if not any((Path(workdir) / "reconstructions").glob("*/*.npz")):
        reconstruct_recordings(config, workdir, films=False)
    clips = matched_clips(config, Path(workdir))
    conditions = list(clips[0].movies)
    found: dict[str, list[ClipMatch]] = {name: [] for name in conditions}
    for clip in tqdm(clips, desc="match", unit="clip", mininterval=2.0):
        for name in conditions:
            found[name].append(clip_match(clip.truth, clip.movies[name], clip.mask, **settings(config, clip)))
    identified = {what: identify(config, clips, seconds=what == "seconds") for what in ("clips", "seconds")}
    rows: list[dict[str, Any]] = []
    drawn: dict[str, tuple[Any, str]] = {}
    findings = [
        *identification_findings(identified, rows, drawn),
        *coherence_findings(config, clips, found, rows, drawn),
        *time_findings(config, clips, found, rows, drawn),
        *scores_findings(clips, found, rows, drawn),
    ]
    pixel_map(config, clips, found, drawn)
    return finish(
        folder,
        started=started,
        config=config,
        title="Match in space and time",
        question="What of the movie comes through: which detail, which pace, and enough to tell what was shown?",
        findings=findings,
        columns=COLUMNS,
        rows=rows,
        figures=drawn,
    )


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    match(config, workdir)


if __name__ == "__main__":
    cli.run(main, __doc__, config="experiments/configs/demo.py")
