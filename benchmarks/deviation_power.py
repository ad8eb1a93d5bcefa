"""Which planted changes do deviation maps find, and how often do they find one where there is none?

    python -m benchmarks.deviation_power --workdir runs/demo

WORKDIR is a finished reconstruction of one simulated animal. Its cortex is made again from the seed in the recording's
meta/recording.json and shown each clip with part of it changed for six seconds, a disc of eight pixels inside the mask:
contrast times a factor, moved sideways, or late. The screen, as the analysis knows it, stays. Prints the area under the
curve (planted windows against windows out of reach of the change, pooled over clips; 95 % interval over clips), the
share of clips where something is found inside, false discoveries, and the same for clips left alone. Writes
WORKDIR/deviation/power_STATISTIC.json and .svg. Goes on where it stopped.
"""

import argparse
import functools
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata
from tqdm import tqdm

from experiments.configs.base import get_config
from experiments.deviation import asked
from experiments.deviation_maps import STATISTICS
from experiments.evaluate import stored_clips
from experiments.inputs import recordings_of
from experiments.preparation import prepare_animal
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.local_gain import GainScale, gain_deviation, window_places
from neurorecon.files import atomic_path, read_json, save_json
from neurorecon.simulation.animal import derived_seed, make_animal, simulate_trial

RADIUS, SECONDS = 8.0, 6.0
FACTORS = (0.75, 0.5, 0.25, 0.0, -0.5, -1.0)
OTHERS = {"shift_4": 4, "shift_8": 8, "delay_9": 9}
EFFECTS = (*(f"factor_{f:g}" for f in FACTORS), *OTHERS)


def region(mask: np.ndarray, seed: int) -> np.ndarray:
    """(height, width) bool: a disc, nine tenths of it inside the mask."""
    rng = np.random.default_rng([7, seed])
    rows, columns = np.indices(mask.shape)
    for _ in range(10_000):
        y, x = rng.uniform(0, mask.shape[0]), rng.uniform(0, mask.shape[1])
        disc = np.hypot(rows - y, columns - x) <= RADIUS
        if mask[disc].mean() > 0.9 and disc.sum() > 0.9 * np.pi * RADIUS**2:
            return disc
    raise NeuroreconError(f"mask: expected room for a disc of radius {RADIUS:g} pixels, found none")


def changed(movie: np.ndarray, disc: np.ndarray, when: slice, effect: str) -> np.ndarray:
    """The movie with the effect inside the disc, whose edge is blurred by a pixel."""
    kind, amount = effect.split("_")
    inside = movie[when]
    if kind == "factor":
        mean = inside[:, disc].mean()
        new = mean + float(amount) * (inside - mean)
    elif kind == "shift":
        new = np.roll(inside, int(amount), axis=2)
    else:
        new = np.concatenate([np.repeat(movie[:1], int(amount), axis=0), movie])[: len(movie)][when]
    weight = gaussian_filter(disc.astype(float), 1.0)
    out = movie.copy()
    out[when] = np.clip((1 - weight) * inside + weight * new, 0, 255)
    return out


def reach(disc: np.ndarray, when: slice, mask: np.ndarray, num_frames: int, skip: int, scale: GainScale) -> np.ndarray:
    """Share of each window's weight that lies in the change, (block, row, column)."""
    sigma = (scale.time, scale.space, scale.space)
    planted = np.zeros((num_frames, *mask.shape), np.float32)
    planted[when][:, disc] = 1
    planted = planted[skip:]
    weight = gaussian_filter(np.broadcast_to(mask, planted.shape).astype(np.float32), sigma, mode="constant")
    inside = gaussian_filter(planted * mask, sigma, mode="constant")
    return (inside / np.maximum(weight, 1e-6))[np.ix_(*window_places(planted.shape, scale))]


def auc(planted: np.ndarray, others: np.ndarray) -> float:
    """Probability that a planted window's z is below another's."""
    if not planted.size or not others.size:
        return float("nan")
    ranks = rankdata(np.concatenate([-planted, -others]))[: planted.size]
    return float((ranks.sum() - planted.size * (planted.size + 1) / 2) / (planted.size * others.size))


def measure(workdir: str, max_clips: int, statistic: str) -> dict:
    """Runs everything; see the module."""
    config = get_config()
    config.deviation.statistic = statistic
    config, ensemble = asked(config, workdir)
    (recording,) = recordings_of(config)
    meta = read_json(Path(recording.path) / "meta" / "recording.json")
    if not meta.get("simulated"):
        raise NeuroreconError(f"{recording.path}: expected a simulated animal, whose cortex can be made again")
    height, width = recording.frame_shape
    rate = recording.frame_rate
    cortex = make_animal(meta["seed"], num_neurons=recording.num_neurons, height=height, width=width, frame_rate=rate)
    animal = prepare_animal(config, Path(workdir), recording, ensemble, 0, linear=False)
    clips = list(stored_clips(workdir, config))[: max_clips or None]
    samples = config.deviation.samples
    bar = tqdm(desc="deviation power", unit="response", mininterval=2.0)
    maps = STATISTICS[statistic](config, Path(workdir), animal, ensemble, bar.update)
    bar.total = len(maps.validation) * (samples + 2) + len(clips) * (samples + 2 + len(EFFECTS))
    null, ids = maps.null(), recording.trial_ids(config.tier)
    found: dict[str, list[dict]] = {effect: [] for effect in ("none", *EFFECTS)}
    simulated_found = 0
    for clip in clips:
        trial, place = recording.target(clip.trial), ids.index(clip.trial)
        skip = maps.skipped(trial)
        length = min(round(SECONDS * rate), trial.num_frames - skip)
        start = skip + (place % 3) * (trial.num_frames - skip - length) // 2
        disc, when = region(animal.mask, place), slice(start, start + length)
        share = reach(disc, when, animal.mask, trial.num_frames, skip, maps.scale)
        draws = maps.draws(trial)
        simulated_found += sum(bool(gain_deviation(draw, draws, null).found.any()) for draw in draws)
        seed = derived_seed(meta["seed"], "trial", config.tier, place, 0)

        def seen(effect, trial=trial, disc=disc, when=when, seed=seed):
            movie = trial.stimulus if effect == "none" else changed(trial.stimulus, disc, when, effect)
            return simulate_trial(
                cortex, movie, seed=seed, noise_level=meta["noise_level"], behaviour=trial.behaviour
            ).responses

        gains = maps.gains(trial, {f"planted_{effect}": functools.partial(seen, effect) for effect in found})
        for effect, gain in zip(found, gains.values()):
            result = gain_deviation(gain, draws, null, rate=config.deviation.rate)
            tested = np.isfinite(result.z)
            inside, outside = tested & (share > 0.5), tested & (share < 0.05)
            found[effect].append(
                {
                    "inside": result.z[inside],
                    "outside": result.z[outside],
                    "hit": bool(result.found[inside].any()),
                    "false": int(result.found[outside].sum()),
                    "found": int(result.found.sum()),
                }
            )
    bar.close()
    table = {effect: _row(rows, tested_only=effect != "none") for effect, rows in found.items()}
    return {
        "statistic": statistic,
        "effects": table,
        "simulated_null": {"found": simulated_found, "clips": len(clips) * samples},
    }


def _row(rows: list[dict], *, tested_only: bool) -> dict:
    tested = [row for row in rows if row["inside"].size] if tested_only else rows

    def pooled(chosen: list[dict]) -> float:
        return auc(*(np.concatenate([row[name] for row in chosen]) for name in ("inside", "outside")))

    low = high = float("nan")
    if len(tested) > 1:
        rng = np.random.default_rng(0)
        draws = [pooled([tested[i] for i in rng.integers(len(tested), size=len(tested))]) for _ in range(500)]
        low, high = (float(x) for x in np.nanpercentile(draws, [2.5, 97.5]))
    discoveries = sum(row["found"] for row in rows)
    return {
        "clips": len(tested),
        "auc": pooled(tested) if tested else float("nan"),
        "low": low,
        "high": high,
        "auc_by_clip": [auc(row["inside"], row["outside"]) for row in tested],
        "hits": sum(row["hit"] for row in tested),
        "clips_with_findings": sum(row["found"] > 0 for row in rows),
        "false_windows": sum(row["false"] for row in rows),
        "false_share": sum(row["false"] for row in rows) / max(discoveries, 1),
    }


def figure(table: dict) -> Figure:
    """AUC and share of clips found against the contrast factor; shifts and delays beside it."""
    drawing = Figure(figsize=(7, 3.2), layout="constrained")
    names = ["none", *(f"factor_{f:g}" for f in FACTORS), *OTHERS]
    labels = ["1", *(f"{f:g}" for f in FACTORS), "4 px", "8 px", "9 frames"]
    x = np.arange(len(names))
    axis = drawing.subplots()
    rows = [table[name] for name in names]
    values = np.array([row["auc"] for row in rows])
    errors = np.array([[row["auc"] - row["low"], row["high"] - row["auc"]] for row in rows]).T
    axis.errorbar(x, values, np.maximum(errors, 0), fmt="o", color="#0072B2", label="area under the curve")
    axis.plot(x, [row["hits"] / max(row["clips"], 1) for row in rows], "s", color="#D55E00", label="clips found")
    axis.axhline(0.9, color="0.6", lw=0.8, ls="--")
    axis.set(xticks=x, xticklabels=labels, ylim=(-0.02, 1.05), xlabel="contrast factor, sideways shift, delay")
    axis.set_ylabel("area under the curve; share of clips")
    axis.legend(frameon=False)
    return drawing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--max-clips", type=int, default=0, help="0: all")
    parser.add_argument("--statistic", choices=list(STATISTICS), default=get_config().deviation.statistic)
    arguments = parser.parse_args()
    try:
        result = measure(arguments.workdir, arguments.max_clips, arguments.statistic)
    except NeuroreconError as error:
        raise SystemExit(f"error: {error}") from None
    for name, row in result["effects"].items():
        print(
            f"{name:>11}: AUC {row['auc']:.3f} [{row['low']:.3f}, {row['high']:.3f}], found inside in {row['hits']} of "
            f"{row['clips']} clips, anything in {row['clips_with_findings']}, false windows {row['false_windows']} "
            f"({row['false_share']:.1%} of those found)"
        )
    simulated = result["simulated_null"]
    print(f"simulated responses: something found in {simulated['found']} of {simulated['clips']}")
    stem = Path(arguments.workdir) / "deviation" / f"power_{arguments.statistic}"
    save_json(stem.with_suffix(".json"), result)
    with atomic_path(stem.with_suffix(".svg")) as path:
        figure(result["effects"]).savefig(path)
    print(stem.with_suffix(".svg"))


if __name__ == "__main__":
    main()
