"""What a run takes movies to look like before it sees a response, as `config.prior` says."""

import functools
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import priors

PRIOR_MEANS = ("training", "linear_decoder", "convolutional_decoder")


def prior_of(config: ml_collections.ConfigDict, movies: list[np.ndarray], mean: float) -> dict[str, Any]:
    """`power` and `prior_mean` for `default_recipe`, as `config.prior` says.

    Args:
      config: of the run.
      movies: whose deviations from `mean` the prior describes, from training or validation trials.
      mean: grey value.

    Raises:
      NeuroreconError: no such spectrum or mean.
    """
    if config.prior.mean not in PRIOR_MEANS:
        raise NeuroreconError(
            f"--config.prior.mean: expected one of {', '.join(PRIOR_MEANS)}, found {config.prior.mean!r}"
        )
    return {"power": spectrum_of(config.prior.spectrum, movies, mean, config.prior.std), "prior_mean": mean}


def spectrum_of(
    name: str, movies: list[np.ndarray], mean: float, std: float
) -> Callable[[tuple[int, int, int]], np.ndarray]:
    """`power` for `default_recipe`.

    Args:
      name: one of measured, natural, flat.
      movies, mean: as in `prior_of`, of "measured".
      std: grey values, of the others.

    Raises:
      NeuroreconError: no such spectrum.
    """
    # Every step asks for its spectrum while it is traced: measure once for each length.
    if name == "measured":
        deviations = [movie - mean + 127.5 for movie in movies]  # `measured_power` looks at deviations from grey
        return functools.cache(lambda shape: priors.measured_power(deviations, shape))
    if name == "natural":
        return functools.cache(lambda shape: priors.natural_power(shape, std=std))
    if name == "flat":
        return functools.cache(lambda shape: priors.flat_power(shape, std=std))
    raise NeuroreconError(f"--config.prior.spectrum: expected measured, natural or flat, found {name!r}")
