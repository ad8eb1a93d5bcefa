"""Where a clip's activity has less or more contrast than the screen, relative to elsewhere: deviation as local gain.

Encoder and recipe can't show everything, so the screen is no yardstick. What they would show of it is. Two estimates:

`score_gain`: the score of contrast (`neurorecon.reconstruction.contrast_score`) of the recorded responses, compared
with that of responses to no contrast. `local_gain`: the reconstruction, regressed on that of the responses that the
encoders predict for the true movie. Either is near 0 where the brain represents the screen, below where contrast is
lost, moved or reversed; noise makes it scatter but has no part in its mean.

    gains = [score_gain(score, lost, mask, scale) for ...]  # of validation clips
    simulated = [[score_gain(draw, lost, mask, scale) for draw in draws] for ...]  # of `simulate_responses`
    null = fit_gain_null(gains, simulated)
    found = gain_deviation(score_gain(score, lost, mask, scale), draws_of_this_clip, null)

Simulated responses tell how far a gain scatters by noise; validation clips, where the brain is taken to represent the
screen, tell how far encoders are wrong. A gain is taken relative to its clip's median: gain drifts from trial to trial.
So a change of most of the field at once is not found.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.stats import false_discovery_control, norm
from scipy.stats import t as student

from neurorecon.errors import NeuroreconError


class GainScale(NamedTuple):
    """The scale of a claim.

    Attributes:
      time: sigma of the window, frames.
      space: sigma of the window, pixels.
      detail: sigma of the local mean that is taken off both movies first, pixels.
      stride: frames, rows and columns from one window to the next.
    """

    time: float = 90.0
    space: float = 4.0
    detail: float = 6.0
    stride: tuple[int, int, int] = (10, 3, 3)


DEFAULT_SCALE = GainScale()
LEAST_INFORMATION = 0.05  # of the median window's


class LocalGain(NamedTuple):
    """In windows (block, row, column); NaN where a window's middle lies outside the mask.

    Attributes:
      gain: slope of the movie on the expected one, or of the score on that of no contrast, less its weighted median.
      contrast: the slope's weight: mean square of the expected movie's detail, or the score that all contrast makes.
      clip: the weighted median that was taken off.
    """

    gain: np.ndarray
    contrast: np.ndarray
    clip: float


class GainNull(NamedTuple):
    """How local gains scatter where the brain represents the screen.

    Attributes:
      mean: (row, column) of validation clips, drawn towards their common mean.
      spread: variance that simulated noise does not account for.
      freedom: of Student's t that standardised gains follow, less than the number of clips.
      least_contrast: below it nothing is tested.
    """

    mean: np.ndarray
    spread: float
    freedom: float
    least_contrast: float


class GainDeviation(NamedTuple):
    """In windows (block, row, column); NaN (False) where nothing is tested.

    Attributes:
      difference: local gain less its mean under the null; -1 where all contrast is lost, -2 where it is reversed.
      z: the same as a standard normal deviate under the null.
      q: the false discovery rate at which a window would just be found (Benjamini & Hochberg 1995).
      found: `q` is at most the rate asked for.
      detectable: the smallest size of `difference` that 80 % of windows like this one would show at p < 0.001.
    """

    difference: np.ndarray
    z: np.ndarray
    q: np.ndarray
    found: np.ndarray
    detectable: np.ndarray


def local_gain(
    movie: np.ndarray, expected: np.ndarray, mask: np.ndarray, scale: GainScale = DEFAULT_SCALE
) -> LocalGain:
    """Slope of a reconstruction on what is expected of it, window by window.

    Args:
      movie: (time, height, width); cut off the frames that are not scored.
      expected: of the same shape, reconstructed from the responses predicted for the true movie.
      mask: (height, width) bool; pixels outside have no weight.
      scale: of the windows.

    Raises:
      NeuroreconError: shapes that don't fit, values that are not finite, an empty mask, or no contrast.
    """
    movie, expected, mask = _checked("local_gain", movie, expected, mask, scale)
    places = window_places(movie.shape, scale)
    inside = mask[np.ix_(*places[1:])]

    def detail(values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float32) - np.float32(values.mean())
        return values - gaussian_filter(values, (0, scale.detail, scale.detail))

    def pooled(values: np.ndarray) -> np.ndarray:
        sigma = (scale.time, scale.space, scale.space)
        return gaussian_filter(values * mask, sigma, mode="constant")[np.ix_(*places)].astype(np.float64)

    pattern = detail(expected)
    contrast = pooled(pattern**2)
    if not (contrast[:, inside] > 1e-6).all():
        raise NeuroreconError("local_gain, expected: expected some contrast in every window, found none")
    return _relative(pooled(detail(movie) * pattern), contrast, inside)


def score_gain(score: np.ndarray, lost: np.ndarray, mask: np.ndarray, scale: GainScale = DEFAULT_SCALE) -> LocalGain:
    """One-step estimate of local gain in response space, window by window: no reconstruction is made.

    The score of contrast tells how much likelier the responses get per unit of local gain. Within a window it is
    compared with the score of responses that the encoders predict for the movie without any contrast, which have a
    gain of -1 everywhere: -1 is "as if all contrast were lost". `contrast` of the outcome is the latter, the window's
    information and that which it shares with others.

    Args:
      score: (time, height, width) contrast times derivative of the log-likelihood at each pixel, of the clip's
        responses; cut off the frames that are not scored.
      lost: the same of the responses predicted for a grey screen.
      mask: (height, width) bool; pixels outside have no weight.
      scale: of the windows; its `detail` has no part in it.

    Raises:
      NeuroreconError: shapes that don't fit, values that are not finite, an empty mask, or no information.
    """
    score, lost, mask = _checked("score_gain", score, lost, mask, scale)
    places = window_places(score.shape, scale)
    inside = mask[np.ix_(*places[1:])]

    def pooled(values: np.ndarray) -> np.ndarray:
        sigma = (scale.time, scale.space, scale.space)
        weighed = (values * mask).astype(np.float32)
        return gaussian_filter(weighed, sigma, mode="constant")[np.ix_(*places)].astype(np.float64)

    information = -pooled(lost)
    typical = float(np.median(information[:, inside]))
    if not typical > 0:
        raise NeuroreconError(
            "score_gain, lost: expected responses to contrast in most windows, found none; check encoders and mask"
        )
    # A window where the encoders see nothing gets a gain near 0 and too little contrast to be tested.
    return _relative(pooled(score), np.maximum(information, LEAST_INFORMATION * typical), inside)


def _checked(
    name: str, movie: np.ndarray, other: np.ndarray, mask: np.ndarray, scale: GainScale
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arrays, when they fit together and a window lies inside the mask."""
    movie, other, mask = np.asarray(movie), np.asarray(other), np.asarray(mask)
    if movie.ndim != 3 or movie.shape != other.shape or mask.shape != movie.shape[1:] or mask.dtype != bool:
        raise NeuroreconError(
            f"{name}: expected two movies (time, height, width) of one shape and a mask of booleans, found "
            f"{movie.shape}, {other.shape} and {mask.dtype} {mask.shape}"
        )
    if min(scale.time, scale.space, scale.detail, *scale.stride) <= 0:
        raise NeuroreconError(f"{name}, scale: expected sizes above 0, found {scale}")
    if not (np.isfinite(movie).all() and np.isfinite(other).all()):
        raise NeuroreconError(f"{name}: expected finite movies")
    if not mask[np.ix_(*window_places(movie.shape, scale)[1:])].any():
        raise NeuroreconError(f"{name}, mask: expected the middle of a window inside, found none")
    return movie, other, mask


def _relative(product: np.ndarray, contrast: np.ndarray, inside: np.ndarray) -> LocalGain:
    """Slopes product / contrast less their weighted median.

    The median: a changed region, and what it does to the mean, must not make the rest look changed.
    """
    slope = product[:, inside] / contrast[:, inside]
    order = np.argsort(slope, axis=None)
    share = np.cumsum(contrast[:, inside].ravel()[order])
    clip = float(slope.ravel()[order][np.searchsorted(share, share[-1] / 2)])
    gain = np.full(contrast.shape, np.nan)
    gain[:, inside] = slope - clip
    return LocalGain(gain, np.where(inside, contrast, np.nan), clip)


def fit_gain_null(
    gains: Sequence[LocalGain],
    simulated: Sequence[Sequence[LocalGain]],
    *,
    shrinkage: float = 0.5,
    least_contrast: float = 0.4,
) -> GainNull:
    """The null's distribution, from validation clips, where the brain is taken to represent the screen.

    Args:
      gains: of each validation clip.
      simulated: of each validation clip, of the reconstructions of simulated responses.
      shrinkage: share of each place's mean that is drawn to the common one; few clips tell little of one place.
      least_contrast: quantile of the windows' contrast below which nothing is tested.

    Raises:
      NeuroreconError: fewer than three clips, a clip without draws, or shares out of range.
    """
    if len(gains) < 3 or len(gains) != len(simulated) or not all(simulated):
        raise NeuroreconError(
            f"fit_gain_null: expected three validation clips or more and draws for each, found {len(gains)} clips and "
            f"{[len(draws) for draws in simulated]} draws"
        )
    if not (0 <= shrinkage <= 1 and 0 <= least_contrast < 1):
        raise NeuroreconError(
            f"fit_gain_null: expected shares in [0, 1], found shrinkage {shrinkage}, least_contrast {least_contrast}"
        )
    places = np.stack([g.gain.mean(0) for g in gains])
    mean = (1 - shrinkage) * places.mean(0) + shrinkage * np.nanmean(places)
    least = float(np.nanquantile(np.stack([g.contrast for g in gains]), least_contrast))
    residuals, variances = [], []
    count = len(gains)
    for k, gain in enumerate(gains):
        # Each clip against the others: a clip that has part in the mean lies too near to it.
        others = (1 - shrinkage) * np.delete(places, k, 0).mean(0) + shrinkage * np.nanmean(np.delete(places, k, 0))
        tested = gain.contrast >= least
        residuals.append((gain.gain - others)[tested])
        variances.append(_simulated_variance(simulated[k], gain.contrast)[tested])
    residual, variance = np.concatenate(residuals), np.concatenate(variances)
    if residual.size < 10 * count:
        raise NeuroreconError("fit_gain_null: too few windows with contrast; lower least_contrast or widen the mask")
    # Quantiles, not moments: a few wild windows shall not widen all of them; Student's t is there for those.
    spread = max(float(np.quantile(residual**2, 0.683)) - float(np.median(variance)), 0.0)
    standard = residual / np.sqrt(spread + variance)
    # Windows of a clip share its mistakes: how these vary is known from as many clips, whatever the tails suggest.
    return GainNull(mean, spread, min(_freedom(standard), count - 1.0), least)


def gain_deviation(
    gain: LocalGain, simulated: Sequence[LocalGain], null: GainNull, *, rate: float = 0.05
) -> GainDeviation:
    """Finds where a clip's local gain is lower than its null distribution has it: contrast lost, moved or reversed.

    One-sided: more contrast than expected is no sign that something else is represented; it shows in `z` alone.

    Args:
      gain: of the reconstruction from the recorded responses.
      simulated: of the reconstructions of responses simulated for this clip.
      null: from validation clips of the same animal, encoders and scale.
      rate: false discovery rate, over the windows of the clip.

    Raises:
      NeuroreconError: no draws, another grid than the null's, or a rate out of range.
    """
    if not 0 < rate < 1 or not simulated:
        raise NeuroreconError(f"gain_deviation: expected a rate in (0, 1) and draws, found {rate} and {len(simulated)}")
    if gain.gain.shape[1:] != null.mean.shape:
        raise NeuroreconError(
            f"gain_deviation: expected windows on the null's grid {null.mean.shape}, found {gain.gain.shape[1:]}"
        )
    tested = gain.contrast >= null.least_contrast
    error = np.sqrt(null.spread + _simulated_variance(simulated, gain.contrast))
    difference = np.where(tested, gain.gain - null.mean, np.nan)
    t = difference / error
    p = student.cdf(t[tested], null.freedom)
    q = np.full(t.shape, np.nan)
    if p.size:
        q[tested] = false_discovery_control(p, method="bh")
    z = np.sign(t) * np.minimum(norm.isf(np.maximum(student.sf(np.abs(t), null.freedom), 1e-300)), 37.0)
    detectable = np.where(tested, error * (student.isf(0.001, null.freedom) + student.isf(0.2, null.freedom)), np.nan)
    return GainDeviation(difference, z, q, np.where(tested, q, 1.0) <= rate, detectable)


def window_places(shape: tuple[int, int, int], scale: GainScale) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frame, row and column of the windows' middles."""
    t, y, x = (np.arange(min(step // 2, n - 1), n, step) for n, step in zip(shape, scale.stride))
    return t, y, x


def as_movie(values: np.ndarray, shape: tuple[int, int, int], mask: np.ndarray, scale: GainScale) -> np.ndarray:
    """Windows (block, row, column) as a movie: each pixel has the value of its nearest window; outside the mask none.

    Args:
      values: floats (NaN outside) or booleans (False outside).
      shape: (time, height, width).
      mask: (height, width) bool.
      scale: of the windows.
    """
    nearest = [
        np.abs(np.arange(n)[:, None] - middles).argmin(1) for n, middles in zip(shape, window_places(shape, scale))
    ]
    movie = np.asarray(values)[np.ix_(*nearest)]
    return movie & mask if movie.dtype == bool else np.where(mask, movie, np.nan).astype(np.float32)


def _simulated_variance(simulated: Sequence[LocalGain], contrast: np.ndarray) -> np.ndarray:
    """Of a slope: noise over contrast; the noise is pooled over the clip's windows, so a few draws suffice."""
    noise = np.nanmean([np.square(draw.gain) * draw.contrast for draw in simulated])
    return float(noise) / contrast


def _freedom(standard: np.ndarray) -> float:
    """Degrees of freedom by which Student's t has the tails seen (largest likelihood), from 2.5 to 60."""
    candidates = np.geomspace(2.5, 60.0, 40)
    return float(candidates[np.argmax([student.logpdf(standard, f).sum() for f in candidates])])
