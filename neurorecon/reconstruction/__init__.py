"""Reconstruction: gradient descent on the pixels of a movie, against recorded responses, through fixed encoders.

Parts to compose: `losses`, `priors`, `parametrisations`, `updates`, `windows`; put together in `recipes`, run by
`reconstruct`. `masks` finds the part of the screen that the neurons see, `receptive_fields` where each of them looks.
"""

from neurorecon.reconstruction.noise import ResponseNoise, fit_noise, simulate_responses
from neurorecon.reconstruction.posterior import Posterior, posterior_draws, prior_alone, sample_posterior
from neurorecon.reconstruction.progress import Progress
from neurorecon.reconstruction.receptive_fields import (
    PixelResponses,
    ReceptiveFieldMaps,
    population_receptive_field,
    probe_pixels,
    receptive_field_maps,
)
from neurorecon.reconstruction.recipes import Recipe, default_recipe, published_recipe
from neurorecon.reconstruction.reconstruct import Reconstruction, reconstruct, reconstruct_clips

__all__ = [
    "PixelResponses",
    "Posterior",
    "Progress",
    "ReceptiveFieldMaps",
    "Recipe",
    "Reconstruction",
    "ResponseNoise",
    "default_recipe",
    "fit_noise",
    "population_receptive_field",
    "posterior_draws",
    "prior_alone",
    "probe_pixels",
    "published_recipe",
    "receptive_field_maps",
    "reconstruct",
    "reconstruct_clips",
    "sample_posterior",
    "simulate_responses",
]
