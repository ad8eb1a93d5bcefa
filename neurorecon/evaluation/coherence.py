"""How well a reconstruction follows the truth at each spatial and temporal frequency.

    spectra = [movie_spectra(truth, movie, mask, pixels_per_degree=..., frame_rate=...) for each clip]
    coherence(pool(spectra))

A clip is tapered at the mask's border, transformed over space, and its cross-spectrum in time estimated by Welch's
method. Magnitude-squared coherence, |sum of cross-spectra|^2 / (sum of powers x sum of powers), with sums over clips,
segments and all directions of a spatial frequency: 1 where the reconstruction is the truth through any linear filter.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.signal import csd, welch

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.movie_arrays import checked_mask, checked_pair

TAPER_PIXELS = 4.0  # from the mask's border to full weight


class Spectra(NamedTuple):
    """Sums over the members of each band of frequencies.

    Attributes:
      spatial: (S,) mean frequency of the band, cycles/degree.
      temporal: (F,) Hz.
      truth, movie: (S, F) power, in arbitrary units.
      cross: (S, F) complex.
    """

    spatial: np.ndarray
    temporal: np.ndarray
    truth: np.ndarray
    movie: np.ndarray
    cross: np.ndarray


def movie_spectra(
    truth: np.ndarray,
    movie: np.ndarray,
    mask: np.ndarray | None,
    *,
    pixels_per_degree: float,
    frame_rate: float,
    segment_seconds: float = 2.0,
) -> Spectra:
    """Power and cross-power of one clip, in bands of half an octave.

    Args:
      truth, movie: (time, height, width), grey values.
      mask: (height, width), true inside; None is the whole screen.
      pixels_per_degree: of the screen, square pixels.
      frame_rate: Hz.
      segment_seconds: Welch's segments (Hann window, half overlapping, no detrending); 1 / segment_seconds is the
        resolution in Hz.

    Raises:
      NeuroreconError: as `movie_metrics`; a mask that moves; rates that are not positive; too short a clip.
    """
    truth, movie = checked_pair(truth, movie)
    mask = checked_mask(mask, truth.shape)
    if mask.ndim != 2:
        raise NeuroreconError(f"mask: expected one that stays, (height, width), found shape {mask.shape}")
    if not min(pixels_per_degree, frame_rate, segment_seconds) > 0:
        raise NeuroreconError(
            "pixels_per_degree, frame_rate, segment_seconds: expected above 0, found "
            f"{pixels_per_degree}, {frame_rate}, {segment_seconds}"
        )
    length = round(segment_seconds * frame_rate)
    if not 4 <= length <= len(truth):
        raise NeuroreconError(
            f"segment_seconds: expected 4 frames at least and no more than the {len(truth)} of the clip, found {length}"
        )
    taper = mask_taper(mask)
    height, width = mask.shape
    x, y = (np.fft.fft2((m - np.average(m.mean(0), weights=taper)) * taper) for m in (truth, movie))
    settings = {"fs": frame_rate, "nperseg": length, "detrend": False, "return_onesided": False, "axis": 0}
    frequency, power_x = welch(x, **settings)
    power_y, cross = welch(y, **settings)[1], csd(x, y, **settings)[1]
    # Frequencies from 0 up: with all directions in space they hold everything that a real movie has.
    up = slice(0, (length + 1) // 2)
    radial = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)) * pixels_per_degree
    spatial = _bands(radial.ravel(), pixels_per_degree / min(height, width), pixels_per_degree / 2)
    temporal = _bands(frequency[up], frame_rate / length, frame_rate / 2)

    def summed(values: np.ndarray) -> np.ndarray:
        flat = values[up].reshape(len(frequency[up]), -1)
        return np.array([[flat[np.ix_(f, s)].sum() for f in temporal] for s in spatial])

    return Spectra(
        np.array([radial.ravel()[s].mean() for s in spatial]),
        np.array([frequency[up][f].mean() for f in temporal]),
        summed(power_x),
        summed(power_y),
        summed(cross),
    )


def pool(spectra: Sequence[Spectra]) -> Spectra:
    """The sum over clips.

    Raises:
      NeuroreconError: no clips, or clips of other bands (another screen or frame rate).
    """
    if not spectra:
        raise NeuroreconError("spectra: expected those of at least one clip, found none")
    first = spectra[0]
    for other in spectra[1:]:
        for mine, its in zip(first[:2], other[:2]):
            if mine.shape != its.shape or not np.allclose(mine, its):
                raise NeuroreconError("spectra: expected clips of one screen and one frame rate, found several")
    sums = [np.sum([s[part] for s in spectra], axis=0) for part in (2, 3, 4)]
    return Spectra(first.spatial, first.temporal, *sums)


def coherence(spectra: Spectra, over: str = "both") -> np.ndarray:
    """Magnitude-squared coherence, 0..1; NaN where a movie has no power.

    Args:
      spectra: of a clip, or of many by `pool`.
      over: "both": (S, F). "spatial": (S,), or "temporal": (F,): sums over the other axis, so that it is the squared
        correlation (at no lag for "spatial") of the movies filtered to that band.

    Raises:
      NeuroreconError: another word for `over`.
    """
    if over not in ("both", "spatial", "temporal"):
        raise NeuroreconError(f"over: expected 'both', 'spatial' or 'temporal', found {over!r}")
    parts = [np.asarray(p) for p in spectra[2:]]
    if over != "both":
        parts = [p.sum(axis=1 if over == "spatial" else 0) for p in parts]
    truth, movie, cross = parts
    scale = truth * movie
    # Of a grey reconstruction only rounding is left.
    has_power = (truth > 1e-12 * truth.max()) & (movie > 1e-12 * truth.max())
    return np.divide(np.abs(cross) ** 2, scale, out=np.full(scale.shape, np.nan), where=has_power)


def coherence_interval(
    spectra: Sequence[Spectra], over: str = "both", *, seed: int, num_samples: int = 1000, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coherence of the pooled clips and its percentile bootstrap interval over clips; of one clip, NaN.

    Args:
      spectra: of each clip.
      over: as in `coherence`.
      seed: of the resampling.

    Returns:
      Value, low and high, each of the shape that `coherence` returns.

    Raises:
      NeuroreconError: as `pool` and `coherence`.
    """
    pooled = pool(spectra)
    value = coherence(pooled, over)
    if len(spectra) < 2:
        return value, np.full(value.shape, np.nan), np.full(value.shape, np.nan)
    drawn = np.random.default_rng(seed).integers(len(spectra), size=(num_samples, len(spectra)))
    counts = np.stack([np.bincount(d, minlength=len(spectra)) for d in drawn])
    sums = [np.tensordot(counts, np.stack([s[part] for s in spectra]), axes=1) for part in (2, 3, 4)]
    samples = [coherence(pooled._replace(truth=t, movie=m, cross=c), over) for t, m, c in zip(*sums)]
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return value, low, high


def mask_taper(mask: np.ndarray, width: float = TAPER_PIXELS) -> np.ndarray:
    """Weights (height, width): 0 outside the mask, rising as a squared sine over `width` pixels inwards.

    A hard border would carry the power of coarse structure to fine frequencies. The screen's border counts as one.
    """
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    return np.sin(np.pi / 2 * np.minimum(depth / width, 1.0)) ** 2


def _bands(frequencies: np.ndarray, resolution: float, nyquist: float) -> list[np.ndarray]:
    """Indices of the members of each band: below 1.5 x the resolution, then half octaves; empty ones left out."""
    edges = [0.0, 1.5 * resolution]
    while edges[-1] < nyquist:
        edges.append(edges[-1] * np.sqrt(2))
    edges[-1] = nyquist * (1 + 1e-9)
    number = np.digitize(frequencies, edges) - 1
    found = [np.flatnonzero(number == band) for band in range(len(edges) - 1)]
    return [members for members in found if members.size]
