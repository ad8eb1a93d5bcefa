"""Folding DwiseNeuro's batch norms into its convolutions, for inference."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from neurorecon.encoders.batch_norm import EPSILON
from neurorecon.encoders.dwiseneuro import DwiseNeuro
from neurorecon.errors import NeuroreconError


def fold_batch_norm(encoder: DwiseNeuro, variables: Any) -> tuple[DwiseNeuro, Any]:
    """An encoder without batch norms that gives the same outputs in evaluation mode.

    scale * (w x - mean) / sqrt(var + eps) + bias = (w f) x + (bias - mean f), f = scale / sqrt(var + eps).
    The zero padding of a convolution comes before its norm, so that this is exact at the borders too. Norms
    of shortcuts keep a scale of their own. Computed in float64, returned in the kernels' dtype.

    Raises:
      NeuroreconError: not an unfolded DwiseNeuro.
    """
    if not isinstance(encoder, DwiseNeuro) or encoder.folded:
        raise NeuroreconError("encoder: expected an unfolded DwiseNeuro, found another one; fold once, after training")
    params = {path: np.asarray(a) for path, a in traverse_util.flatten_dict(variables["params"]).items()}
    stats = traverse_util.flatten_dict(variables["batch_stats"])
    folded = {path: a for path, a in params.items() if not path[-2:-1] or not path[-2].endswith("norm")}
    for path, scale in params.items():
        if path[-1] != "scale":
            continue
        norm = path[:-1]
        mean, variance = (np.asarray(stats[(*norm, name)], np.float64) for name in ("mean", "var"))
        factor = scale / np.sqrt(variance + EPSILON)
        bias = params[(*norm, "bias")]
        folded[(*norm, "bias")] = (bias - mean * factor).astype(bias.dtype)
        if norm[-1] == "shortcut_norm":
            folded[path] = factor.astype(scale.dtype)
            continue
        kernel_path = (*norm[:-1], norm[-1].removesuffix("_norm") if norm[-1] != "norm" else "conv")
        kernel = params[kernel_path]
        # A grouped kernel is (group, input, output of the group); the factor's channels run group by group.
        grouped = norm[0].startswith("cortex")
        along = factor.reshape(kernel.shape[0], 1, kernel.shape[2]) if grouped else factor
        folded[kernel_path] = (kernel * along).astype(kernel.dtype)
    frequencies = {path: a for path, a in stats.items() if path[-1] == "inv_freq"}
    tree = {
        "params": traverse_util.unflatten_dict(folded),
        "batch_stats": traverse_util.unflatten_dict(frequencies),
    }
    return encoder.clone(folded=True), jax.tree.map(jnp.asarray, tree)
