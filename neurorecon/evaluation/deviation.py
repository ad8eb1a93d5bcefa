"""Where a reconstruction departs from what the screen should have given: z-scores with false discovery control.

The difference between a reconstruction and the screen says little: encoder and recipe can't show everything. So compare
it with its null distribution, the reconstructions by the same recipe of responses that a brain would have given which
is the encoder plus its noise:

    prediction = predict_ensemble(encoders, shown, behaviour)
    simulated = simulate_responses(noise, prediction, frame_step=1, num_samples=8, seed=0)
    null = reconstruct_clips(encoders, simulated, behaviours, recipe=recipe, key=key).movie

with `noise` fitted at `frame_step=1`, since neighbouring frames share noise. What the recipe can't show is missing from
both sides and drops out. What the encoder gets wrong does not: fit `scale` on validation clips, where the brain is
taken to represent the screen.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, polygamma
from scipy.stats import false_discovery_control, norm
from scipy.stats import t as student

from neurorecon.errors import NeuroreconError


class Deviation(NamedTuple):
    """Deviations in blocks of frames x pixels; NaN (False) where a block lies outside the mask.

    Attributes:
      difference: (block, block row, block column) mean grey value of the reconstruction minus that of the null's mean;
        given `shown`, what it has more of the shown pattern, in root mean square grey values.
      z: the same in units of its standard deviation under the null, as a standard normal: from Student's t and `scale`.
      q: the false discovery rate at which the block would just be found (Benjamini & Hochberg 1995).
      found: `q` is at most the rate asked for.
    """

    difference: np.ndarray
    z: np.ndarray
    q: np.ndarray
    found: np.ndarray


def deviation_map(
    movie: np.ndarray,
    null_movies: np.ndarray,
    mask: np.ndarray,
    *,
    shown: np.ndarray | None = None,
    block: tuple[int, int, int] = (10, 4, 4),
    rate: float = 0.05,
    scale: float = 1.0,
) -> Deviation:
    """Compares a reconstruction with its null distribution, block by block.

    A block's variance under the null, known from a few samples only, is drawn towards that of all blocks as far as
    they agree (moderated t, Smyth 2004); the mean's own error is part of it.

    Args:
      movie: (time, height, width) from the recorded responses; cut off the frames that are not scored.
      null_movies: (sample, time, height, width) from simulated ones, two samples at least.
      mask: (height, width) bool. A block counts where half of its pixels are inside; only those are averaged.
      shown: (time, height, width) the movie on the screen. Left out, a block's statistic is its mean grey value. Given,
        it is its projection on what was shown there (a matched filter): weaker where something else appears, but it
        finds contrast lost or reversed, which leaves means as they are.
      block: frames, rows and columns of a block. Frames beyond the last whole block are left out.
      rate: false discovery rate. Controlled for tests that are independent or depend positively, as here neighbours do.
      scale: times the null's standard deviation, see `fit_deviation_scale`.

    Raises:
      NeuroreconError: shapes that don't fit, values that are not finite, no variation, or arguments out of range.
    """
    if not 0 < rate < 1 or not (np.isfinite(scale) and scale > 0):
        raise NeuroreconError(f"deviation, rate and scale: expected in (0, 1) and above 0, found {rate} and {scale}")
    difference, t, freedom, inside = _moderated(movie, null_movies, mask, shown, block)
    z = _normal(t / scale, freedom)
    q = false_discovery_control(2 * norm.sf(np.abs(z)), method="bh")
    maps = []
    for values in (difference, z, q):
        filled = np.full(inside.shape, np.nan)
        filled[inside] = values
        maps.append(filled)
    found = np.zeros(inside.shape, bool)
    found[inside] = q <= rate
    return Deviation(maps[0], maps[1], maps[2], found)


def fit_deviation_scale(
    movies: Sequence[np.ndarray],
    null_movies: Sequence[np.ndarray],
    mask: np.ndarray,
    *,
    shown: Sequence[np.ndarray] | None = None,
    block: tuple[int, int, int] = (10, 4, 4),
    level: float = 0.95,
) -> float:
    """How much wider than its null the reconstruction scatters on validation clips; at least 1.

    There the brain is taken to represent the screen, so what exceeds the null is the encoder's error and noise that
    neurons share. The factor makes |z| exceed its `level` quantile in a share 1 - level of all blocks.

    Args:
      movies: of each validation clip, as in `deviation_map`.
      null_movies: of each validation clip.
      mask, block: as in `deviation_map`.
      shown: of each validation clip, where `deviation_map` is given one.
      level: which quantile is made right.

    Raises:
      NeuroreconError: no clips, or as `deviation_map`.
    """
    if not movies or len(movies) != len(null_movies) or not 0 < level < 1:
        raise NeuroreconError(
            f"fit_deviation_scale: expected null movies for each of at least one clip and a level in (0, 1), found "
            f"{len(null_movies)} for {len(movies)} and {level}"
        )
    if shown is not None and len(shown) != len(movies):
        raise NeuroreconError(f"fit_deviation_scale: expected {len(movies)} shown movies, found {len(shown)}")
    ratios = []
    screens: Sequence[np.ndarray | None] = [None] * len(movies) if shown is None else shown
    for movie, null, screen in zip(movies, null_movies, screens):
        _, t, freedom, _ = _moderated(movie, null, mask, screen, block)
        wanted = student.isf((1 - level) / 2, freedom) if np.isfinite(freedom) else norm.isf((1 - level) / 2)
        ratios.append(np.quantile(np.abs(t), np.linspace(0, 1, 2001)) / wanted)  # every clip counts the same
    return max(1.0, float(np.quantile(np.concatenate(ratios), level)))


def _moderated(
    movie: np.ndarray,
    null_movies: np.ndarray,
    mask: np.ndarray,
    shown: np.ndarray | None,
    block: tuple[int, int, int],
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Difference and moderated t of each block inside the mask, degrees of freedom, and which blocks they are."""
    movie, null_movies, mask = np.asarray(movie), np.asarray(null_movies), np.asarray(mask)
    if movie.ndim != 3 or null_movies.shape[1:] != movie.shape or len(null_movies) < 2:
        raise NeuroreconError(
            f"deviation: expected a movie (time, height, width) and at least two null movies of its shape, found "
            f"{movie.shape} and {null_movies.shape}"
        )
    if mask.dtype != bool or mask.shape != movie.shape[1:]:
        raise NeuroreconError(f"deviation, mask: expected {movie.shape[1:]} booleans, found {mask.dtype} {mask.shape}")
    if any(not 1 <= size <= length for size, length in zip(block, movie.shape)):
        raise NeuroreconError(f"deviation, block: expected from 1 to {movie.shape}, found {block}")
    if not (np.isfinite(movie[:, mask]).all() and np.isfinite(null_movies[:, :, mask]).all()):
        raise NeuroreconError("deviation: expected finite movies inside the mask")
    pattern = np.ones(movie.shape)
    if shown is not None:
        pattern = np.asarray(shown, np.float64)
        if pattern.shape != movie.shape or not np.isfinite(pattern[:, mask]).all() or not mask.any():
            raise NeuroreconError(f"deviation, shown: expected finite and {movie.shape}, found {pattern.shape}")
        pattern = pattern - pattern[:, mask].mean()
    pattern = np.where(mask, pattern, 0.0)
    share = _blocks(np.broadcast_to(mask, movie.shape).astype(float), block)
    inside = share >= 0.5
    power = _blocks(pattern**2, block)
    inside &= power > 1e-9  # a screen without a pattern has nothing to be found
    if not inside.any():
        raise NeuroreconError("deviation, mask: expected a block of which half is inside, found none; take smaller")

    # The mean, or the projection on the pattern in units of grey values.
    scale = power[inside] if shown is None else np.sqrt(power[inside] * share[inside])

    def statistic(values: np.ndarray) -> np.ndarray:
        return _blocks(np.where(mask, values, 0.0) * pattern, block)[inside] / scale

    samples = np.stack([statistic(null) for null in null_movies])
    count = len(samples)
    difference = statistic(movie) - samples.mean(0)
    variance, freedom = _shrunk(samples.var(0, ddof=1), count - 1)
    return difference, difference / np.sqrt(variance * (1 + 1 / count)), freedom, inside


def _blocks(values: np.ndarray, block: tuple[int, int, int]) -> np.ndarray:
    """Means over blocks of (time, height, width); rows and columns beyond the last whole block make a smaller one."""
    time, height, width = block
    values = np.asarray(values[: len(values) // time * time], np.float64)
    padded = np.pad(values, [(0, 0), (0, -values.shape[1] % height), (0, -values.shape[2] % width)])
    t, h, w = (n // size for n, size in zip(padded.shape, block))
    return padded.reshape(t, time, h, height, w, width).mean((1, 3, 5))


def _shrunk(variance: np.ndarray, freedom: int) -> tuple[np.ndarray, float]:
    """Variances drawn towards their common value, and their degrees of freedom (Smyth 2004, section 6.2)."""
    if not (variance > 0).all():
        raise NeuroreconError("deviation, null_movies: expected some variation in every block, found none")
    logs = np.log(variance) - digamma(freedom / 2) + np.log(freedom / 2)
    excess = float(logs.var() - polygamma(1, freedom / 2))
    middle = float(logs.mean())
    if excess <= 1e-6:  # no more than chance: all blocks are alike
        return np.full(variance.shape, np.exp(middle)), np.inf
    # Trigamma falls from infinity to 0: one root.
    prior = 2 * float(brentq(lambda x: polygamma(1, x) - excess, 1e-4, 1e7))
    common = np.exp(middle + digamma(prior / 2) - np.log(prior / 2))
    return (prior * common + freedom * variance) / (prior + freedom), prior + freedom


def _normal(t: np.ndarray, freedom: float) -> np.ndarray:
    """The standard normal deviate of equal tail probability."""
    if not np.isfinite(freedom):
        return t
    with np.errstate(divide="ignore"):
        size = norm.isf(student.sf(np.abs(t), freedom))
    return np.sign(t) * np.minimum(size, 37.0)  # beyond it probabilities underflow
