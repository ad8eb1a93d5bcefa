"""Recipes compared on simulated animals with the same encoders, on unseen clips: quality, cost, fit to noise.

    python -m benchmarks.quality --workdir runs/quality --films FOLDER

For each seed x number of neurons x noise level: simulates an animal (never by an encoder), trains the ensemble on its
natural movies, reconstructs natural movies of other seeds and clips of kinds that no training movie is like (gratings,
noise, films), by every recipe of --recipes, inside the same mask. `published` with all encoders takes hours on two
cores: --published_clips bounds how many clips of each of --published_kinds it gets. Movies are kept under --workdir;
called again, it goes on where it stopped. Prints the table and writes WORKDIR/quality.json. Nothing is tuned here:
settings are those of experiments/configs, chosen on other animals. --salamander adds the real recording of FOLDER (177
cells of a retina, white noise; experiments/configs/salamander.py, chosen on its validation frames), one encoder.

The default size is reduced (18 x 32 pixels at 10 Hz, the full field of view), so that two cores can do it; give
--height 36 --width 64 --frame_rate 30 --frames 300 --frame_step 3 --stride 3 for that of the demo.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.quality_animals import Screen, Shown, make_tree, salamander_tree
from experiments.configs import salamander
from experiments.configs.small import get_config
from experiments.convolutional_decoder import decode_clips
from experiments.inputs import ensemble_of, recordings_of
from experiments.preparation import Kept
from experiments.reconstruct import reconstruct_recordings
from experiments.train import train_encoders
from neurorecon import runs
from neurorecon.encoders import predict_ensemble
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation import interval_coverage, movie_metrics, neuron_correlations
from neurorecon.evaluation.bootstrap import bootstrap_ratio
from neurorecon.evaluation.clip_scores import clip_count, interval_text, paired_difference, score_interval
from neurorecon.files import save_json

PUBLISHED = {"recipe": "published", "mask.update_threshold": 0.15}  # half of the evaluation's, as published
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "default_one_encoder": {"members": "0"},
    "published": {**PUBLISHED, "save_movies": True},
    "published_gradients": {**PUBLISHED, "published_recipe.ensemble": "gradients"},
    "published_stopped": {**PUBLISHED, "num_steps": 60},
    "published_held_out": {**PUBLISHED, "stop.held_out": 0.1},
    "poisson": {"default_recipe.likelihood": "poisson"},
    "quasi_poisson": {"default_recipe.likelihood": "quasi_poisson"},
    "natural_prior": {"prior.spectrum": "natural"},
    "flat_prior": {"prior.spectrum": "flat"},
    "linear_prior": {"prior.mean": "linear_decoder"},
    "convolutional_prior": {"prior.mean": "convolutional_decoder"},
    "common_prior": {"prior.adapt_clips": 0},
    "unwhitened_first": {"prior.first_exponent": 1.0},
    "calibrated": {"calibration_clips": 4},
    "samples": {"posterior.samples": 8},
    "held_out": {"stop.held_out": 0.1},
}
CONTROLS = ("shuffled_neurons", "linear_decoder", "convolutional_decoder", "ceiling")


def configured(options: argparse.Namespace, seed: int, neurons: int, tree: Path) -> ml_collections.ConfigDict:
    """The config of everything that is done with one animal."""
    config = get_config()
    config.seed = seed
    config.recordings = str(tree)
    config.num_models = options.models
    config.training.num_steps = options.steps
    config.factorized.frame_step = options.frame_step
    config.factorized.strides = (options.stride, 1)
    config.factorized.window_frames = options.window
    config.skip_frames = round(options.frame_rate)
    config.linear_decoder.lag_step = options.frame_step
    config.simulation.num_neurons = neurons
    return config


def animals(options: argparse.Namespace) -> Iterator[tuple[str, int, int, float]]:
    """Name, seed, number of neurons and noise level of each animal."""
    chosen = options.animals or [
        (seed, neurons, noise)
        for seed in numbers(options.seeds, int)
        for neurons in numbers(options.neurons, int)
        for noise in numbers(options.noise, float)
    ]
    for seed, neurons, noise in chosen:
        yield f"seed{seed}_neurons{neurons}_noise{noise:g}", seed, neurons, noise


def numbers(text: str, kind: type) -> list[Any]:
    """A comma-separated list."""
    return [kind(part) for part in text.split(",") if part.strip()]


def reconstructed(
    options: argparse.Namespace,
    config: ml_collections.ConfigDict,
    folder: Path,
    name: str,
    shown: list[Shown],
    kept: Kept,
) -> None:
    """One recipe on the clips of one animal, in a work folder of its own."""
    first = [s for s in shown if s.repeat == 0]
    if name.startswith("published"):
        kinds = options.published_kinds.split(",")
        first = [s for s in first if s.kind in kinds and s.clip < options.published_clips]
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(RECIPES[name])
    changed.trials = ",".join(s.trial for s in first)
    changed.controls = "shuffled_neurons,linear_decoder,ceiling" if name == "default" else ""
    if name != "default":
        changed.mask.files = str(folder / "default" / "masks")
    trained, own = (folder / n / "controls" / "convolutional_decoder" for n in ("default", name))
    if changed.prior.mean == "convolutional_decoder" and not own.exists():
        shutil.copytree(trained, own)
    if first:
        reconstruct_recordings(changed, str(folder / name), films=False, kept=kept)
    if name == "default":
        decode_clips(changed, str(folder / name))


def movies_of(folder: Path, name: str, trial: str, animal: str = "mouse") -> dict[str, np.ndarray]:
    """Recipe or control -> movie of a clip; the published recipe also with each encoder alone."""
    path = Path("reconstructions") / animal / f"{trial}.npz"
    found: dict[str, np.ndarray] = {}
    if not (folder / name / path).is_file():
        return found
    arrays = runs.load_arrays(folder / name / path)
    found[name] = arrays["movie"]
    if name == "published":
        for k, movie in enumerate(arrays["movies"]):  # as the published code finishes one
            found[f"published_one_encoder/{k}"] = gaussian_filter(movie.astype(np.float64), 0.5)
    if name == "default":
        for control in CONTROLS:
            other = folder / name / "controls" / control / animal / f"{trial}.npz"
            if other.is_file():
                found[control] = runs.load_arrays(other)["movie"]
    return found


def scored(arrays: dict[str, np.ndarray], truth: np.ndarray, movie: np.ndarray, *, own: bool) -> dict[str, float]:
    """Correlation inside the mask of a reconstruction's file; what it cost, if the movie is its `own`."""
    cost = {name: float(arrays[name]) for name in ("encoder_windows", "seconds")} if own else {}
    return {"correlation": movie_metrics(truth, movie, arrays["mask"])["movie_correlation"], **cost}


def rows_of(
    options: argparse.Namespace,
    config: ml_collections.ConfigDict,
    folder: Path,
    animal: str,
    shown: list[Shown],
    ensemble: Any,
) -> Iterator[dict[str, Any]]:
    """A row for each clip and recipe."""
    (recording,) = recordings_of(config)
    skip = config.skip_frames
    for first in (s for s in shown if s.repeat == 0):
        again = next(s for s in shown if (s.kind, s.clip, s.repeat) == (first.kind, first.clip, 1))
        trials = [recording.target(s.trial) for s in (first, again)]
        truth = trials[0].stimulus[skip:]
        for name in options.recipes:
            for label, movie in movies_of(folder, name, first.trial).items():
                arrays = runs.load_arrays(folder / name / "reconstructions" / "mouse" / f"{first.trial}.npz")
                row = {"animal": animal, "kind": first.kind, "clip": first.clip, "recipe": label}
                row |= scored(arrays, truth, movie[skip:], own=label == name)
                if label == name:
                    # Fitted to noise: right for the responses that it came from, less so for those to the same clip.
                    for which, trial in zip(("own_responses", "other_responses"), trials):
                        predicted = predict_ensemble(ensemble.members, movie.astype(np.float32), trial.behaviour)
                        row[which] = float(neuron_correlations([predicted], [trial.responses], skip=skip).mean())
                if label == name and "movie_std" in arrays:
                    covered = interval_coverage(truth, movie[skip:], arrays["movie_std"][skip:], arrays["mask"])
                    row |= {f"coverage_{round(100 * level)}": share for level, share in covered.items()}
                yield row


def salamander_rows(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Runs what is missing of the real recording; a row for each clip and recipe. Nothing in it was shown twice."""
    config = salamander.get_config()
    config.recordings = str(salamander_tree(Path(options.salamander), folder))
    config.encoders = str(folder / "trained")
    if not options.report_only:
        train_encoders(config, config.encoders)
    (recording,) = recordings_of(config)
    kept, trials = Kept(), recording.trial_ids(config.tier)
    for name in options.recipes:
        if name == "default_one_encoder":
            continue  # there is one
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(RECIPES[name])
        few = trials[: options.published_clips] if name.startswith("published") else trials
        changed.trials = ",".join(few)
        changed.controls = "shuffled_neurons,linear_decoder" if name == "default" else ""
        # The part of the screen that is scored is chosen by the linear decoder on validation frames, in every recipe.
        if not options.report_only:
            print(f"salamander: {name}", flush=True)
            reconstruct_recordings(changed, str(folder / name), films=False, kept=kept)
            if name == "default":
                decode_clips(changed, str(folder / name))
        for trial in few:
            truth = recording.target(trial).stimulus[config.skip_frames :]
            for label, movie in movies_of(folder, name, trial, recording.name).items():
                arrays = runs.load_arrays(folder / name / "reconstructions" / recording.name / f"{trial}.npz")
                row = {"animal": "salamander", "kind": "salamander", "clip": int(trial), "recipe": label}
                yield row | scored(arrays, truth, movie[config.skip_frames :], own=label == name)


def given_animal(text: str) -> tuple[int, int, float]:
    """Seed, number of neurons and noise level, as --animals gives them."""
    seed, neurons, noise = text.split(":")
    return int(seed), int(neurons), float(noise)


def scores(
    rows: list[dict[str, Any]], recipe: str, kind: str, value: str = "correlation"
) -> dict[tuple[str, str], float]:
    """(animal, clip) -> the value; the mean over encoders where a recipe ran with each alone."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["recipe"].split("/")[0] == recipe and row["kind"] == kind and value in row:
            found.setdefault((row["animal"], str(row["clip"])), []).append(row[value])
    return {clip: float(np.mean(values)) for clip, values in found.items()}


def report_over_kinds(rows: list[dict[str, Any]]) -> None:
    """Prints the default beside the published recipe over kinds of clips together: ratio, and the other showing."""
    unlike = sorted({row["kind"] for row in rows} - {"natural", "grating", "salamander"})
    for name, kinds in (("kinds unlike the training movies", unlike), ("all", ["natural", *unlike])):

        def over(recipe: str, value: str = "correlation", kinds: list[str] = kinds) -> dict[tuple[str, str], float]:
            found = ((kind, scores(rows, recipe, kind, value)) for kind in kinds)
            return {(animal, f"{kind} {clip}"): v for kind, values in found for (animal, clip), v in values.items()}

        print(f"\n{name} ({', '.join(kinds)}; not gratings, where correlations are near zero)")
        for rival, published in (("default", "published"), ("default_one_encoder", "published_one_encoder")):
            both = [clip for clip in over(published) if clip in over(rival)]
            if len(both) > 1:
                ratio = bootstrap_ratio([over(rival)[c] for c in both], [over(published)[c] for c in both], seed=0)
                print(f"  {rival} over {published}: {interval_text(ratio, 2)}, {len(both)} clips")
        values = [over(recipe, "other_responses") for recipe in ("default", "published")]
        both = [clip for clip in values[1] if clip in values[0]]
        if len(both) > 1:
            own, other = ({c: v[c] for c in both} for v in values)
            gain = interval_text(paired_difference(own, other), 4)
            print(f"  correlation of predicted responses with those to the other showing, default - published: {gain}")


def report_coverage(rows: list[dict[str, Any]], recipe: str = "samples") -> None:
    """Prints how much of the truth lies inside the recipe's intervals, by kind of clip and over all clips."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows if row["recipe"] == recipe))
    print(f"\n{recipe}: share of the true pixels inside their intervals")
    for name, those in [(kind, [kind]) for kind in kinds] + [("all clips", kinds)]:
        line = f"  {name:12}"
        for level in (50, 90):
            found = [(kind, scores(rows, recipe, kind, f"coverage_{level}")) for kind in those]
            values = {(animal, f"{kind} {clip}"): v for kind, of in found for (animal, clip), v in of.items()}
            line += f"{level} %: {interval_text(score_interval(values)):24}"
        print(f"{line}{clip_count(values)}")


def report(rows: list[dict[str, Any]]) -> None:
    """Prints the tables: every recipe and kind of clip, beside the default on the same clips."""
    recipes = list(dict.fromkeys(row["recipe"].split("/")[0] for row in rows))
    for kind in dict.fromkeys(row["kind"] for row in rows):
        default = scores(rows, "default", kind)
        print(f"\n{kind}: {clip_count(default)}; movie correlation, mean [95 % interval]")
        for recipe in recipes:
            own = scores(rows, recipe, kind)
            if not own:
                continue
            line = f"  {recipe:24}{interval_text(score_interval(own)):26}"
            shared = {clip: default[clip] for clip in own}
            if recipe != "default":
                line += f"default - it {interval_text(paired_difference(shared, own)):26}"
            for name in (
                "encoder_windows",
                "seconds",
                "own_responses",
                "other_responses",
                "coverage_50",
                "coverage_90",
            ):
                values = scores(rows, recipe, kind, name)
                if values:
                    line += f"{name.replace('_', ' ')} {np.mean(list(values.values())):.4g}  "
            print(line)
            if recipe.startswith("published") and min(own.values()) > 0 and len(own) > 1:
                rival = scores(rows, "default_one_encoder", kind) if recipe == "published_one_encoder" else default
                if set(own) <= set(rival):
                    ratio = bootstrap_ratio([rival[clip] for clip in own], list(own.values()), seed=0)
                    print(f"    default over it, as many encoders: {interval_text(ratio, 2)}")


def main(options: argparse.Namespace) -> None:
    """Runs what is missing, then reports."""
    workdir = Path(options.workdir)
    screen = Screen(options.height, options.width, options.frame_rate, options.frames)
    rows: list[dict[str, Any]] = []
    for name, seed, neurons, noise in animals(options):
        folder = workdir / name
        tree, shown = make_tree(
            folder,
            seed=seed,
            num_neurons=neurons,
            noise_level=noise,
            screen=screen,
            num_train=options.train,
            num_clips=options.clips,
            num_others=options.others,
            films=Path(options.films) if options.films else None,
        )
        config = configured(options, seed, neurons, tree)
        trained = str(folder / "trained")
        ensemble = ensemble_of([trained]) if options.report_only else train_encoders(config, trained)
        config.encoders = trained
        kept = Kept()
        for number, recipe in enumerate([] if options.report_only else options.recipes):
            print(
                f"{name}: {recipe}, {len(options.recipes) - number} of {len(options.recipes)} recipes to go", flush=True
            )
            reconstructed(options, config, folder, recipe, shown, kept)
        rows += rows_of(options, config, folder, name, shown, ensemble)
        save_json(workdir / "quality.json", {"options": vars(options), "versions": runs.versions(), "rows": rows})
    if options.salamander:
        rows += salamander_rows(options, workdir / "salamander")
        save_json(workdir / "quality.json", {"options": vars(options), "versions": runs.versions(), "rows": rows})
    report(rows)
    if "published" in options.recipes:
        report_over_kinds(rows)
    if "samples" in options.recipes:
        report_coverage(rows)
    print(json.dumps({"rows": len(rows), "file": str(workdir / "quality.json")}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--recipes", default=",".join(RECIPES), type=lambda text: text.split(","))
    parser.add_argument(
        "--animals",
        default=[],
        type=lambda text: [given_animal(part) for part in text.split(",")],
        help="SEED:NEURONS:NOISE,..., in place of all combinations of --seeds, --neurons and --noise",
    )
    parser.add_argument("--report_only", action="store_true", help="of the movies that are there; makes none")
    texts = {
        "seeds": "11,12",
        "neurons": "400",
        "noise": "1",
        "films": "",
        "published_kinds": "natural",
        "salamander": "",
    }
    for flag, value in texts.items():
        parser.add_argument(f"--{flag}", default=value)
    sizes = {"clips": 4, "others": 2, "published_clips": 2, "train": 100, "models": 7, "steps": 400}
    for flag, number in (
        sizes | {"height": 18, "width": 32, "frames": 100, "frame_step": 1, "stride": 2, "window": 32}
    ).items():
        parser.add_argument(f"--{flag}", default=number, type=int)
    parser.add_argument("--frame_rate", default=10.0, type=float)
    asked = parser.parse_args()
    if not set(asked.recipes) <= set(RECIPES) or asked.recipes[:1] != ["default"]:
        sys.exit(
            f"--recipes: expected default first, then some of {', '.join(RECIPES)}, found {','.join(asked.recipes)}"
        )
    try:
        main(asked)
    except NeuroreconError as error:
        sys.exit(str(error))
