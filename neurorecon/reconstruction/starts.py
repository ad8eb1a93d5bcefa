"""Where a descent starts: an amortised start is a decoder's movie in place of the prior's mean or of grey."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction.loop import State
from neurorecon.reconstruction.progress import Progress
from neurorecon.reconstruction.recipes import Recipe
from neurorecon.reconstruction.stopping import begun


def start_at(
    encoders: Sequence[tuple[Any, Any]],
    movies: np.ndarray,
    *,
    recipe: Recipe,
    num_steps: int | None = None,
    keep: float = 1.0,
) -> Progress:
    """The `progress` with which `reconstruct_clips` starts at these movies; the objective stays the recipe's.

    Args:
      encoders: those of the reconstruction.
      movies: (clip, time, height, width) of what the recipe descends, grey values: a decoder's output, say.
      recipe: that of the reconstruction.
      num_steps: that of the reconstruction, where it is not the recipe's.
      keep: share of the way from the recipe's own start to the movie.

    Raises:
      NeuroreconError: movies that are not finite or have other axes.
    """
    movies = np.asarray(movies)
    if movies.ndim != 4 or not np.isfinite(movies).all():
        raise NeuroreconError(
            f"start_at, movies: expected finite values (clip, time, height, width), found {movies.shape}"
        )
    leaves = jax.tree.leaves([variables for _, variables in encoders])
    dtype = jnp.result_type(jnp.float32, *(x.dtype for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)))
    shape = movies.shape[1:]
    parametrisation = recipe.parametrisation(shape, dtype)
    own = jnp.zeros(shape, dtype)
    if not parametrisation.starts_at_prior:
        own = parametrisation.from_pixels(jnp.full(shape, recipe.start, dtype))
    latents = jnp.stack([parametrisation.from_pixels(jnp.asarray(movie, dtype)) for movie in movies])
    latents = own + keep * (latents - own)
    optimiser = recipe.update(recipe.num_steps if num_steps is None else num_steps).init(own)
    watch = begun(recipe.stop, own)
    sizes = Counter(encoder for encoder, _ in encoders).values() if recipe.ensemble == "movies" else [1]

    def every(x: Any, size: int) -> jax.Array:
        return jnp.broadcast_to(x, (size, len(movies), *jnp.shape(x)))

    states = tuple(
        State(
            jnp.zeros((), jnp.int32),
            jnp.broadcast_to(latents, (size, *latents.shape)),
            jax.tree.map(lambda x, size=size: every(x, size), optimiser),
            jax.tree.map(lambda x, size=size: every(x, size), watch),
        )
        for size in sizes
    )
    return Progress(states, tuple({} for _ in states))
