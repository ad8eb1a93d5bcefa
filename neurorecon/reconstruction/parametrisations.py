"""Pixel parametrisations: what the descent moves, and how a movie comes out of it.

Each is a pair `to_pixels` / `from_pixels`, with `project` applied after every step and `penalty`, the negative log
prior of the parameters.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

GREY = 127.5


def _nothing(latent: jax.Array) -> jax.Array:
    return latent


def _no_penalty(latent: jax.Array) -> jax.Array:
    return jnp.zeros((), latent.dtype)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["to_pixels", "from_pixels", "project", "penalty"],
    meta_fields=["starts_at_prior"],
)
@dataclasses.dataclass(frozen=True)
class Parametrisation:
    """A pixel parametrisation for one movie shape.

    Arrays that its functions hold as a `jax.tree_util.Partial` are arguments of the compiled descent, not part of it.

    Attributes:
      to_pixels: latent -> movie (time, height, width), grey values.
      from_pixels: movie -> latent with `to_pixels(from_pixels(movie)) == movie`, where the latent can show the movie.
      project: latent -> latent, after each update.
      penalty: latent -> (), the negative log prior that belongs to the parametrisation, without its constant.
      starts_at_prior: the descent starts at a latent of zeros, the prior's mean, not at a movie of the recipe's grey.
    """

    to_pixels: Callable[[jax.Array], jax.Array]
    from_pixels: Callable[[jax.Array], jax.Array]
    project: Callable[[jax.Array], jax.Array] = _nothing
    penalty: Callable[[jax.Array], jax.Array] = _no_penalty
    starts_at_prior: bool = False


def _half_square(latent: jax.Array) -> jax.Array:
    return 0.5 * jnp.sum(latent**2)


def direct(shape: tuple[int, int, int], dtype=jnp.float32) -> Parametrisation:
    """The pixels themselves, clipped to 0..255 after each update, as published."""
    del shape, dtype
    return Parametrisation(_nothing, _nothing, project=_displayable)


def _displayable(movie: jax.Array) -> jax.Array:
    return jnp.clip(movie, 0.0, 255.0)


def sigmoid(shape: tuple[int, int, int], dtype=jnp.float32) -> Parametrisation:
    """255 * sigmoid(latent): bounded without a clip that kills the gradient."""
    del shape, dtype
    return Parametrisation(_bounded, _unbounded)


def _bounded(latent: jax.Array) -> jax.Array:
    return 255.0 * jax.nn.sigmoid(latent)


def _unbounded(movie: jax.Array) -> jax.Array:
    # Black and white themselves would be infinite.
    share = jnp.clip(movie / 255.0, 1e-4, 1 - 1e-4)
    return jnp.log(share) - jnp.log1p(-share)


def cosine_basis(length: int, dtype=jnp.float32) -> jax.Array:
    """(length, length) orthonormal DCT-II basis; row k has k / 2 cycles over the axis."""
    k = np.arange(length)[:, None]
    basis = np.cos(np.pi * k * (np.arange(length)[None] + 0.5) / length) * np.sqrt(2.0 / length)
    basis[0] /= np.sqrt(2.0)
    return jnp.asarray(basis, dtype)


def cosine_transform(movie: jax.Array) -> jax.Array:
    """DCT-II over (time, height, width), orthonormal: matrix products, quick on every backend."""
    bases = [cosine_basis(n, movie.dtype) for n in movie.shape[-3:]]
    return jnp.einsum("...thw,at,bh,cw->...abc", movie, *bases, optimize=True, precision="highest")


def inverse_cosine_transform(coefficients: jax.Array) -> jax.Array:
    """Inverse of `cosine_transform`."""
    bases = [cosine_basis(n, coefficients.dtype) for n in coefficients.shape[-3:]]
    return jnp.einsum("...abc,at,bh,cw->...thw", coefficients, *bases, optimize=True, precision="highest")


def whitened_cosine(
    power: jax.Array, *, mean: jax.Array | np.ndarray | float = GREY, dtype=jnp.float32
) -> Parametrisation:
    """Coefficients of a cosine basis in units of their standard deviation under a Gaussian movie prior.

    The latent is white under the prior, so plain descent moves coarse, slow structure first and the prior is half the
    squared length of the latent. A cosine basis, not a Fourier one: it has no wrap-around between first and last frame
    or between opposite borders.

    Args:
      power: (time, height, width) prior variance of each cosine coefficient, positive (see `priors`).
      mean: prior mean, in grey values: a number, (height, width) or (time, height, width).
    """
    amplitude = jnp.sqrt(jnp.asarray(power, dtype))
    offset = jnp.asarray(mean, dtype)
    return Parametrisation(
        Partial(_coloured, amplitude, offset),
        Partial(_whitened, amplitude, offset),
        penalty=_half_square,
        starts_at_prior=True,
    )


def padded_whitened_cosine(
    power: np.ndarray, length: int, *, mean: jax.Array | np.ndarray | float = GREY, dtype=jnp.float32
) -> Parametrisation:
    """`whitened_cosine` of a movie of `power.shape[0]` frames, in arrays of `length` frames.

    The basis over time is the shorter movie's own, and an argument of the compiled descent: movies of all numbers of
    frames up to `length` share one. The frames that are added show the mean and nothing moves them; the latents that
    are added weigh nothing and have no gradient.

    Args:
      power: (time, height, width) prior variance of each cosine coefficient, positive.
      length: frames, at least as many.
      mean: prior mean, in grey values: a number, (height, width) or (time, height, width).
    """
    time, *frame = power.shape
    added = [(0, length - time), *[(0, 0)] * len(frame)]
    amplitude = np.pad(np.sqrt(np.asarray(power, np.float64)), added)
    basis = np.pad(np.asarray(cosine_basis(time, dtype)), [(0, length - time)] * 2)
    offset = np.asarray(mean)
    offset = np.pad(offset, added, mode="edge") if offset.ndim == 3 else offset
    held = (jnp.asarray(amplitude, dtype), jnp.asarray(offset, dtype), jnp.asarray(basis))
    return Parametrisation(
        Partial(_coloured_padded, *held),
        Partial(_whitened_padded, *held),
        penalty=_half_square,
        starts_at_prior=True,
    )


def _coloured_padded(amplitude: jax.Array, offset: jax.Array, basis: jax.Array, latent: jax.Array) -> jax.Array:
    bases = [basis, *(cosine_basis(n, latent.dtype) for n in latent.shape[-2:])]
    movie = jnp.einsum("...abc,at,bh,cw->...thw", amplitude * latent, *bases, optimize=True, precision="highest")
    return offset + movie


def _whitened_padded(amplitude: jax.Array, offset: jax.Array, basis: jax.Array, movie: jax.Array) -> jax.Array:
    bases = [basis, *(cosine_basis(n, movie.dtype) for n in movie.shape[-2:])]
    latent = jnp.einsum("...thw,at,bh,cw->...abc", movie - offset, *bases, optimize=True, precision="highest")
    return jnp.where(amplitude > 0, latent / jnp.where(amplitude > 0, amplitude, 1.0), 0.0)


def _coloured(amplitude: jax.Array, offset: jax.Array, latent: jax.Array) -> jax.Array:
    return offset + inverse_cosine_transform(amplitude * latent)


def _whitened(amplitude: jax.Array, offset: jax.Array, movie: jax.Array) -> jax.Array:
    return cosine_transform(movie - offset) / amplitude
