"""The encoder's inputs: the movie in the middle of the canvas, the behaviour in planes of its own."""

from typing import Any

import jax
import jax.numpy as jnp

from neurorecon.errors import NeuroreconError


def place_on_canvas(movie: Any, canvas: tuple[int, int], padding: float = 0.0) -> jax.Array:
    """Centres (..., height, width) on (..., canvas height, canvas width), `padding` around it.

    An odd rest goes below and to the right, as published.

    Raises:
      NeuroreconError: the movie is larger than the canvas.
    """
    movie = jnp.asarray(movie)
    (top, bottom), (left, right) = _margins(movie.shape[-2:], canvas)
    widths = [(0, 0)] * (movie.ndim - 2) + [(top, bottom), (left, right)]
    return jnp.pad(movie, widths, constant_values=padding)


def crop_from_canvas(movie: Any, screen: tuple[int, int]) -> Any:
    """The inverse of `place_on_canvas`: (..., canvas height, canvas width) -> (..., *screen)."""
    (top, bottom), (left, right) = _margins(screen, movie.shape[-2:])
    return movie[..., top : movie.shape[-2] - bottom, left : movie.shape[-1] - right]


def make_inputs(stimulus: Any, behaviour: Any, canvas: tuple[int, int], padding: float = 0.0) -> jax.Array:
    """An encoder's inputs from a movie and the behaviour.

    Args:
      stimulus: (..., time, height, width), grey 0..255, at most as large as the canvas.
      behaviour: (..., time, 4) = pupil dilation, running speed, pupil x, pupil y.
      canvas: (height, width) of the encoder.
      padding: grey value around the movie.

    Returns:
      (..., time, canvas height, canvas width, 5): channel 0 the movie, channels 1..4 the behaviour, raw, each
      filling its plane. Nothing is normalised: the encoder's first batch norm does that.

    Raises:
      NeuroreconError: shapes that don't fit together.
    """
    stimulus, behaviour = jnp.asarray(stimulus), jnp.asarray(behaviour)
    if stimulus.ndim < 3 or behaviour.shape != (*stimulus.shape[:-2], 4):
        raise NeuroreconError(
            "stimulus, behaviour: expected (..., time, height, width) and (..., time, 4), "
            f"found {stimulus.shape} and {behaviour.shape}"
        )
    dtype = jnp.promote_types(jnp.promote_types(stimulus.dtype, behaviour.dtype), jnp.float16)
    movie = place_on_canvas(stimulus.astype(dtype), canvas, padding)
    planes = jnp.broadcast_to(behaviour.astype(dtype)[..., None, None, :], (*movie.shape, 4))
    return jnp.concatenate([movie[..., None], planes], axis=-1)


def _margins(screen: tuple[int, ...], canvas: tuple[int, ...]) -> list[tuple[int, int]]:
    if len(screen) != 2 or any(small > large for small, large in zip(screen, canvas)):
        raise NeuroreconError(
            f"stimulus: expected frames of at most {tuple(canvas)} (the encoder's canvas, height and width), "
            f"found {tuple(screen)}; crop or downsample the movie"
        )
    return [((large - small) // 2, large - small - (large - small) // 2) for small, large in zip(screen, canvas)]
