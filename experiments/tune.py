"""Chooses the strengths of the default recipe on validation clips of your own recording.

    python -m experiments.tune --config experiments/configs/base.py --workdir runs/tuned \\
      --config.recordings=FOLDER --config.encoders=runs/trained

Reconstructs a few validation trials (config.tune.clips) under each candidate; the tier that is reported is never read.
Writes WORKDIR/tuned.json and prints the flags to use. Called again, it goes on where it stopped. See docs/tuning.md.
"""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from experiments import cli
from experiments.inputs import Ensemble, ensemble_of, located, recordings_of
from experiments.preparation import prepare_animal
from experiments.spectra import spectrum_of
from neurorecon.encoders import predict_ensemble
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation import bootstrap_difference, bootstrap_mean, movie_correlation
from neurorecon.evaluation.bootstrap import Interval
from neurorecon.evaluation.clip_scores import difference_text, interval_text
from neurorecon.files import read_json, save_json
from neurorecon.reconstruction.likelihoods import LIKELIHOODS
from neurorecon.reconstruction.tuning import Clip, Settings, Tuning, clip_scorer, tune

KEYS = ("recordings", "encoders", "seed", "default_recipe", "prior", "mask", "validation_tier", "skip_frames", "tune")


def tune_recordings(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
    """The whole job; returns what stands in tuned.json.

    Raises:
      NeuroreconError: bad config, too few validation trials, or a descent that is not finite.
    """
    config = located(config)
    if config.recipe != "default":
        raise NeuroreconError(f"--config.recipe: expected default to tune, found {config.recipe}")
    start, grids = _grids(config)
    recordings = recordings_of(config)
    ensemble = ensemble_of(cli.listed(config.encoders))
    folder = cli.claim(workdir, config, "tune", KEYS)
    store = folder / "tune_scores.json"
    scores: dict[str, list[float]] = read_json(store) if store.is_file() else {}
    scorers = [_scorer(config, folder, r, ensemble, index) for index, r in enumerate(recordings)]
    # At most: each other value once a round, a likelihood also with its weights.
    most = 1 + sum(len(v) for v in grids.values()) + len(grids["likelihood"]) * len(grids["likelihood_weight"])
    with tqdm(total=most, desc="tune", unit="candidate", initial=min(len(scores), most)) as bar:

        def score(settings: Settings) -> list[float]:
            name = json.dumps(dict(settings), sort_keys=True)
            if name not in scores:
                bar.set_postfix_str(" ".join(str(v) for v in settings.values()))
                scores[name] = [value for scorer in scorers for value in scorer(settings)]
                save_json(store, scores)
                bar.update(1)
            return scores[name]

        found = tune(score, start, grids, seed=config.seed)
    result = _summary(found, config.seed)
    save_json(folder / "tuned.json", result)
    _show(result, folder)
    return result


def _grids(config: ml_collections.ConfigDict) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Where the search starts, and the values of each setting."""
    recipe, settings = config.default_recipe, config.tune
    start = {name: recipe[name] for name in ("likelihood", "likelihood_weight", "learning_rate", "num_steps")}
    start["spectrum"] = config.prior.spectrum
    texts = {
        "likelihood": (settings.likelihoods, str),
        "likelihood_weight": (settings.likelihood_weights, float),
        "learning_rate": (settings.learning_rates, float),
        "num_steps": (settings.num_steps, int),
        "spectrum": (settings.spectra, str),
    }
    grids: dict[str, list[Any]] = {}
    for name, (text, kind) in texts.items():
        try:
            grids[name] = [kind(value) for value in cli.listed(text)]
        except ValueError:
            raise NeuroreconError(f"--config.tune: expected numbers for {name}, found {text!r}") from None
        if kind is not str and any(value <= 0 for value in grids[name]):
            raise NeuroreconError(f"--config.tune: expected {name} above 0, found {text!r}")
    for name, known in (("likelihood", LIKELIHOODS), ("spectrum", ("measured", "natural", "flat"))):
        for value in (*grids[name], start[name]):
            if value not in known:
                raise NeuroreconError(f"--config.tune: expected {name} of {', '.join(known)}, found {value!r}")
    return start, grids


def _scorer(config: ml_collections.ConfigDict, folder: Path, recording: Any, ensemble: Ensemble, index: int) -> Any:
    animal = prepare_animal(config, folder, recording, ensemble, index, linear=False)
    trials = animal.validation[: config.tune.clips]
    if len(trials) < 2:
        raise NeuroreconError(
            f"{recording.name}: expected two validation trials or more to tune on, found {len(trials)}"
        )
    length, skip = min(t.num_frames for t in trials), config.skip_frames
    clips = []
    for t in trials:
        predicted = predict_ensemble(ensemble.members, t.stimulus, t.behaviour, readout=animal.readout)
        score = functools.partial(_correlation, t.stimulus[skip:length], animal.mask, skip)
        baseline = animal.baseline(t.responses[:length])
        clips.append(Clip(t.responses[:length], t.behaviour[:length], predicted[:length], score, baseline))
    names = {*cli.listed(config.tune.spectra), config.prior.spectrum}
    spectra = {name: spectrum_of(name, animal.training_movies, animal.grey, config.prior.std) for name in names}
    return clip_scorer(
        ensemble.members,
        clips,
        spectra=spectra,
        prior_mean=animal.grey,
        key=jax.random.key(config.seed),
        skip_frames=skip,
        readout=animal.readout,
        update_mask=animal.update_mask,
    )


def _correlation(truth: np.ndarray, mask: np.ndarray, skip: int, movie: np.ndarray) -> float:
    return movie_correlation(truth, movie[skip:], mask)


def _summary(found: Tuning, seed: int) -> dict[str, Any]:
    first, best = found.tried[0], found.best
    rows = []
    for tried in sorted(found.tried, key=lambda t: -sum(t.scores)):
        mean = bootstrap_mean(tried.scores, seed=seed)
        gain = bootstrap_difference(tried.scores, first.scores, seed=seed)
        rows.append({**tried.settings, "scores": tried.scores, "correlation": list(mean), "gain": list(gain)})
    flags = [
        f"--config.{'prior' if name == 'spectrum' else 'default_recipe'}.{name}={value}"
        for name, value in best.settings.items()
        if value != first.settings[name]
    ]
    return {"start": first.settings, "best": best.settings, "flags": flags, "clips": len(first.scores), "tried": rows}


def _show(result: dict[str, Any], folder: Path) -> None:
    names = list(result["start"])
    for row in result["tried"]:
        text = "  ".join(str(row[name]) for name in names)
        print(f"{interval_text(Interval(*row['correlation']))}  {difference_text(Interval(*row['gain']))}  {text}")
    print(f"{result['clips']} validation clips; chosen: {' '.join(result['flags']) or 'the settings as they were'}")
    print(f"scores of every candidate: {folder / 'tuned.json'}")


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    tune_recordings(config, workdir)


if __name__ == "__main__":
    cli.run(main, __doc__, config="experiments/configs/base.py")
