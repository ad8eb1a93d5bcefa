"""Reconstruction: gradient descent on the pixels of a movie, against recorded responses, through fixed encoders.

Parts to compose: `losses`, `priors`, `parametrisations`, `updates`, `windows`; put together in `recipes`, run by
`reconstruct`. `masks` finds the part of the screen that the neurons see.
"""

from neurorecon.reconstruction.progress import Progress
from neurorecon.reconstruction.recipes import Recipe, default_recipe, published_recipe
from neurorecon.reconstruction.reconstruct import Reconstruction, reconstruct, reconstruct_clips

__all__ = [
    "Progress",
    "Recipe",
    "Reconstruction",
    "default_recipe",
    "published_recipe",
    "reconstruct",
    "reconstruct_clips",
]
