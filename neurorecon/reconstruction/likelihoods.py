"""Response losses by name, fitted to trials that the encoders were not fitted to."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import losses
from neurorecon.reconstruction.noise import fit_noise
from neurorecon.reconstruction.response_distributions import (
    fit_gamma_with_zeros,
    fit_negative_binomial,
    fit_shared_gain,
)

LIKELIHOODS = (
    "autoregressive", "autoregressive_gain", "quasi_poisson", "negative_binomial", "gamma_with_zeros", "poisson",
)  # fmt: skip


def fit_likelihood(
    name: str, predictions: Sequence[np.ndarray], responses: Sequence[np.ndarray], *, frame_step: int
) -> losses.ResponseLoss:
    """One of `LIKELIHOODS`.

    Args:
      name: which.
      predictions, responses: (time, neuron) of each held-out trial, without the frames that encoders can't know.
      frame_step: distance of the frames that an encoder looks at.

    Raises:
      NeuroreconError: no such likelihood, or trials that it can't be fitted to.
    """
    if name == "poisson":
        return losses.poisson
    if name == "negative_binomial":
        return losses.negative_binomial(fit_negative_binomial(predictions, responses))
    if name == "gamma_with_zeros":
        return losses.gamma_with_zeros(fit_gamma_with_zeros(predictions, responses))
    if name == "autoregressive_gain":
        return losses.autoregressive_gain(*fit_shared_gain(predictions, responses, frame_step=frame_step))
    noise = fit_noise(predictions, responses, frame_step=frame_step)
    if name == "autoregressive":
        return losses.autoregressive(noise)
    if name == "quasi_poisson":
        return losses.quasi_poisson(jnp.asarray(noise.dispersion))
    raise NeuroreconError(f"likelihood: expected one of {', '.join(LIKELIHOODS)}, found {name!r}")
