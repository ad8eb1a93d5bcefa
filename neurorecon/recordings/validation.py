"""Checks that a trial passes before anything else sees it; each fault is one line that names the file."""

import difflib
from collections.abc import Callable, Sequence

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.recordings.trial import BEHAVIOUR, TIERS, Trial

# Interpolated movies overshoot a little; further out, the movie isn't in grey values 0..255.
GREY_TOLERANCE = 1.0


def check_tier(tier: str, where: str) -> None:
    """Raises NeuroreconError, naming the nearest known tier, where `tier` is unknown."""
    if tier in TIERS:
        return
    near = difflib.get_close_matches(str(tier), TIERS, n=1, cutoff=0.0)
    raise NeuroreconError(
        f"{where}: unknown tier {str(tier)!r}; did you mean {near[0]!r}? The tiers are {', '.join(TIERS)}"
    )


def check_trial(trial: Trial, name: Callable[[str], str]) -> None:
    """Checks shapes, lengths and numbers of a trial.

    Args:
      trial: stimulus (time, height, width), responses (time, neuron), behaviour (time, 4).
      name: turns "stimulus", "responses" or "behaviour" into what the user should look at, such as a file.

    Raises:
      NeuroreconError: a wrong number of dimensions, unequal lengths, no frame, NaN or infinity, a stimulus
        that isn't in grey values 0..255.
    """
    check_tier(trial.tier, f"trial {trial.id}")
    arrays = {"stimulus": trial.stimulus, "responses": trial.responses, "behaviour": trial.behaviour}
    axes = {"stimulus": "time, height, width", "responses": "time, neuron", "behaviour": "time, channel"}
    for key, array in arrays.items():
        if array.ndim != axes[key].count(",") + 1:
            raise NeuroreconError(f"{name(key)}: expected axes ({axes[key]}), found shape {array.shape}")
    num_frames = len(trial.stimulus)
    if trial.behaviour.shape[1] != len(BEHAVIOUR):
        raise NeuroreconError(
            f"{name('behaviour')}: expected {len(BEHAVIOUR)} channels ({', '.join(BEHAVIOUR)}), found shape "
            f"{trial.behaviour.shape}"
        )
    for key, array in arrays.items():
        if len(array) != num_frames:
            amount = "fewer" if len(array) < num_frames else "more"
            raise NeuroreconError(
                f"{name(key)}: {amount} frames than the movie: expected {num_frames}, found {len(array)}"
            )
    for key, array in arrays.items():
        if not array.size:
            raise NeuroreconError(
                f"{name(key)}: expected at least one frame, pixel and neuron, found shape {array.shape}"
            )
        check_finite(array, name(key), axes[key])
    low, high = float(trial.stimulus.min()), float(trial.stimulus.max())
    if low < -GREY_TOLERANCE or high > 255 + GREY_TOLERANCE:
        raise NeuroreconError(
            f"{name('stimulus')}: expected grey values 0..255, found {low:.6g}..{high:.6g}; rescale the movie"
        )


def check_finite(array: np.ndarray, name: str, axes: str) -> None:
    """Raises NeuroreconError with the place of the first NaN or infinity of an array with the named axes."""
    # The sum of squares is NaN or infinite whenever a value is: one cheap pass in the usual case.
    with np.errstate(all="ignore"):
        if np.isfinite(np.vdot(array, array)):
            return
    finite = np.isfinite(array)
    if finite.all():
        return
    place = np.unravel_index(int(np.argmin(finite)), array.shape)
    value = "NaN" if np.isnan(array[place]) else "infinity"
    where = ", ".join(f"{axis.strip()} {int(i)}" for axis, i in zip(axes.split(","), place, strict=True))
    every = " everywhere" if not finite.any() else ""
    raise NeuroreconError(
        f"{name}: expected finite numbers, found {value}{every or f' at {where}'} "
        f"({finite.size - finite.sum()} of {finite.size} values are not finite); mend or leave out this trial"
    )


def as_target(trial: Trial) -> Trial:
    """Returns the trial, to be fitted or scored against.

    Raises:
      NeuroreconError: its responses are withheld (all zeros on disk).
    """
    if trial.withheld:
        raise NeuroreconError(
            f"trial {trial.id} of {trial.animal} (tier {trial.tier}): responses withheld (all zeros); "
            "nothing can be fitted to or scored against them; choose another tier"
        )
    return trial


def nearest_tier_line(tier: str, present: Sequence[str], where: str) -> str:
    """The line for a known tier that no trial has."""
    counts = ", ".join(f"{t} ({present.count(t)})" for t in TIERS if t in present)
    return f"{where}: no trial of tier {tier!r}; this recording has {counts or 'no trials'}"
