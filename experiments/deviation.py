"""Where does the activity represent something else than the screen? A map of each reconstructed clip.

    python -m experiments.deviation --config experiments/configs/demo.py --workdir runs/demo

WORKDIR is the folder of a finished reconstruction, whose settings are used. For each clip it also reconstructs, by the
same recipe, the responses that the encoders predict for the true movie, and draws of these with noise; the same and the
recorded responses of validation clips make the null distribution. See `neurorecon.evaluation.local_gain`.

Adds to each WORKDIR/reconstructions/ANIMAL/TRIAL.npz: `deviation` (z, below 0 where contrast of the screen is missing,
moved or reversed; NaN where nothing could be found), `deviation_found` (false discovery rate config.deviation.rate) and
`deviation_detectable` (loss of gain that would be found). Writes WORKDIR/deviation.json; movies are kept under
WORKDIR/deviation/, so that it goes on where it stopped. WORKDIR/report.html shows the map after experiments.report.

Cost: config.deviation.samples + 1 descents for each clip, one more for each validation clip.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from tqdm import tqdm

from experiments import cli
from experiments.descents import resumable, settings_of
from experiments.evaluate import stored_clips, stored_config
from experiments.inputs import Ensemble, ensemble_of, recordings_of
from experiments.predicted_responses import fitted_noise, with_noise
from experiments.preparation import Animal, prepare_animal
from neurorecon import runs
from neurorecon.encoders import predict_ensemble
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.local_gain import (
    GainNull,
    GainScale,
    LocalGain,
    as_movie,
    fit_gain_null,
    gain_deviation,
    local_gain,
)
from neurorecon.files import save_json, save_npz
from neurorecon.reconstruction import reconstruct
from neurorecon.recordings import Trial

LEAST_CLIPS = 3


class Maps:
    """One animal's movies for its maps, each made once and kept.

    Args:
      config: of the reconstruction, with `deviation` as asked now.
      folder: of the reconstruction.
      animal, ensemble: which.
      on_movie: called after every movie.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, folder: Path, animal: Animal, ensemble: Ensemble, on_movie: Callable
    ) -> None:
        if len(animal.validation[: config.deviation.validation_clips]) < LEAST_CLIPS:
            raise NeuroreconError(
                f"--config.deviation.validation_clips: expected {LEAST_CLIPS} or more of {animal.name}, found "
                f"{len(animal.validation[: config.deviation.validation_clips])}"
            )
        d = config.deviation
        self.config, self.folder, self.animal, self.ensemble = config, folder, animal, ensemble
        self.validation = animal.validation[: d.validation_clips]
        self.scale = GainScale(d.window_seconds * animal.recording.frame_rate, d.window_pixels, d.detail_pixels)
        self._on_movie, self._counted = on_movie, set[Path]()
        self._noise = fitted_noise(animal, ensemble, animal.readout, config.skip_frames)

    def predicted(self, trial: Trial) -> np.ndarray:
        """(time, neuron) of the encoders for the true movie."""
        return predict_ensemble(self.ensemble.members, trial.stimulus, trial.behaviour, readout=self.animal.readout)

    def movie(self, trial: Trial, name: str, responses: Callable[[], np.ndarray]) -> np.ndarray:
        """(time, height, width) that the run's recipe makes of `responses()`; kept under WORKDIR/deviation/."""
        path = self.folder / "deviation" / self.animal.name / f"{trial.id}_{name}.npz"
        if not path.is_file():
            config, animal, given = self.config, self.animal, responses()
            store = path.with_name(f"{path.stem}_progress.npz")
            with tqdm(disable=True) as bar, resumable(store, bar, config.checkpoint_seconds) as resume:
                made = reconstruct(
                    self.ensemble.members,
                    given,
                    trial.behaviour,
                    baseline=animal.baseline(given),
                    **settings_of(config, animal),
                    **resume,
                )
            save_npz(path, movie=made.movie)
        if path not in self._counted:
            self._counted.add(path)
            self._on_movie()
        return runs.load_arrays(path)["movie"]

    def gain(self, trial: Trial, movie: np.ndarray) -> LocalGain:
        """Of a movie of this trial, against what is expected of it."""
        skip = min(self.config.skip_frames, trial.num_frames // 4)
        expected = self.movie(trial, "expected", lambda: self.predicted(trial))
        return local_gain(movie[skip:], expected[skip:], self.animal.mask, self.scale)

    def draws(self, trial: Trial) -> list[LocalGain]:
        """Of responses simulated for this trial."""

        def drawn(place: int) -> np.ndarray:
            seed = [self.config.seed, int(trial.id), place]
            return with_noise(self._noise, self.predicted(trial), seed)

        return [
            self.gain(trial, self.movie(trial, f"draw{k}", functools.partial(drawn, k)))
            for k in range(self.config.deviation.samples)
        ]

    def null(self) -> GainNull:
        """From validation clips."""
        gains = [self.gain(t, self.movie(t, "recorded", functools.partial(_recorded, t))) for t in self.validation]
        return fit_gain_null(gains, [self.draws(t) for t in self.validation])


def deviation(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
    """Maps of every clip of a reconstruction; returns what stands in WORKDIR/deviation.json.

    Raises:
      NeuroreconError: nothing was reconstructed there, or by settings that have no such null.
    """
    config, ensemble = asked(config, workdir)
    folder, clips = Path(workdir), list(stored_clips(workdir, config))
    rows: list[dict[str, Any]] = []
    count = config.deviation.samples + 1
    bar = tqdm(desc="deviation", unit="movie", mininterval=2.0)
    for index, recording in enumerate(recordings_of(config)):
        own = [clip for clip in clips if clip.animal == recording.name]
        animal = prepare_animal(config, folder, recording, ensemble, index, linear=False)
        maps = Maps(config, folder, animal, ensemble, bar.update)
        bar.total = (bar.total or 0) + len(own) * count + len(maps.validation) * (count + 1)
        bar.refresh()
        null = maps.null()
        for clip in own:
            trial, stored = recording.target(clip.trial), runs.load_arrays(clip.path)
            found = gain_deviation(
                maps.gain(trial, stored["movie"]), maps.draws(trial), null, rate=config.deviation.rate
            )
            rows.append({"animal": clip.animal, "trial": clip.trial} | _summary(found, recording.frame_rate))
            skip = min(config.skip_frames, trial.num_frames // 4)
            save_npz(clip.path, **stored | _arrays(found, stored["movie"].shape, animal.mask, maps.scale, skip))
            (folder / "movies" / f"{clip.animal}_{clip.trial}.tiff").unlink(missing_ok=True)  # its film is made anew
    bar.close()
    summary = {"rate": config.deviation.rate, "clips": rows, "config": config.to_dict(), "versions": runs.versions()}
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
        raise NeuroreconError(f"--config.deviation: expected samples, a rate in (0, 1) and sizes above 0, found {d}")
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


def _recorded(trial: Trial) -> np.ndarray:
    return trial.responses


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
