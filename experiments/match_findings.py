"""What the match in space and time says: rows of the table, figures and sentences from the matched clips."""

from collections.abc import Iterable, Sequence
from typing import Any

import ml_collections
import numpy as np

from experiments.match_clips import Matched, settings
from neurorecon.evaluation import bootstrap_hierarchical
from neurorecon.evaluation.bootstrap import Interval
from neurorecon.evaluation.clip_scores import interval_text
from neurorecon.evaluation.coherence import Spectra, coherence, coherence_interval, movie_spectra, pool
from neurorecon.evaluation.match import ClipMatch
from neurorecon.evaluation.motion import peak_lag
from neurorecon.reporting import match_figures as figures

SCORES = {
    "movie_correlation": "movie correlation",
    "ssim": "structural similarity (SSIM)",
    "motion_energy_correlation": "correlation of motion energy",
    "motion_energy_ratio": "motion energy, share of the truth's",
    "flow_correlation": "correlation of image motion",
}
COLUMNS = {
    "measure": "what is measured",
    "condition": "reconstruction, or which control",
    "spatial_frequency": "cycles/degree; empty: all together",
    "temporal_frequency": "Hz; empty: all together",
    "time": "seconds: into the clip, or of lag",
    "ways": "number of candidates to choose from",
    "value": "mean over clips; of coherence, of the pooled spectra",
    "low": "of the 95 % interval over clips",
    "high": "of the 95 % interval over clips",
    "chance": "what a match by chance would give; empty: not defined",
}
SEED = 0  # of intervals


def identification_findings(identified: dict[str, Any], rows: list[dict], drawn: dict[str, Any]) -> list[str]:
    curves: dict[str, Any] = {}
    said = []
    for what, (ways, accuracy) in identified.items():
        curves[what] = ways, {}
        for name, animals in accuracy.items():
            columns = [{a: v[:, k] for a, v in animals.items()} for k in range(len(ways))]
            intervals = [bootstrap_hierarchical(column, seed=SEED) for column in columns]
            curves[what][1][name] = tuple(np.array(intervals).T)
            rows += [
                _row(f"identification of {what}", name, interval, 1 / n, ways=n) for n, interval in zip(ways, intervals)
            ]
        mean, *others = ((name, _said([100 * c[-1] for c in curve], 0)) for name, curve in curves[what][1].items())
        beside = "".join(f", {_name(name)} {share} %" for name, share in others)
        said.append(f"{mean[1]} % of the {what} among {ways[-1]} (chance {100 / ways[-1]:.1g} %{beside})")
    drawn["identification"] = (
        figures.identification_figure(curves["clips"], curves["seconds"]),
        "How often the true clip (above) or the true second (below) is more like the reconstruction than every other "
        "candidate. Candidates are movies of the same recording; bands are 95 % intervals over clips.",
    )
    return [f"By correlation alone, the reconstruction identifies {said[0]} and {said[1]}."]


def coherence_findings(
    config: ml_collections.ConfigDict,
    clips: Sequence[Matched],
    found: dict[str, list[ClipMatch]],
    rows: list[dict],
    drawn: dict[str, Any],
) -> list[str]:
    spectra = {name: [f.spectra for f in matches] for name, matches in found.items()}
    bands = spectra["reconstruction"][0]
    wrong = _wrong_pairs(config, clips)
    chance = {
        over: coherence(pool(wrong), over) if wrong else np.full(shape, np.nan)
        for over, shape in (
            ("both", bands.truth.shape), ("spatial", bands.spatial.shape), ("temporal", bands.temporal.shape)
        )
    }  # fmt: skip
    curves: dict[str, dict[str, Any]] = {"spatial": {}, "temporal": {}}
    for name, each in spectra.items():
        both = coherence_interval(each, "both", seed=SEED)
        for s, f in np.ndindex(bands.truth.shape):
            at = {"spatial_frequency": float(bands.spatial[s]), "temporal_frequency": float(bands.temporal[f])}
            rows.append(_row("coherence", name, [float(x[s, f]) for x in both], float(chance["both"][s, f]), **at))
        for over, x in (("spatial", bands.spatial), ("temporal", bands.temporal)):
            curves[over][name] = coherence_interval(each, over, seed=SEED)
            for k, value in enumerate(x):
                interval = [c[k] for c in curves[over][name]]
                rows.append(_row("coherence", name, interval, chance[over][k], **{f"{over}_frequency": float(value)}))
    drawn["coherence_map"] = (
        figures.coherence_map_figure(bands.spatial, bands.temporal, coherence(pool(spectra["reconstruction"]))),
        "Coherence of truth and reconstruction at each spatial and temporal frequency; the white line is at 0.5.",
    )
    drawn["coherence"] = (
        figures.coherence_curves_figure(
            bands.spatial,
            bands.temporal,
            curves["spatial"],
            curves["temporal"],
            (chance["spatial"], chance["temporal"]),
        ),
        "Coherence at each spatial frequency (all temporal ones together) and at each temporal one; bands are 95 % "
        "intervals over clips, the dashed line pairs each reconstruction with another clip.",
    )
    coarse = tuple(c[0] for c in curves["spatial"]["reconstruction"])
    limits = [_last_above(x, curves[over]["reconstruction"][0]) for over, x in zip(curves, bands[:2])]
    units = ("cycles/degree", "Hz")
    reach = [f"up to {x:.2g} {u}" if x is not None else f"at no frequency in {u}" for x, u in zip(limits, units)]
    return [
        f"Half or more of the power is accounted for (coherence of 0.5) {' and '.join(reach)}; coherence of the "
        f"coarsest detail is {_said(coarse)}."
    ]


def time_findings(
    config: ml_collections.ConfigDict,
    clips: Sequence[Matched],
    found: dict[str, list[ClipMatch]],
    rows: list[dict],
    drawn: dict[str, Any],
) -> list[str]:
    """Correlation over the clip, in half seconds, and lag; clips as long as the shortest."""
    rate = clips[0].frame_rate
    step = max(round(rate / 2), 1)
    count = min(len(c.truth) for c in clips) // step
    seconds = (config.skip_frames + (np.arange(count) + 0.5) * step) / rate
    over: dict[str, Any] = {}
    lagged: dict[str, Any] = {}
    for name, matches in found.items():
        frames = np.stack([m.frames[: count * step].reshape(count, step) for m in matches])
        over[name] = _curve(clips, _mean_of_finite(frames))
        lagged[name] = _curve(clips, np.stack([m.lag_values for m in matches]))
        lags = matches[0].lags
        rows += [_row("frame correlation", name, i, 0.0, time=float(t)) for t, *i in zip(seconds, *over[name])]
        rows += [_row("movie correlation", name, i, 0.0, time=float(t)) for t, *i in zip(lags / rate, *lagged[name])]
    drawn["over_the_clip"] = (
        figures.over_the_clip_figure(seconds, over),
        "Correlation of single frames over the clip, means of half seconds, with 95 % intervals over clips.",
    )
    drawn["lag"] = (
        figures.lag_figure(lags, lagged, rate),
        "Movie correlation when the reconstruction is shifted in time; it peaks where the two agree best, to the right "
        "where the reconstruction is late.",
    )
    peaks = [1000 / rate * peak_lag(lags, m.lag_values) for m in found["reconstruction"]]
    lag = _over_clips(clips, peaks)
    rows.append(_row("lag of the peak", "reconstruction", [x / 1000 for x in lag]))
    first, last = (tuple(c[k] for c in over["reconstruction"]) for k in (0, -1))
    return [
        f"Truth and reconstruction agree best at a lag of {_said(lag, 0)} ms (a frame is {1000 / rate:.0f} ms).",
        f"Single frames correlate by {_said(first)} in the first half second that is scored and by {_said(last)} "
        "in the last.",
    ]


def scores_findings(
    clips: Sequence[Matched], found: dict[str, list[ClipMatch]], rows: list[dict], drawn: dict[str, Any]
) -> list[str]:
    means: dict[str, dict[str, Any]] = {}
    singles: dict[str, dict[str, list[float]]] = {}
    for score, label in SCORES.items():
        for name, matches in found.items():
            singles.setdefault(label, {})[name] = [m.scores[score] for m in matches]
            means.setdefault(label, {})[name] = _over_clips(clips, singles[label][name])
            chance = 0.0 if score in ("movie_correlation", "motion_energy_correlation", "flow_correlation") else None
            rows.append(_row(label, name, means[label][name], chance))
    drawn["scores"] = (
        figures.scores_by_condition_figure(means, singles),
        "Scores of the reconstruction and of its controls: mean, 95 % interval over clips, single clips as dots.",
    )
    energy, ratio, flow, ssim = (
        _said(means[SCORES[k]]["reconstruction"])
        for k in ("motion_energy_correlation", "motion_energy_ratio", "flow_correlation", "ssim")
    )
    beside = {}
    for k in ("motion_energy_correlation", "ssim"):
        others = [f"{_name(n)} {_said(v)}" for n, v in means[SCORES[k]].items() if n != "reconstruction"]
        beside[k] = f" ({', '.join(others)})" if others else ""
    return [
        f"The reconstruction moves {ratio} times as much as the truth; its image motion follows the truth's by a "
        f"correlation of {flow}, its motion energy by {energy}{beside['motion_energy_correlation']}.",
        f"Standard SSIM is {ssim}{beside['ssim']}.",
    ]


def pixel_map(
    config: ml_collections.ConfigDict,
    clips: Sequence[Matched],
    found: dict[str, list[ClipMatch]],
    drawn: dict[str, Any],
) -> None:
    """The first animal's map; screens of several animals do not overlay."""
    mine = [k for k, c in enumerate(clips) if c.animal == clips[0].animal]
    maps = np.stack([found["reconstruction"][k].pixels for k in mine], axis=-1)
    per_pixel = 1 / settings(config, clips[0])["pixels_per_degree"]
    drawn["pixels"] = (
        figures.pixel_map_figure(_mean_of_finite(maps), clips[0].mask, per_pixel),
        f"Correlation over time of truth and reconstruction at each pixel, mean over {len(mine)} clips of "
        f"{clips[0].animal}; the line is the evaluation mask. Degrees hold at the screen's centre.",
    )


def _wrong_pairs(config: ml_collections.ConfigDict, clips: Sequence[Matched]) -> list[Spectra]:
    """Each reconstruction with the truth of the next clip of its animal."""
    found = []
    for clip in clips:
        mine = [c for c in clips if c.animal == clip.animal and (c is clip or (c.truth[:1] != clip.truth[:1]).any())]
        if len(mine) > 1:
            other = mine[(next(i for i, c in enumerate(mine) if c is clip) + 1) % len(mine)]
            length = min(len(clip.truth), len(other.truth))
            of_screen = {k: v for k, v in settings(config, clip).items() if k != "max_lag"}
            movie = clip.movies["reconstruction"][:length]
            found.append(movie_spectra(other.truth[:length], movie, clip.mask, **of_screen))
    return found


def _last_above(x: np.ndarray, values: np.ndarray, level: float = 0.5) -> float | None:
    """Where values first fall below the level, between the two frequencies by the logarithm; None if at the start."""
    below = np.flatnonzero(~(values >= level))
    if not below.size:
        return float(x[-1])
    k = below[0]
    if k == 0:
        return None
    if not np.isfinite(values[k]):
        return float(x[k - 1])
    share = (values[k - 1] - level) / (values[k - 1] - values[k])
    return float(x[k - 1] * (x[k] / x[k - 1]) ** share)


def _row(measure: str, condition: str, interval: Iterable[float], chance: float | None = None, **at: float) -> dict:
    value, low, high = (float(x) if np.isfinite(x) else None for x in interval)
    blank = {name: None for name in COLUMNS}
    return {
        **blank, "measure": measure, "condition": condition, **at, "value": value, "low": low, "high": high,
        "chance": None if chance is None or not np.isfinite(chance) else float(chance),
    }  # fmt: skip


def _over_clips(clips: Sequence[Matched], values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and interval over animals and clips; a clip without a value is left out."""
    groups: dict[str, list[float]] = {}
    for clip, value in zip(clips, values):
        if np.isfinite(value):
            groups.setdefault(clip.animal, []).append(float(value))
    return bootstrap_hierarchical(groups, seed=SEED) if groups else (np.nan, np.nan, np.nan)


def _curve(clips: Sequence[Matched], values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`_over_clips` of each column of values (clip, x)."""
    means, lows, highs = np.array([_over_clips(clips, column) for column in values.T]).T
    return means, lows, highs


def _mean_of_finite(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where all are."""
    finite = np.isfinite(values)
    counts = finite.sum(-1)
    return np.divide(np.where(finite, values, 0).sum(-1), counts, out=np.full(counts.shape, np.nan), where=counts > 0)


def _said(interval: Iterable[float], digits: int = 2) -> str:
    return interval_text(Interval(*interval), digits)


def _name(condition: str) -> str:
    return condition.replace("_", " ")
