"""Encoders small enough for tests, with no parameter left at a neutral value, and clips to go with them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neurorecon.encoders import DwiseNeuro, Factorized, LinearNonlinear

SCREEN = (4, 6)
NUM_NEURONS = 5
NUM_FRAMES = 20
_SHARED: dict[str, Any] = {"num_neurons": (NUM_NEURONS,), "behaviour_std": (2.0, 1.0, 1.0, 1.0)}
TOYS = {
    "linear_nonlinear": LinearNonlinear(canvas=SCREEN, window_frames=8, frame_step=1, rank=1, num_taps=3, **_SHARED),
    "factorized": Factorized(
        canvas=SCREEN,
        window_frames=6,
        frame_step=2,
        warmup_frames=2,
        features=(3,),
        spatial_kernels=(3,),
        temporal_kernels=(3,),
        strides=(2,),
        **_SHARED,
    ),
    "dwiseneuro": DwiseNeuro(
        num_neurons=(NUM_NEURONS,),
        canvas=(6, 6),
        screen=SCREEN,
        window_frames=4,
        core_features=(4, 6),
        spatial_strides=(2, 1),
        temporal_kernel=3,
        expansion_ratio=2,
        se_reduce_ratio=2,
        cortex_features=(8,),
        softplus_beta=0.5,
    ),
}


def toy(name: str, seed: int = 0, dtype: Any = np.float32) -> tuple[Any, Any]:
    """(encoder, variables), float64 under enable_x64."""
    encoder = TOYS[name]
    inputs = jnp.zeros((1, encoder.window_frames, *encoder.canvas, 5), jnp.float32)
    rng = np.random.default_rng(seed)

    def drawn(path, like):
        if like.dtype.kind != "f":
            return jnp.zeros(like.shape, like.dtype)
        name = path[-1].key
        if name in ("var", "scale", "inv_freq"):
            values = rng.uniform(0.5, 1.5, like.shape)
        else:
            # All but vectors are kernels, features last.
            fan_in = np.prod(like.shape[:-1]) if len(like.shape) > 1 else 10
            values = rng.normal(0, 1 / np.sqrt(fan_in), like.shape)
        return jnp.asarray(values, dtype)

    shapes = jax.eval_shape(encoder.init, jax.random.key(seed), inputs)
    return encoder, jax.tree_util.tree_map_with_path(drawn, shapes)


def toy_clips(num_clips: int = 1, seed: int = 0, num_frames: int = NUM_FRAMES) -> tuple[np.ndarray, np.ndarray]:
    """Responses (clip, time, neuron) and behaviour (clip, time, 4)."""
    rng = np.random.default_rng(seed)
    responses = rng.gamma(1.0, 2.0, (num_clips, num_frames, NUM_NEURONS)).astype(np.float32)
    return responses, rng.normal(0, 1, (num_clips, num_frames, 4)).astype(np.float32)
