"""Where reconstruction gives out: half-points of correlations over scales, and transfer over frequency."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.coherence import Spectra


class Reconstructed(NamedTuple):
    """The score of one stimulus of known scale.

    Attributes:
      animal: its name.
      kind: "noise" or "grating".
      spatial, temporal: its scales.
      variant: "plain"; "inverted", shown with black and white exchanged; "noise_matched", from noisy responses.
      repeat: the set of stimuli that it belongs to: the noise's draw, or the grating's direction.
      correlation: of the reconstruction with the stimulus that was shown; 0 of a grey one.
      with_plain: of an inverted stimulus' reconstruction with that of the plain one, which is the control: below 0
        where the two differ in sign, above where reconstructions have something in common whatever is shown; else NaN.
    """

    animal: str
    kind: str
    spatial: float
    temporal: float
    variant: str
    repeat: int
    correlation: float
    with_plain: float = float("nan")


class ScoreMap(NamedTuple):
    """Mean scores of one kind and variant over the two scales.

    Attributes:
      spatial: (S,) rising. temporal: (T,) rising.
      mean: (S, T). sets: (set, S, T), the same of each animal and repeat alone, where all pairs were shown.
    """

    spatial: np.ndarray
    temporal: np.ndarray
    mean: np.ndarray
    sets: np.ndarray


def score_map(results: Sequence[Reconstructed], kind: str, variants: Sequence[str]) -> ScoreMap:
    """Correlations with what was shown, over both scales.

    Raises:
      NeuroreconError: no such results, or a pair of scales without any.
    """
    chosen = [r for r in results if r.kind == kind and r.variant in variants]
    spatial, temporal = (np.array(sorted({getattr(r, name) for r in chosen})) for name in ("spatial", "temporal"))
    values: dict[tuple[str, str, int], np.ndarray] = {}
    total, count = np.zeros((2, len(spatial), len(temporal)))
    for r in chosen:
        place = int(np.searchsorted(spatial, r.spatial)), int(np.searchsorted(temporal, r.temporal))
        total[place] += r.correlation
        count[place] += 1
        one = values.setdefault((r.animal, r.variant, r.repeat), np.full(count.shape, np.nan))
        one[place] = r.correlation
    if not chosen or not count.all():
        raise NeuroreconError(f"score_map: expected {kind} of every pair of scales, found {len(chosen)} results")
    whole = [v for v in values.values() if np.isfinite(v).all()]
    return ScoreMap(spatial, temporal, total / count, np.array(whole).reshape(-1, *count.shape))


def half_point(scales: Sequence[float] | np.ndarray, scores: Sequence[float] | np.ndarray, towards: str) -> float:
    """The scale at which scores, going from the best one, first fall to half of it; linear in between.

    Args:
      scales: rising: length constants or frequencies.
      scores: of each, such as correlations.
      towards: "small" for lengths, where detail is lost at short ones; "large" for frequencies.

    Returns:
      The scale; NaN where no score that way is as low as half of the best, or the best is not above 0.

    Raises:
      NeuroreconError: lengths that differ, scales that don't rise, values that are not finite, another word.
    """
    scales, scores = np.asarray(scales, np.float64), np.asarray(scores, np.float64)
    if towards not in ("small", "large"):
        raise NeuroreconError(f"towards: expected 'small' or 'large', found {towards!r}")
    if scales.ndim != 1 or scales.shape != scores.shape or not scales.size or (np.diff(scales) <= 0).any():
        raise NeuroreconError(
            f"half_point: expected rising scales and a score for each, found {scales.tolist()} and {scores.shape}"
        )
    if not (np.isfinite(scales).all() and np.isfinite(scores).all()):
        raise NeuroreconError("half_point: expected finite scales and scores, found others")
    best = int(np.argmax(scores))
    half = scores[best] / 2
    if half <= 0:
        return float("nan")
    step = -1 if towards == "small" else 1
    for here in range(best, len(scales) - 1 if step > 0 else 0, step):
        after = here + step
        if scores[after] <= half:
            share = (scores[here] - half) / (scores[here] - scores[after])
            return float(scales[here] + share * (scales[after] - scales[here]))
    return float("nan")


def half_points(
    spatial: Sequence[float] | np.ndarray, temporal: Sequence[float] | np.ndarray, scores: np.ndarray, towards: str
) -> tuple[float, float]:
    """`half_point` along each axis of a map, through its highest score.

    Args:
      spatial, temporal: scales, rising.
      scores: (spatial, temporal).
      towards: as in `half_point`.

    Returns:
      The spatial scale at the best temporal one, and the temporal scale at the best spatial one.

    Raises:
      NeuroreconError: as `half_point`, or a map of another shape.
    """
    scores = np.asarray(scores, np.float64)
    if scores.shape != (len(spatial), len(temporal)):
        raise NeuroreconError(f"scores: expected shape ({len(spatial)}, {len(temporal)}), found {scores.shape}")
    row, column = np.unravel_index(int(np.argmax(scores)), scores.shape)
    return half_point(spatial, scores[:, column], towards), half_point(temporal, scores[row], towards)


def transfer(spectra: Spectra, over: str) -> np.ndarray:
    """Share of the truth's amplitude that the reconstruction shows in phase: Re(cross-spectrum) / power of the truth.

    1 for a perfect reconstruction, 0 where nothing of it comes through, below 0 where contrast is reversed.

    Args:
      spectra: of a clip, or of many by `coherence.pool`.
      over: "spatial" for (S,), or "temporal" for (F,); sums over the other axis.

    Returns:
      NaN where the truth has no power.

    Raises:
      NeuroreconError: another word for `over`.
    """
    if over not in ("spatial", "temporal"):
        raise NeuroreconError(f"over: expected 'spatial' or 'temporal', found {over!r}")
    axis = 1 if over == "spatial" else 0
    power, cross = spectra.truth.sum(axis), spectra.cross.real.sum(axis)
    return np.divide(cross, power, out=np.full(power.shape, np.nan), where=power > 1e-12 * power.max())
