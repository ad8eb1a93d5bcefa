"""Cutting one continuous recording into trials."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.recordings.validation import check_tier

Splits = Mapping[str, Sequence[tuple[int, int]]]


@dataclasses.dataclass(frozen=True)
class Cut:
    """The frames of the continuous recording that become one trial.

    Attributes:
      tier: tier of the trial.
      start: first frame that is the trial's own.
      stop: frame after the last.
      lead_in: frames before `start` that the trial shows as well.
    """

    tier: str
    start: int
    stop: int
    lead_in: int = 0


def plan_cuts(
    splits: Splits,
    num_frames: int,
    trial_frames: int,
    *,
    gap: int = 0,
    lead_in: int = 0,
    min_trial_frames: int = 1,
) -> list[Cut]:
    """Which frames become which trial, in the order of the frames; arguments as in `import_arrays`."""
    for name, value, least in (
        ("trial_frames", trial_frames, 1),
        ("min_trial_frames", min_trial_frames, 1),
        ("gap", gap, 0),
        ("lead_in", lead_in, 0),
    ):
        if value < least:
            raise NeuroreconError(f"{name}: expected at least {least}, found {value}")
    ours = {tier: _claim(tier, ranges, num_frames) for tier, ranges in splits.items()}
    owner = np.full(num_frames, "", dtype="U16")
    for tier in ours:
        if tier == "train":
            continue
        shared = (owner != "") & ours[tier]
        if shared.any():
            frame = int(np.argmax(shared))
            raise NeuroreconError(f"splits: frame {frame} is claimed by {owner[frame]} and by {tier}; separate them")
        owner[ours[tier]] = tier
    free = np.ones(num_frames, bool)
    for start, stop in _runs(owner != ""):  # other tiers, a gap around them, and what leads in to them
        free[max(0, start - gap - lead_in) : stop + gap] = False
    cuts = []
    for tier, ranges in splits.items():
        lead = 0 if tier == "train" else lead_in
        kept = free if tier == "train" else ours[tier]
        for first, last in ((a + r[0], a + r[1]) for a, b in ranges for r in _runs(kept[a:b])):
            for start in range(first, last, trial_frames):
                stop = min(start + trial_frames, last)
                if stop - start < min_trial_frames:
                    continue
                before = owner[max(0, start - lead) : start]
                if start < lead or not np.isin(before, ["", tier]).all():
                    raise NeuroreconError(
                        f"lead_in: the {lead} frames before frame {start} ({tier}) leave the recording or "
                        f"are of another tier; start {tier} later"
                    )
                cuts.append(Cut(tier, start, stop, lead))
    if not cuts:
        raise NeuroreconError("splits: expected at least one trial, found none; name ranges as tier=start:stop")
    return sorted(cuts, key=lambda cut: cut.start)


def _claim(tier: str, ranges: Sequence[tuple[int, int]], num_frames: int) -> np.ndarray:
    """Mask of the frames in the ranges of one tier."""
    check_tier(tier, "splits")
    claimed = np.zeros(num_frames, bool)
    for start, stop in ranges:
        if not 0 <= start < stop <= num_frames:
            raise NeuroreconError(
                f"splits: {tier}={start}:{stop} isn't a range within the recording's {num_frames} frames"
            )
        if claimed[start:stop].any():
            raise NeuroreconError(f"splits: {tier}={start}:{stop} claims frames twice; separate its ranges")
        claimed[start:stop] = True
    return claimed


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """[start, stop) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def parse_splits(text: str) -> dict[str, list[tuple[int, int]]]:
    """'train=0:900+1000:2000,oracle=900:1000' -> tier -> ranges. Raises NeuroreconError on anything else."""
    splits: dict[str, list[tuple[int, int]]] = {}
    for part in text.split(","):
        tier, _, ranges = part.strip().partition("=")
        for piece in ranges.split("+"):
            start, _, stop = piece.partition(":")
            try:
                splits.setdefault(tier, []).append((int(start), int(stop)))
            except ValueError:
                raise NeuroreconError(f"splits: expected tier=start:stop, found {part.strip()!r}") from None
    return splits
