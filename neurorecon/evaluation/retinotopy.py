"""Where neurons look and how large a part they see, and how that goes with where they lie in the cortex."""

from typing import NamedTuple

import numpy as np

from neurorecon.errors import NeuroreconError

# Of a Gaussian: area above half maximum = 2 pi ln 2 sigma^2; width at half maximum = 2 sqrt(2 ln 2) sigma.
_AREA = 2 * np.pi * np.log(2)
WIDTH_IN_SIGMAS = 2 * np.sqrt(2 * np.log(2))


class FieldShapes(NamedTuple):
    """One of each neuron.

    Attributes:
      centre: (neuron, 2) row and column, in places from the upper left corner of the map, the middle of the first one
        at 0.5; NaN where a neuron has no field.
      width: (neuron,) at half maximum, in places; NaN where it has none or one too small to be told from the smoothing.
    """

    centre: np.ndarray
    width: np.ndarray


class Retinotopy(NamedTuple):
    """A linear map from the cortex to the visual field.

    Attributes:
      r2: (2,) share of the variance of azimuth and of elevation that position explains in neurons left out of the fit.
      p_value: (2,) share of permutations of the neurons that do as well; at least 1 / (permutations + 1).
      slope: (2, D) degrees per micrometre: of azimuth and elevation along each axis of the cortex.
      predicted: (neuron, 2) degrees, by the fit without that neuron's fold.
    """

    r2: np.ndarray
    p_value: np.ndarray
    slope: np.ndarray
    predicted: np.ndarray


def field_shapes(maps: np.ndarray, strength: np.ndarray, *, smoothing: float = 0.0) -> FieldShapes:
    """Centre and width of each neuron's receptive field, bright and dark subfields together.

    The maps of both polarities are added, each times its strength. The centre is the centroid of what lies above half
    of the maximum; the width is that of the Gaussian with as large an area there, after the variance of the smoothing
    and of the places themselves is taken off.

    Args:
      maps: (polarity, height, width, neuron), 0 to 1 each, zeros where unresponsive.
      strength: (polarity, neuron), 0 or more.
      smoothing: sigma of the Gaussian that the maps were smoothed with, in places.

    Raises:
      NeuroreconError: shapes that don't fit, negative or not finite values.
    """
    maps, strength = np.asarray(maps, np.float64), np.asarray(strength, np.float64)
    if maps.ndim != 4 or strength.shape != (maps.shape[0], maps.shape[3]):
        raise NeuroreconError(
            f"maps: expected (polarity, height, width, neuron) and strengths (polarity, neuron), found {maps.shape} "
            f"and {strength.shape}"
        )
    if not (np.isfinite(maps).all() and np.isfinite(strength).all() and maps.min() >= 0 and strength.min() >= 0):
        raise NeuroreconError("maps, strength: expected finite values of 0 or more")
    total = np.einsum("phwn,pn->hwn", maps, strength)
    highest = total.max((0, 1))
    weight = np.where(total >= highest / 2, total, 0.0) * (highest > 0)
    area = (weight > 0).sum((0, 1))
    mass = np.where(highest > 0, weight.sum((0, 1)), np.nan)
    rows, columns = (np.arange(n) + 0.5 for n in total.shape[:2])
    centre = np.stack([np.einsum("hwn,h->n", weight, rows), np.einsum("hwn,w->n", weight, columns)], axis=1)
    variance = area / _AREA - smoothing**2 - 1 / 12
    has_width = (highest > 0) & (variance > 0)
    width = np.where(has_width, WIDTH_IN_SIGMAS * np.sqrt(np.where(has_width, variance, 0.0)), np.nan)
    return FieldShapes(centre / mass[:, None], width)


def fit_retinotopy(
    cortex: np.ndarray, field: np.ndarray, *, seed: int, num_permutations: int = 1000, folds: int = 10
) -> Retinotopy:
    """Linear regression of positions in the visual field on positions in the cortex, cross-validated over neurons.

    Args:
      cortex: (neuron, D) micrometres.
      field: (neuron, 2) azimuth and elevation, degrees.
      seed: of the folds and permutations.
      num_permutations: of the neurons, for the p-value.
      folds: parts of the neurons, each predicted from the others.

    Raises:
      NeuroreconError: shapes that don't fit, values that are not finite, fewer neurons than two in each fold, or
        positions that all lie on one spot.
    """
    cortex, field = np.asarray(cortex, np.float64), np.asarray(field, np.float64)
    if cortex.ndim != 2 or field.shape != (len(cortex), 2):
        raise NeuroreconError(
            f"cortex, field: expected (neuron, D) and (neuron, 2), found {cortex.shape} and {field.shape}"
        )
    if not (np.isfinite(cortex).all() and np.isfinite(field).all()):
        raise NeuroreconError("cortex, field: expected finite positions; leave out neurons without one")
    if len(cortex) < 2 * folds or num_permutations < 1:
        raise NeuroreconError(f"cortex: expected at least {2 * folds} neurons and 1 permutation, found {len(cortex)}")
    if not np.ptp(cortex, axis=0).any() or not np.ptp(field, axis=0).all():
        raise NeuroreconError("cortex, field: expected positions that differ between neurons, found one for all")
    rng = np.random.default_rng(seed)
    part = rng.permutation(len(cortex)) % folds
    design = np.column_stack([np.ones(len(cortex)), cortex - cortex.mean(0)])
    # Depends on the cortex alone, so that permutations only multiply.
    fits = [(part == fold, np.linalg.pinv(design[part != fold])) for fold in range(folds)]

    def predicted(values: np.ndarray) -> np.ndarray:
        found = np.empty_like(values)
        for out, inverse in fits:
            found[out] = design[out] @ (inverse @ values[~out])
        return found

    def explained(values: np.ndarray) -> np.ndarray:
        return 1 - ((values - predicted(values)) ** 2).sum(0) / ((values - values.mean(0)) ** 2).sum(0)

    r2 = explained(field)
    beaten = np.sum([explained(field[rng.permutation(len(field))]) >= r2 for _ in range(num_permutations)], axis=0)
    slope = np.linalg.lstsq(design, field, rcond=None)[0][1:].T
    return Retinotopy(r2, (beaten + 1) / (num_permutations + 1), slope, predicted(field))
