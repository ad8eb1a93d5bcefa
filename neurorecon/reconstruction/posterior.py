"""Posterior samples of a movie by randomised maximum a posteriori: how far a reconstruction can be trusted, and where.

Each sample is the recipe's own descent with the responses perturbed by a draw of their noise and the prior's mean by a
draw of the prior. Where encoder and noise are linear and Gaussian these are exact draws of the posterior (Gu & Oliver
2007; Bardsley, Solonen, Haario & Laine 2014: randomise-then-optimise); elsewhere they are its approximation around
each sample's own optimum.

With movie = mean + A z, the sample minimises w L(y + e, f(mean + A z)) + |z - z0|^2 / 2, where z0 ~ N(0, I) and e has
the noise's covariance over w. In terms of d = z - z0 that is the recipe's own objective, penalty |d|^2 / 2, with A z0
added to every movie: a `baseline` does it, and samples are descended side by side as clips are.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter

from neurorecon.encoders import predict_ensemble
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction.checks import check_encoders, check_key
from neurorecon.reconstruction.noise import ResponseNoise, simulate_responses
from neurorecon.reconstruction.parametrisations import Parametrisation
from neurorecon.reconstruction.recipes import Recipe
from neurorecon.reconstruction.reconstruct import reconstruct, reconstruct_clips

DRAWS = 2**31 - 1  # of the key; step k of a descent takes k


@dataclasses.dataclass(frozen=True)
class Posterior:
    """Posterior samples of one clip and what they say.

    Attributes:
      movie: (time, height, width) the reconstruction around whose prediction the noise was drawn; grey values 0..255.
      mean: (time, height, width) of the samples.
      std: (time, height, width) root mean square distance of the samples from `movie`, grey values. The likelihood is
        tempered and encoders are wrong in ways they don't know: scale it by `evaluation.fit_spread_scale`.
      samples: (sample, time, height, width), 0..255; 2 k and 2 k + 1 are an antithetic pair.
      encoder_windows: as in `Reconstruction`, of all samples together, and of `movie` where it was not given.
    """

    movie: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    samples: np.ndarray
    encoder_windows: float


def posterior_draws(
    recipe: Recipe,
    noise: ResponseNoise,
    responses: np.ndarray,
    prediction: np.ndarray,
    *,
    frame_shape: tuple[int, int],
    frame_step: int,
    num_samples: int,
    key: jax.Array,
    prior_scale: np.ndarray | float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """What the samples descend from: perturbed responses (sample, time, neuron), prior draws (sample, time, h, w).

    Samples come in antithetic pairs, which perturb responses and prior by a draw and by its negative: what is linear
    in the draws then cancels in the mean, so that a few samples' mean is no worse than the reconstruction. Sample k
    depends on `key` and k alone, not on how many there are.

    Args:
      recipe: with one loss, whose weight tempers the likelihood: the noise's variance is divided by it.
      noise: what the encoders leave unexplained.
      responses: (time, neuron) as recorded.
      prediction: (time, neuron), about the mean responses: the noise's variance goes with it.
      frame_shape: (height, width) of the screen.
      frame_step: that of the encoders and of the fit of `noise`.
      num_samples: even.
      key: of the reconstruction.
      prior_scale: (time, height, width), as in `reconstruct`.

    Raises:
      NeuroreconError: a recipe without a Gaussian prior or with further terms, or an odd number of samples.
    """
    responses = np.asarray(responses)
    if num_samples < 2 or num_samples % 2:
        raise NeuroreconError(f"num_samples: expected an even number of 2 or more, found {num_samples}")
    if responses.ndim != 2 or np.shape(prediction) != responses.shape:
        raise NeuroreconError(
            f"responses: expected (time, neuron) as the prediction's {np.shape(prediction)}, found {responses.shape}"
        )
    shape = (len(responses), *frame_shape)
    parametrisation = _gaussian_prior(recipe, shape)
    if len(recipe.losses) != 1 or recipe.mean_loss or recipe.normalise_windows:
        raise NeuroreconError(f"recipe {recipe.name}: expected one summed loss, found {', '.join(recipe.losses)}")
    ((weight, _),) = recipe.losses.values()
    if weight <= 0:
        raise NeuroreconError(f"recipe {recipe.name}: expected a loss weight above 0, found {weight}")
    perturbed, displaced = [], []
    for pair in range(num_samples // 2):
        for_prior, for_noise = _pair_keys(key, pair)
        displacement = _displacement(recipe, parametrisation, shape, for_prior, prior_scale)
        seed = [int(word) for word in np.asarray(jax.random.bits(for_noise, (4,)))]
        drawn = simulate_responses(noise, prediction, frame_step=frame_step, seed=seed, scale=1 / np.sqrt(weight))[0]
        error = drawn - np.asarray(prediction, np.float32)
        perturbed += [responses + error, responses - error]
        displaced += [displacement, -displacement]
    return np.stack(perturbed), np.stack(displaced)


def prior_alone(
    recipe: Recipe, shape: tuple[int, int, int], *, key: jax.Array, baseline: np.ndarray | float = 0.0
) -> np.ndarray:
    """A movie drawn from the recipe's prior: what its posterior sampling gives where there are no responses.

    Without responses the likelihood says nothing, the sample's own objective is least where it starts, and what is left
    is the draw of the prior: the first of a pair of `posterior_draws` with the same key. A control: what a prior alone
    invents, with the spectrum and contrast that it gives to reconstructions.

    Args:
      recipe: as `default_recipe` makes it, with a Gaussian prior.
      shape: (time, height, width) of the screen.
      key: one for each clip, or all clips get the same movie.
      baseline: what is added, (time, height, width) or a grey value: the mean grey value with a recipe whose prior mean
        is 0 because a decoder's movie is added to each clip. That movie itself would be no prior alone.

    Returns:
      (time, height, width) float32, 0..255, smoothed as the recipe smooths.

    Raises:
      NeuroreconError: a recipe without a Gaussian prior or with further priors.
    """
    check_key(key)
    parametrisation = _gaussian_prior(recipe, shape)
    displacement = _displacement(recipe, parametrisation, shape, _pair_keys(key, 0)[0])
    movie = np.asarray(parametrisation.to_pixels(jnp.zeros(shape))) + displacement + np.asarray(baseline, np.float32)
    return gaussian_filter(np.clip(movie, 0.0, 255.0), recipe.smoothing).astype(np.float32)


def _gaussian_prior(recipe: Recipe, shape: tuple[int, int, int]) -> Parametrisation:
    """The recipe's parametrisation, which has to be its whole prior."""
    parametrisation = recipe.parametrisation(shape, jnp.float32)
    if recipe.canvas or not parametrisation.starts_at_prior or recipe.priors or recipe.penalty_weight <= 0:
        raise NeuroreconError(
            f"recipe {recipe.name}: expected a Gaussian prior of its parametrisation on the screen and no other, as "
            "default_recipe has; samples are drawn from it"
        )
    return parametrisation


def _pair_keys(key: jax.Array, pair: int) -> jax.Array:
    """Of the prior's draw and of the noise's, of one antithetic pair."""
    return jax.random.split(jax.random.fold_in(jax.random.fold_in(key, DRAWS), pair))


def _displacement(
    recipe: Recipe,
    parametrisation: Parametrisation,
    shape: tuple[int, int, int],
    key: jax.Array,
    prior_scale: np.ndarray | float = 1.0,
) -> np.ndarray:
    """(time, height, width) a draw of the prior, about its mean."""
    latent = jax.random.normal(key, shape) * np.asarray(prior_scale, np.float32) / np.sqrt(recipe.penalty_weight)
    return np.asarray(parametrisation.to_pixels(latent) - parametrisation.to_pixels(jnp.zeros(shape)))


def sample_posterior(
    encoders: Sequence[tuple[Any, Any]],
    responses: np.ndarray,
    behaviour: np.ndarray,
    *,
    recipe: Recipe,
    noise: ResponseNoise,
    num_samples: int,
    key: jax.Array,
    movie: np.ndarray | None = None,
    baseline: np.ndarray | None = None,
    prior_scale: np.ndarray | None = None,
    readout: int = 0,
    smoothing: tuple[float, float, float] = (5.0, 2.0, 2.0),
    **options: Any,
) -> Posterior:
    """Draws `num_samples` movies from the posterior that the recipe's objective stands for, in one compiled descent.

    With `recipe.ensemble` "movies" each sample is descended once for each encoder, and what the encoders differ in is
    part of the spread: encoders x samples movies come out, encoder by encoder.

    Args:
      encoders: (encoder, variables) of every member of the ensemble, of one frame step.
      responses: (time, neuron) as recorded.
      behaviour: (time, 4).
      recipe: as `default_recipe` makes it: a Gaussian prior and one loss. Samples make all its updates, with all
        neurons, whether or not it stops early.
      noise: what the encoders leave unexplained, fitted with their frame step.
      num_samples: even, see `posterior_draws`.
      key: of the reconstruction; the same key gives the same samples.
      movie: the recipe's reconstruction of these responses, where it is there already.
      baseline, prior_scale: (time, height, width), as in `reconstruct`.
      readout: which animal's readout.
      smoothing: sigma of a Gaussian over time, height and width on the variance: it varies little from pixel to pixel,
        and four samples tell little of one pixel alone. 0 for none.
      **options: see `reconstruct_clips`, samples in place of clips; `progress` and `on_call` make it resumable.

    Raises:
      NeuroreconError: as `posterior_draws` and `reconstruct`, or encoders of different frame steps.
    """
    check_key(key)
    check_encoders(encoders, readout, same_canvas=False)
    steps = {encoder.frame_step for encoder, _ in encoders}
    if len(steps) > 1:
        raise NeuroreconError(f"encoders: expected one frame step, which the noise was fitted with, found {steps}")
    common = {name: options[name] for name in options if name not in ("progress", "on_call")}
    common |= {"recipe": recipe, "key": key, "readout": readout}
    windows = 0.0
    if movie is None:
        found = reconstruct(encoders, responses, behaviour, baseline=baseline, prior_scale=prior_scale, **common)
        movie, windows = found.movie, found.encoder_windows
    frame_shape = tuple(encoders[0][0].screen)
    perturbed, displaced = posterior_draws(
        recipe,
        noise,
        responses,
        predict_ensemble(encoders, movie, behaviour, readout),
        frame_shape=frame_shape,
        frame_step=steps.pop(),
        num_samples=num_samples,
        key=key,
        prior_scale=1.0 if prior_scale is None else prior_scale,
    )
    if baseline is not None:
        displaced = displaced + np.asarray(baseline, np.float32)
    behaviours = np.broadcast_to(behaviour, (num_samples, *np.shape(behaviour)))
    scales = None if prior_scale is None else np.broadcast_to(prior_scale, displaced.shape)
    common["recipe"] = recipe.replace(stop=None)
    result = reconstruct_clips(
        encoders, perturbed, behaviours, baseline=displaced, prior_scale=scales, **(options | common)
    )
    samples = np.concatenate(result.movies.swapaxes(0, 1))  # encoder by encoder, where each has its own movies
    mean = samples.mean(0, dtype=np.float64)
    # About the movie, which the mean of antithetic pairs is up to what is not linear: no degree of freedom is lost.
    variance = gaussian_filter(np.square(samples - np.asarray(movie, np.float64)).mean(0), smoothing)
    windows += result.encoder_windows * num_samples
    return Posterior(movie, mean.astype(np.float32), np.sqrt(variance).astype(np.float32), samples, windows)
