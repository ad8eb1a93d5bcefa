"""Where does the activity represent something else than the screen? A map of each reconstructed clip.

    python -m experiments.deviation --config experiments/configs/demo.py --workdir runs/demo

WORKDIR is the folder of a finished reconstruction, whose settings are used. By default the score of contrast is tested
in response space (config.deviation.statistic="score"): would the recorded responses be likelier had the movie less
contrast here? "reconstruction" compares the clip's reconstruction with that of the responses that the encoders predict.
Draws of predicted responses with noise and the recorded responses of validation clips make the null distribution. See
`neurorecon.evaluation.local_gain`, `neurorecon.reconstruction.contrast_score`.

Adds to each WORKDIR/reconstructions/ANIMAL/TRIAL.npz: `deviation` (z, below 0 where contrast of the screen is missing,
moved or reversed; NaN where nothing could be found), `deviation_found` (false discovery rate config.deviation.rate) and
`deviation_detectable` (loss of gain that would be found). Writes WORKDIR/deviation.json; what takes long is kept under
WORKDIR/deviation/, so that it goes on where it stopped. WORKDIR/report.html shows the map after experiments.report.

Cost: one backward pass for each clip and draw; by reconstruction config.deviation.samples + 1 descents for each clip,
one more for each validation clip.
"""

from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from tqdm import tqdm

from experiments import cli
from experiments.deviation_maps import STATISTICS
from experiments.evaluate import stored_clips, stored_config
from experiments.inputs import Ensemble, ensemble_of, recordings_of
from experiments.preparation import prepare_animal
from neurorecon import runs
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.local_gain import GainScale, as_movie, gain_deviation
from neurorecon.files import save_json, save_npz


def deviation(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
    """Maps of every clip of a reconstruction; returns what stands in WORKDIR/deviation.json.

    Raises:
      NeuroreconError: nothing was reconstructed there, or by settings that have no such null.
    """
    config, ensemble = asked(config, workdir)
    folder, clips = Path(workdir), list(stored_clips(workdir, config))
    rows: list[dict[str, Any]] = []
    make, samples = STATISTICS[config.deviation.statistic], config.deviation.samples
    bar = tqdm(desc="deviation", unit="response", mininterval=2.0)
    for index, recording in enumerate(recordings_of(config)):
        own = [clip for clip in clips if clip.animal == recording.name]
        animal = prepare_animal(config, folder, recording, ensemble, index, linear=False)
        maps = make(config, folder, animal, ensemble, bar.update)
        bar.total = (bar.total or 0) + len(own) * (samples + make.per_clip) + len(maps.validation) * (samples + 2)
        bar.refresh()
        null = maps.null()
        for clip in own:
            trial, stored = recording.target(clip.trial), runs.load_arrays(clip.path)
            gain, draws = maps.clip(trial, stored["movie"]), maps.draws(trial)
            found = gain_deviation(gain, draws, null, rate=config.deviation.rate)
            rows.append({"animal": clip.animal, "trial": clip.trial} | _summary(found, recording.frame_rate))
            shape, skip = stored["movie"].shape, maps.skipped(trial)
            save_npz(clip.path, **stored | _arrays(found, shape, animal.mask, maps.scale, skip))
            (folder / "movies" / f"{clip.animal}_{clip.trial}.tiff").unlink(missing_ok=True)  # its film is made anew
    bar.close()
    summary = {
        "statistic": config.deviation.statistic,
        "rate": config.deviation.rate,
        "clips": rows,
        "config": config.to_dict(),
        "versions": runs.versions(),
    }
    save_json(folder / "deviation.json", summary)
    for row in rows:
        print(f"{row['animal']}, trial {row['trial']}: {row['finding']}")
    return summary


def asked(config: ml_collections.ConfigDict, workdir: str) -> tuple[ml_collections.ConfigDict, Ensemble]:
    """The settings of the reconstruction in `workdir` with `config.deviation` as asked now, and its encoders.

    Raises:
      NeuroreconError: there is none, or its responses, neurons or movies are not those of the recipe alone.
    """
    stored = stored_config(workdir)
    stored.deviation = config.deviation
    d = stored.deviation
    if d.samples < 1 or not 0 < d.rate < 1 or min(d.window_seconds, d.window_pixels, d.detail_pixels) <= 0:
        raise NeuroreconError(
            "--config.deviation: expected samples, a rate in (0, 1) and sizes above 0, found "
            f"{', '.join(f'{name} {value}' for name, value in d.items())}"
        )
    if d.statistic not in STATISTICS or not d.shared_gain_seconds >= 0:
        raise NeuroreconError(
            f"--config.deviation: expected statistic {' or '.join(STATISTICS)} and shared_gain_seconds of 0 or more, "
            f"found {d.statistic!r} and {d.shared_gain_seconds}"
        )
    plain = (
        stored.responses == "recorded"
        and stored.neurons.share >= 1
        and not stored.neurons.count
        and stored.behaviour.given == "recorded"
        and not stored.calibration_clips
        and not stored.members
    )
    if not plain:
        raise NeuroreconError(
            f"--workdir {workdir}: expected a reconstruction from all recorded responses, with recorded behaviour, all "
            "encoders and without calibration_clips; make one"
        )
    stored.encoders = stored.encoders or workdir
    return stored, ensemble_of(cli.listed(stored.encoders))


def _arrays(
    found: Any, shape: tuple[int, int, int], mask: np.ndarray, scale: GainScale, skip: int
) -> dict[str, np.ndarray]:
    """At the movie's resolution; frames that are not scored have none."""
    scored = (shape[0] - skip, *shape[1:])
    lead = ((skip, 0), (0, 0), (0, 0))
    z = np.pad(as_movie(found.z, scored, mask, scale), lead, constant_values=np.nan)
    least = np.pad(as_movie(found.detectable, scored, mask, scale), lead, constant_values=np.nan)
    seen = np.pad(as_movie(found.found, scored, mask, scale), lead)
    return {"deviation": z, "deviation_found": seen, "deviation_detectable": least}


def _summary(found: Any, frame_rate: float) -> dict[str, Any]:
    tested = np.isfinite(found.z)
    share = float(found.found.sum() / max(tested.sum(), 1))
    row: dict[str, Any] = {
        "windows": int(found.z.size),
        "tested": int(tested.sum()),
        "found": int(found.found.sum()),
        "share": share,
        "detectable": float(np.median(found.detectable[tested])) if tested.any() else None,
        "lowest_z": float(found.z[tested].min()) if tested.any() else None,
    }
    seconds = np.flatnonzero(found.found.any((1, 2))) * GainScale().stride[0] / frame_rate
    if not tested.any():
        row["finding"] = "nothing could be tested: too little contrast inside the mask"
    elif not found.found.any():
        row["finding"] = (
            f"nothing found in {tested.sum()} windows; a loss of {row['detectable']:.2f} of the contrast "
            "would be seen in half of them"
        )
    else:
        row["finding"] = (
            f"less of the screen's contrast than expected in {share:.0%} of the windows, "
            f"lowest z {row['lowest_z']:.1f}, from {seconds[0]:.1f} to {seconds[-1]:.1f} s of the scored part"
        )
    return row


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    deviation(config, workdir)


if __name__ == "__main__":
    cli.run(main, __doc__, config="experiments/configs/base.py")
