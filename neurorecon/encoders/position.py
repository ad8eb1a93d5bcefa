"""The fixed 3D sinusoidal position code in front of each DwiseNeuro block."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def inverse_frequencies(num_channels: int) -> np.ndarray:
    """10000^(-2 i / m) with m = 2 ceil(channels / 6), in radians per frame or pixel; (m / 2,) float32."""
    per_axis = 2 * math.ceil(num_channels / 6)
    exponents = np.arange(0, per_axis, 2, dtype=np.float32) / np.float32(per_axis)
    return np.float32(1.0) / (10000.0 ** exponents.astype(np.float64)).astype(np.float32)


def position_code(frequencies: jax.Array, shape: Sequence[int]) -> jax.Array:
    """The code of `shape` (time, height, width, channel), in the dtype of `frequencies`.

    Each axis gets sin(f * index) for all f, then cos(f * index) for all f; the three are joined in the order
    time, height, width and cut to the channels, so that with few channels the width's code is partly missing.
    """
    codes = []
    for axis, size in enumerate(shape[:3]):
        phase = jnp.arange(size, dtype=frequencies.dtype)[:, None] * frequencies
        code = jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)
        place = [1, 1, 1, code.shape[-1]]
        place[axis] = size
        codes.append(jnp.broadcast_to(code.reshape(place), (*shape[:3], code.shape[-1])))
    return jnp.concatenate(codes, axis=-1)[..., : shape[3]]
