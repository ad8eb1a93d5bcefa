"""What a resolution study found: its table and its sentences."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from neurorecon.evaluation.bootstrap import bootstrap_difference, bootstrap_mean
from neurorecon.evaluation.clip_scores import interval_text
from neurorecon.evaluation.coherence import Spectra, pool
from neurorecon.evaluation.resolution import Reconstructed, half_point, half_points, score_map, transfer

COLUMNS = {
    "animal": "name of the recording",
    "stimulus": "noise or grating",
    "spatial": "length constant of the noise, pixels; spatial frequency of the grating, cycles/degree",
    "temporal": "length constant of the noise, frames; temporal frequency of the grating, Hz",
    "spatial_degrees": "the spatial scale in degrees: length constant, or period (none at frequency 0)",
    "temporal_seconds": "the temporal scale in seconds: length constant, or period (none for still gratings)",
    "correlation": "movie correlation inside the evaluation mask, mean over stimuli and those inverted",
    "stimuli": "number of these",
    "inverted": "of the stimuli with black and white exchanged alone: with what was shown",
    "inverted_with_plain": "correlation of the reconstructions of a stimulus and of its inversion; the control",
    "noise_matched": "movie correlation from responses with fitted noise",
}
_OWN = ("plain", "inverted")


@dataclasses.dataclass(frozen=True)
class AnimalResult:
    """Everything that was found of one animal.

    Attributes:
      name: of the recording.
      degrees_per_pixel: at the screen's centre.
      frame_rate: Hz.
      receptive_fields: (neuron,) sigmas of some neurons, pixels.
      mask: (height, width) bool, where movies are scored.
      scores: of every stimulus.
      spectra, noise_spectra: of the noise stimuli, plain, and from noisy responses.
      frames: (spatial, temporal) of the noise -> a frame of the stimulus and of its reconstruction, (height, width).
    """

    name: str
    degrees_per_pixel: float
    frame_rate: float
    receptive_fields: np.ndarray
    mask: np.ndarray
    scores: list[Reconstructed] = dataclasses.field(default_factory=list)
    spectra: list[Spectra] = dataclasses.field(default_factory=list)
    noise_spectra: list[Spectra] = dataclasses.field(default_factory=list)
    frames: dict[tuple[float, float], tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)


def table(results: Sequence[AnimalResult]) -> list[dict[str, Any]]:
    """A row for each animal and condition."""
    rows = []
    for result in results:
        for kind, spatial, temporal in sorted({(s.kind, s.spatial, s.temporal) for s in result.scores}):
            here = [s for s in result.scores if (s.kind, s.spatial, s.temporal) == (kind, spatial, temporal)]

            def mean(*variants: str, of: str = "correlation", here: list[Reconstructed] = here) -> float | None:
                values = [getattr(s, of) for s in here if s.variant in variants]
                return float(np.mean(values)) if values else None

            noise = kind == "noise"
            rows.append(
                {
                    "animal": result.name,
                    "stimulus": kind,
                    "spatial": spatial,
                    "temporal": temporal,
                    "spatial_degrees": spatial * result.degrees_per_pixel if noise else _period(spatial),
                    "temporal_seconds": temporal / result.frame_rate if noise else _period(temporal),
                    "correlation": mean(*_OWN),
                    "stimuli": sum(s.variant in _OWN for s in here),
                    "inverted": mean("inverted"),
                    "inverted_with_plain": mean("inverted", of="with_plain"),
                    "noise_matched": mean("noise_matched"),
                }
            )
    return rows


def findings(results: Sequence[AnimalResult], num_predicting: int, num_inverting: int) -> list[str]:
    """Sentences, the most important first."""
    scores = [s for result in results for s in result.scores]
    degrees = float(np.mean([r.degrees_per_pixel for r in results]))
    seconds = float(np.mean([1 / r.frame_rate for r in results]))
    found = [*_of_noise(results, scores, degrees, seconds), *_of_gratings(scores)]
    spectra = [s for r in results for s in r.spectra]
    pooled = pool(spectra)
    shares = transfer(pooled, "spatial")
    fine = _half_transfer(pooled.spatial, shares)
    quick = _half_transfer(pooled.temporal, transfer(pooled, "temporal"))
    found.append(
        f"Of the noise's amplitude, {shares[0]:.2f} comes through in phase at {pooled.spatial[0]:.3f} cycles/degree "
        f"and {shares[-1]:.2f} at {pooled.spatial[-1]:.3f}; the share falls to half of its best at "
        f"{_number(fine, 3, 'cycles/degree')} and {_number(quick, 1, 'Hz')}."
    )
    found += _of_controls(scores)
    found.append(
        f"Responses are predicted by {_encoders(num_predicting)} and inverted by {_others(num_inverting)}, none "
        "is recorded: all of this is an upper bound."
    )
    return found


def _of_noise(
    results: Sequence[AnimalResult], scores: Sequence[Reconstructed], degrees: float, seconds: float
) -> list[str]:
    chart = score_map(scores, "noise", _OWN)
    row, column = np.unravel_index(int(np.argmax(chart.mean)), chart.mean.shape)
    space, time = chart.spatial[row], chart.temporal[column]
    found = [
        f"Gaussian noise comes out best at a length constant of {space:g} pixels ({space * degrees:.1f} degrees) and "
        f"{time:g} frames ({1000 * time * seconds:.0f} ms): movie correlation {chart.mean[row, column]:.2f}."
    ]
    fine, quick = half_points(chart.spatial, chart.temporal, chart.mean, "small")
    sets = np.array([half_points(chart.spatial, chart.temporal, one, "small") for one in chart.sets]).reshape(-1, 2)
    text = (
        f"It falls to half of that at {_number(fine * degrees, 1, 'degrees')}{_range(sets[:, 0] * degrees, 1)} in space"
    )
    text += f" and {_number(quick * seconds * 1000, 0, 'ms')}{_range(sets[:, 1] * seconds * 1000, 0)} in time."
    fields = np.concatenate([r.receptive_fields * r.degrees_per_pixel for r in results])
    fields = fields[np.isfinite(fields)]
    if fields.size:
        low, middle, high = np.quantile(fields, [0.25, 0.5, 0.75])
        text += (
            f" The encoders' receptive fields have a sigma of {middle:.1f} degrees (quartiles {low:.1f} to {high:.1f}, "
            f"{fields.size} neurons)"
        )
        text += f": the half-point is {fine * degrees / middle:.2f} of it." if np.isfinite(fine) else "."
    return [*found, text]


def _of_gratings(scores: Sequence[Reconstructed]) -> list[str]:
    chart = score_map(scores, "grating", _OWN)
    row, column = np.unravel_index(int(np.argmax(chart.mean)), chart.mean.shape)
    fine, quick = half_points(chart.spatial, chart.temporal, chart.mean, "large")
    sets = np.array([half_points(chart.spatial, chart.temporal, one, "large") for one in chart.sets]).reshape(-1, 2)
    return [
        f"Gratings come out best at {chart.spatial[row]:g} cycles/degree and {chart.temporal[column]:g} Hz: movie "
        f"correlation {chart.mean[row, column]:.2f}; it falls to half at "
        f"{_number(fine, 3, 'cycles/degree')}{_range(sets[:, 0], 3)} and at "
        f"{_number(quick, 1, 'Hz')}{_range(sets[:, 1], 1)}."
    ]


def _of_controls(scores: Sequence[Reconstructed]) -> list[str]:
    found = []
    inverted = [s for s in scores if s.variant == "inverted"]
    plain = {(s.animal, s.kind, s.spatial, s.temporal, s.repeat): s for s in scores if s.variant == "plain"}
    if inverted:
        own, between = _mean([s.correlation for s in inverted]), _mean([s.with_plain for s in inverted])
        originals = _mean([plain[_key(s)].correlation for s in inverted])
        seen = [s for s in inverted if plain[_key(s)].correlation >= 0.3]
        turned = sum(s.with_plain < 0 for s in seen)
        found.append(
            f"With black and white exchanged, stimuli come out at {own} (originals {originals}; {len(inverted)} "
            f"conditions), and correlate with the reconstruction of the original by {between}; the "
            f"sign turns in {turned} of the {len(seen)} conditions that reach 0.3."
        )
    for kind in ("noise", "grating"):
        noisy = [s for s in scores if s.variant == "noise_matched" and s.kind == kind]
        if noisy:
            free = [plain[_key(s)].correlation for s in noisy]
            change = bootstrap_difference([s.correlation for s in noisy], free, seed=0)
            named = "noise stimuli" if kind == "noise" else "gratings"
            found.append(
                f"Responses with the noise of recorded ones take {named} from {np.mean(free):.2f} to "
                f"{np.mean(free) + change.mean:.2f}: {interval_text(change)} over {len(noisy)} conditions."
            )
    return found


def _key(s: Reconstructed) -> tuple[str, str, float, float, int]:
    return s.animal, s.kind, s.spatial, s.temporal, s.repeat


def _half_transfer(frequencies: np.ndarray, shares: np.ndarray) -> float:
    kept = np.isfinite(shares)
    return half_point(frequencies[kept], shares[kept], "large") if kept.any() else float("nan")


def _mean(values: Sequence[float]) -> str:
    return interval_text(bootstrap_mean(values, seed=0), 2)


def _period(frequency: float) -> float | None:
    return 1 / frequency if frequency > 0 else None


def _number(value: float, digits: int, unit: str) -> str:
    return f"{value:.{digits}f} {unit}" if np.isfinite(value) else f"no scale tried ({unit})"


def _range(values: np.ndarray, digits: int) -> str:
    """Over sets of stimuli; too few for an interval."""
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return ""
    return f" ({values.min():.{digits}f} to {values.max():.{digits}f} over {len(values)} sets of stimuli)"


def _encoders(number: int) -> str:
    return "one encoder" if number == 1 else f"{number} encoders"


def _others(number: int) -> str:
    return "another" if number == 1 else f"{number} others"
