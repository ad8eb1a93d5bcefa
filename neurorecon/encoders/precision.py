"""Encoders in bfloat16: the core is narrow; inputs are normalised, and responses read out, in float32.

Behaviour is raw, often a large mean with small changes, of which bfloat16's eight bits would leave little, and a grey
level above 128 would be known to one level: whatever normalises the inputs keeps its precision. So do readouts: eight
bits would move the places that neurons look at. A linear-nonlinear encoder has no core: its inputs alone are narrow.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from neurorecon.encoders.dwiseneuro import DwiseNeuro
from neurorecon.encoders.folding import fold_batch_norm
from neurorecon.errors import NeuroreconError

PRECISIONS = ("float32", "bfloat16")
_STEM = "stem"  # DwiseNeuro's first product, which normalises the inputs
_AFTER_THE_CORE = ("readout", "behaviour")  # each followed by its number
_NORMS = ("norm", "batch_norm")  # which work in float32 inside


def in_precision(encoder: Any, variables: Any, precision: str) -> tuple[Any, Any]:
    """The encoder as `predict` wants it: for bfloat16, DwiseNeuro's batch norms are folded into its kernels.

    Raises:
      NeuroreconError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise NeuroreconError(f"precision: expected one of {', '.join(map(repr, PRECISIONS))}, found {precision!r}")
    if precision == "bfloat16" and isinstance(encoder, DwiseNeuro) and not encoder.folded:
        return fold_batch_norm(encoder, variables)
    return encoder, variables


def predict(encoder: Any, variables: Any, inputs: jax.Array, *, readout: int, precision: str) -> jax.Array:
    """Predicted responses (window, time, neuron) in the dtype of the inputs (window, time, height, width, 5).

    Args:
      encoder, variables: from `in_precision`.
      inputs: see `canvas.make_inputs`.
      readout: which animal's.
      precision: of the core's activations; sums within a layer are wider where the backend makes them so.
    """
    if precision == "float32":
        return encoder.apply(variables, inputs, readout=readout)
    params = {n: p if _stays(n) else _narrowed(p) for n, p in variables["params"].items()}
    seen = inputs
    if not isinstance(encoder, DwiseNeuro):  # which standardises them itself, and whose stem stays wide
        mean = jnp.asarray([encoder.stimulus_mean, *encoder.behaviour_mean], inputs.dtype)
        std = jnp.asarray([encoder.stimulus_std, *encoder.behaviour_std], inputs.dtype)
        encoder = encoder.clone(
            stimulus_mean=0.0, stimulus_std=1.0, behaviour_mean=(0.0,) * 4, behaviour_std=(1.0,) * 4
        )
        seen = _narrowed((inputs - mean) / std)
    with nn.intercept_methods(_narrow_outputs):
        predicted = encoder.apply({**variables, "params": params}, seen, readout=readout)
    return predicted.astype(inputs.dtype)


def _kind(name: str) -> str:
    return name.rstrip("0123456789")


def _stays(name: str) -> bool:
    return _kind(name) in (_STEM, "log_scale", *_AFTER_THE_CORE, *_NORMS)


def _narrowed(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)


def _narrow_outputs(call, args, kwargs, context):
    """What the core's layers give on is narrow, whatever they work in inside; what comes after it is wide."""
    path = context.module.path
    if context.method_name != "__call__" or not path:
        return call(*args, **kwargs)
    if _kind(path[0]) in _AFTER_THE_CORE:
        wide = jax.tree.map(lambda x: x.astype(jnp.float32) if hasattr(x, "dtype") else x, args)
        return call(*wide, **kwargs)
    out = call(*args, **kwargs)
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), out)
