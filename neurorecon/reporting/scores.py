"""What metrics.json says, as named scores with plain words, for the page and the figures."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from neurorecon.errors import NeuroreconError

# Okabe-Ito, and grey for the empty controls.
BLUE, ORANGE, GREEN, SKY, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#CC79A7", "#8a8a8a"

WORDS = {
    "movie_correlation": (
        "Movie correlation",
        "Pearson correlation over all pixels and frames inside the mask",
    ),
    "frame_correlation": ("Frame correlation", "Pearson correlation within each frame, mean over frames"),
    "pixel_correlation": (
        "Pixel correlation",
        "Pearson correlation of each pixel over time, mean over pixels",
    ),
    "rmse": ("RMSE", "root mean squared error, in grey values 0 to 255"),
    "psnr": ("PSNR", "peak signal-to-noise ratio, in decibels, peak 255"),
    "ssim": ("SSIM", "structural similarity, Gaussian window of 1.5 pixels"),
    "published_ssim": ("Published SSIM", "one window for the whole movie, as in the published code"),
    "motion_energy_correlation": (
        "Motion energy",
        "correlation of the mean absolute change from frame to frame",
    ),
    "coverage_50": ("Inside 50 % intervals", "share of true pixels in the posterior's 50 % intervals; ideally 0.5"),
    "coverage_90": ("Inside 90 % intervals", "share of true pixels in the posterior's 90 % intervals; ideally 0.9"),
    "response_correlation": ("Response correlation", "recorded responses against those predicted"),
}
CONTROLS = {
    "reconstruction": ("Reconstruction", "this method", BLUE),
    "linear_decoder": (
        "Linear decoder",
        "ridge regression from responses to pixels, fitted on training trials",
        ORANGE,
    ),
    "convolutional_decoder": (
        "Convolutional decoder",
        "a network from responses to pixels, fitted on training trials, that starts as a linear decoder",
        PURPLE,
    ),
    "grey": ("Grey movie", "the blank start of the reconstruction: what no information gives", GREY),
    "prior_alone": ("Prior alone", "a movie drawn from the prior of movies: what it invents without responses", GREY),
    "shuffled_neurons": ("Shuffled neurons", "the same method with the neurons' order permuted", GREY),
    "ceiling": (
        "Ceiling",
        "from noise-free responses that another encoder predicts for the true movie, not recorded ones",
        GREEN,
    ),
}


@dataclasses.dataclass(frozen=True)
class Score:
    """A mean with its interval; None where it is not defined or was not measured."""

    name: str
    label: str
    hint: str
    colour: str
    mean: float | None
    low: float | None
    high: float | None


def words(name: str) -> tuple[str, str]:
    """Label and explanation of a score; an unknown name is spelled out."""
    spelled = name.replace("_", " ")
    return WORDS.get(name, (spelled[:1].upper() + spelled[1:], ""))


def finite(value: Any) -> float | None:
    """`value` as a float, or None for null, NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def summary_score(name: str, entry: Any, source: str = "metrics.json") -> Score:
    """One entry `name -> {mean, ci95: [low, high]}` of metrics.json.

    Raises:
      NeuroreconError: the entry has another form.
    """
    if not isinstance(entry, Mapping) or "mean" not in entry:
        raise NeuroreconError(f"{source}: expected {name} as {{mean, ci95: [low, high]}}, found {entry!r:.80}")
    interval = entry.get("ci95")
    interval = [None, None] if interval is None else list(interval)
    if len(interval) != 2:
        raise NeuroreconError(f"{source}: expected ci95 of {name} as [low, high], found {interval!r:.80}")
    label, hint = words(name)
    low, high = (finite(end) for end in interval)
    return Score(name, label, hint, BLUE, finite(entry["mean"]), low, high)


def control_score(name: str, entry: Any) -> Score:
    """One entry of `controls` (or the reconstruction itself) under its own words and colour."""
    score = summary_score(name, entry)
    label, hint, colour = CONTROLS.get(name, (*words(name), GREY))
    return dataclasses.replace(score, label=label, hint=hint, colour=colour)


def headline_scores(metrics: Mapping) -> list[Score]:
    """The movie correlation of the reconstruction, then of every control, in the order of `CONTROLS`.

    Raises:
      NeuroreconError: metrics has no summary of movie_correlation.
    """
    summary = metrics.get("summary") or {}
    if "movie_correlation" not in summary:
        raise NeuroreconError("metrics.json: expected summary.movie_correlation, found none; evaluate the work folder")
    controls = metrics.get("controls") or {}
    known = list(CONTROLS)
    order = sorted(controls, key=lambda name: known.index(name) if name in known else len(known))
    found = [control_score("reconstruction", summary["movie_correlation"])]
    return found + [control_score(name, controls[name]) for name in order]


def number(value: Any) -> str:
    """A number for a table: three decimals below 10, fewer above, "n/a" where it is not defined."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    value = finite(value)
    if value is None:
        return "n/a"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def duration(seconds: Any) -> str:
    """Seconds as "4 min 12 s"."""
    seconds = finite(seconds)
    if seconds is None:
        return "n/a"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
