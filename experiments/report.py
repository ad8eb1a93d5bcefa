"""Makes the films and the page of a work folder, again from what is there.

    python -m experiments.report --workdir runs/mine

Writes WORKDIR/movies/ANIMAL_TRIAL.mp4 (true, reconstructed, linear decoder side by side), the reconstruction alone as
WORKDIR/movies/ANIMAL_TRIAL.tiff, WORKDIR/film_strip.png and WORKDIR/report.html.
"""

import dataclasses
from pathlib import Path

from tqdm import tqdm

from experiments import cli
from experiments.evaluate import evaluate, stored_clips, stored_config
from neurorecon.files import read_json
from neurorecon.reporting import (
    ReportClip,
    difference_panel,
    film_strip,
    load_clip,
    spread_frames,
    write_movie,
    write_report,
    write_tiff,
)
from neurorecon.runs import load_arrays

FILMS = 12  # on the page; the table holds every clip


def report(workdir: str) -> Path:
    """Writes films and page from what a reconstruction left in its work folder; returns the page's path.

    Raises:
      NeuroreconError: nothing is there, or a file is damaged.
    """
    folder = Path(workdir)
    config = stored_config(workdir)
    metrics = read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {"clips": []}
    clips = list(stored_clips(workdir, config))
    if [(c["animal"], c["trial"]) for c in metrics["clips"]] != [(c.animal, c.trial) for c in clips]:
        metrics = evaluate(workdir)  # clips came after the scores
    scores = {(c["animal"], c["trial"]): c for c in metrics["clips"]}
    shown: list[ReportClip] = []
    for stored in tqdm(clips, desc="report", unit="film", mininterval=2.0):
        clip = load_clip(
            stored.path,
            stored.truth,
            frame_rate=stored.frame_rate,
            scores={k: v for k, v in scores[stored.animal, stored.trial].items() if isinstance(v, float)},
        )
        decoded = folder / "controls" / "linear_decoder" / stored.animal / f"{stored.trial}.npz"
        if decoded.is_file():
            clip = dataclasses.replace(clip, linear_decoder=load_arrays(decoded)["movie"])
        name = folder / "movies" / f"{stored.animal}_{stored.trial}"
        if not name.with_suffix(".tiff").is_file():
            panels = {
                "true": clip.truth,
                "reconstructed": clip.movie,
                "difference": difference_panel(clip.truth, clip.movie),
            }
            if clip.linear_decoder is not None:
                panels["linear decoder"] = clip.linear_decoder
            write_movie(name.with_suffix(".mp4"), panels, clip.frame_rate, clip.mask)
            write_tiff(name.with_suffix(".tiff"), clip.movie, clip.frame_rate)
        if len(shown) < FILMS:
            shown.append(clip)
    # One of the middle, neither the best nor the worst.
    by_score = sorted(shown, key=lambda c: float(scores[c.animal, c.trial]["movie_correlation"]))
    typical = by_score[len(by_score) // 2]
    film_strip(
        typical.truth,
        typical.movie,
        typical.mask,
        folder / "film_strip.png",
        frames=spread_frames(len(typical.truth), 8, config.skip_frames),
        frame_rate=typical.frame_rate,
        linear_decoder=typical.linear_decoder,
    )
    return write_report(folder, shown, metrics, config.to_dict())


def main(config: None, workdir: str) -> None:
    del config  # it is in the work folder
    print(report(workdir))


if __name__ == "__main__":
    cli.run(main, __doc__, config=None)
