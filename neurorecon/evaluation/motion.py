"""Match of a reconstruction in motion and in time: motion energy, direction, lag."""

import numpy as np
from scipy.ndimage import gaussian_filter

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.movie_arrays import checked_mask, checked_movie, checked_pair, inside, pearson
from neurorecon.evaluation.movie_metrics import motion_energy

FLOW_SIGMA = (1.0, 1.5, 1.5)  # frames, pixels, pixels: finer structure moves too far between frames to be followed


def motion_match(truth: np.ndarray, movie: np.ndarray, mask: np.ndarray | None) -> dict[str, float]:
    """How the motion of a reconstruction matches that of the truth.

    Args:
      truth, movie: (time, height, width), grey values.
      mask: (height, width), true inside; None is the whole screen.

    Returns:
      `motion_energy_correlation`: over time, of the mean absolute frame differences (`motion_energy`).
      `motion_energy_ratio`: mean of the reconstruction's over that of the truth.
      `flow_correlation`: over time and both directions, of the velocity that the whole image moves with
      (`global_flow`). 0 where the reconstruction does not change, NaN where the truth doesn't.

    Raises:
      NeuroreconError: as `movie_metrics`, or fewer than three frames.
    """
    truth, movie = checked_pair(truth, movie)
    if len(truth) < 3:
        raise NeuroreconError(f"truth: expected three frames at least for motion over time, found {len(truth)}")
    mask = _still(mask, truth.shape)
    energies = [motion_energy(m, mask) for m in (truth, movie)]
    flows = [global_flow(m, mask).ravel() for m in (truth, movie)]
    return {
        "motion_energy_correlation": _correlation(*energies),
        "motion_energy_ratio": float(energies[1].mean() / energies[0].mean()) if energies[0].any() else float("nan"),
        "flow_correlation": _correlation(*flows),
    }


def global_flow(movie: np.ndarray, mask: np.ndarray | None, *, sigma: tuple[float, ...] = FLOW_SIGMA) -> np.ndarray:
    """Velocity of the whole image between consecutive frames, (time - 1, 2): down, right, pixels per frame.

    The least-squares solution of brightness constancy over the mask (Lucas & Kanade 1981), on the movie smoothed by a
    Gaussian of `sigma` (frames, pixels, pixels). 0 where there is no structure to move.

    Raises:
      NeuroreconError: fewer than two frames, or as `movie_metrics`.
    """
    movie = checked_movie("movie", movie)
    mask = _still(mask, movie.shape)
    if len(movie) < 2:
        raise NeuroreconError("movie: expected at least two frames for its flow, found one")
    smooth = gaussian_filter(movie, sigma)
    down, right = np.gradient((smooth[1:] + smooth[:-1]) / 2, axis=(1, 2))
    change = np.diff(smooth, axis=0)
    a, b = np.stack([down[:, mask], right[:, mask]], axis=-1), -change[:, mask]
    normal = np.einsum("tpi,tpj->tij", a, a)
    side = np.einsum("tpi,tp->ti", a, b)
    # The pseudo-inverse answers 0 along a direction without structure, where the inverse would answer anything.
    return np.einsum("tij,tj->ti", np.linalg.pinv(normal, rcond=1e-6, hermitian=True), side)


def lag_correlations(
    truth: np.ndarray, movie: np.ndarray, mask: np.ndarray | None, *, max_lag: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Correlation over pixels x frames at each lag of the reconstruction.

    Args:
      truth, movie: (time, height, width), grey values.
      mask: (height, width), true inside; None is the whole screen.
      max_lag: frames to either side.

    Returns:
      Lags in frames, (2 * max_lag + 1,), and correlations; at a positive lag frame t of the truth meets frame t + lag
      of the movie, so that a peak there says that the movie is late. All lags use the same frames of the truth.

    Raises:
      NeuroreconError: as `movie_metrics`; a negative `max_lag`, or one that leaves fewer than two frames.
    """
    truth, movie = checked_pair(truth, movie)
    mask = _still(mask, truth.shape)
    if max_lag < 0 or len(truth) - 2 * max_lag < 2:
        raise NeuroreconError(f"max_lag: expected 0 to {(len(truth) - 2) // 2} frames, found {max_lag}")
    kept = len(truth) - 2 * max_lag
    still = inside(truth[max_lag : max_lag + kept], mask)
    lags = np.arange(-max_lag, max_lag + 1)
    shifted = (inside(movie[max_lag + lag : max_lag + lag + kept], mask) for lag in lags)
    return lags, np.array([pearson(still, values) for values in shifted])


def peak_lag(lags: np.ndarray, values: np.ndarray) -> float:
    """Where correlations peak, in frames: the top of the parabola through the highest and its neighbours.

    Args:
      lags: (lag,) evenly spaced.
      values: (lag,); the highest at either end is returned as it is.

    Raises:
      NeuroreconError: no value is finite.
    """
    lags, values = np.asarray(lags, np.float64), np.asarray(values, np.float64)
    if not np.isfinite(values).any():
        raise NeuroreconError("values: expected correlations, found none that is finite")
    top = int(np.nanargmax(values))
    if top in (0, len(values) - 1):
        return float(lags[top])
    before, here, after = values[top - 1 : top + 2]
    curve = before - 2 * here + after
    shift = 0.5 * (before - after) / curve if curve < 0 else 0.0
    return float(lags[top] + shift * (lags[1] - lags[0]))


def _still(mask: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    checked = checked_mask(mask, shape)
    if checked.ndim != 2:
        raise NeuroreconError(f"mask: expected one that stays, (height, width), found shape {checked.shape}")
    return checked


def _correlation(truth: np.ndarray, movie: np.ndarray) -> float:
    value = pearson(truth, movie)
    return 0.0 if np.isnan(value) and np.isfinite(pearson(truth, truth)) else value
