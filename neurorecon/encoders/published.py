"""Published DwiseNeuro weights: argus `.pth` files in, `.npz` keyed by the published parameter names out."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import traverse_util

from neurorecon.encoders.dwiseneuro import DwiseNeuro, check_sizes
from neurorecon.encoders.position import inverse_frequencies
from neurorecon.encoders.published_layout import Entry, published_layout
from neurorecon.encoders.published_pickle import read_checkpoint
from neurorecon.encoders.published_writer import write_checkpoint
from neurorecon.errors import NeuroreconError
from neurorecon.files import atomic_path

# The published average over training (0.999 a step) moves even constants by up to about 1e-4 in float32.
FREQUENCY_TOLERANCE = 1e-3
_NETWORK = {
    # published name -> our field and its kind
    "readout_outputs": ("num_neurons", "sizes"),
    "in_channels": ("in_channels", "size"),
    "core_features": ("core_features", "sizes"),
    "spatial_strides": ("spatial_strides", "sizes"),
    "spatial_kernel": ("spatial_kernel", "size"),
    "temporal_kernel": ("temporal_kernel", "size"),
    "expansion_ratio": ("expansion_ratio", "size"),
    "se_reduce_ratio": ("se_reduce_ratio", "size"),
    "cortex_features": ("cortex_features", "sizes"),
    "groups": ("groups", "size"),
    "softplus_beta": ("softplus_beta", "number"),
    "drop_rate": ("drop_rate", "number"),
    "drop_path_rate": ("drop_path_rate", "number"),
}


def load_published(path: str | os.PathLike) -> tuple[DwiseNeuro, Any]:
    """Reads a published `.pth` without PyTorch and without running its pickle.

    Half-precision weights become float32; float64 weights stay float64 only where JAX has 64 bits switched
    on.

    Args:
      path: a zip `.pth` holding {model_name, params, nn_state_dict}.

    Returns:
      (encoder, variables), the variables on the default device.

    Raises:
      NeuroreconError: the file is missing, damaged, hostile or not such a checkpoint, or its parts contradict
        each other; one line.
    """
    checkpoint = read_checkpoint(path)
    params, state = _member(checkpoint, "params", path), _member(checkpoint, "nn_state_dict", path)
    encoder = architecture_from_params(params, str(path))
    state = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
    _check_names(encoder, state, path)
    flat = {}
    for entry in published_layout(encoder):
        array = state[entry.name]
        if array.shape != entry.shape:
            raise NeuroreconError(
                f"{path}: {entry.name}: expected shape {entry.shape} as the params say, found {array.shape}"
            )
        flat[entry.path] = np.array(entry.load(_checked_values(array, entry, path)), order="C")
    return encoder, jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(flat))


def export_published(encoder: DwiseNeuro, variables: Any, path: str | os.PathLike) -> None:
    """Writes the arrays of the published state dict under their published names.

    Buffers included: running statistics, num_batches_tracked (int64), inv_freq. `load_published` then
    `export_published` gives back the same numbers, bit for bit.

    Args:
      encoder: an unfolded DwiseNeuro.
      variables: its variables.
      path: an `.npz`, which holds the arrays and nothing else; or a `.pth`, which holds model_name, params
        and nn_state_dict as the published code saves them, so that it and `load_published` can read it.

    Raises:
      NeuroreconError: another encoder, variables that don't fit it, or another kind of path.
    """
    if not isinstance(encoder, DwiseNeuro) or encoder.folded:
        raise NeuroreconError("encoder: expected an unfolded DwiseNeuro; other encoders have no published layout")
    if encoder.readout_kind != "published":
        raise NeuroreconError(
            f"encoder: expected readout_kind 'published', found {encoder.readout_kind!r}, of which the published code "
            "knows nothing; train with --config.dwiseneuro.readout_kind=published"
        )
    suffix = Path(path).suffix
    if suffix not in (".npz", ".pth"):
        raise NeuroreconError(f"{path}: expected a name that ends in .npz or .pth")
    flat = traverse_util.flatten_dict(variables)
    arrays = {}
    for entry in published_layout(encoder):
        if entry.path not in flat:
            raise NeuroreconError(f"variables: expected {'/'.join(entry.path)} as the encoder has, found none")
        array = np.asarray(flat[entry.path])
        array = entry.dump(array.astype(np.int64) if entry.path[-1] == "count" else array)
        if array.size != np.prod(entry.shape, dtype=int):
            raise NeuroreconError(f"variables: {'/'.join(entry.path)} has the wrong shape {array.shape}")
        arrays[entry.name] = np.ascontiguousarray(array).reshape(entry.shape)
    if suffix == ".pth":
        checkpoint = {"model_name": "MouseModel", "params": params_of(encoder), "nn_state_dict": arrays}
        write_checkpoint(path, checkpoint)
    else:
        with atomic_path(path) as temporary:
            np.savez(temporary, allow_pickle=False, **arrays)


def params_of(encoder: DwiseNeuro) -> dict[str, Any]:
    """The published `params` of an encoder, but those of its training; inverts `architecture_from_params`."""
    network = {published: getattr(encoder, field) for published, (field, _) in _NETWORK.items()}
    return {
        "nn_module": ("dwiseneuro", network),
        "frame_stack": {"size": encoder.window_frames, "step": encoder.frame_step, "position": "last"},
        "inputs_processor": (
            "stack_inputs",
            {"size": tuple(encoder.canvas[::-1]), "pad_fill_value": float(encoder.padding)},
        ),
        "responses_processor": ("identity", {}),
    }


def architecture_from_params(params: dict, source: str) -> DwiseNeuro:
    """The encoder that a checkpoint's `params` (argus_params) describe.

    Raises:
      NeuroreconError: something is missing, of the wrong kind, unknown or not supported; `source` names the
        file.
    """
    name, network = _named(params, "nn_module", source)
    if name != "dwiseneuro":
        raise NeuroreconError(f"{source}: params.nn_module: expected 'dwiseneuro', found {_shown(name)}")
    unknown = [key for key in network if key not in _NETWORK]
    if unknown:
        raise NeuroreconError(f"{source}: params.nn_module: unknown setting {_shown(unknown[0])}")
    fields = {
        field: _number(network, key, kind, f"{source}: params.nn_module") for key, (field, kind) in _NETWORK.items()
    }
    stack: Any = params.get("frame_stack")
    position = stack.get("position") if isinstance(stack, dict) else None
    if not isinstance(position, str) or position != "last":
        raise NeuroreconError(f"{source}: params.frame_stack: expected size, step and position 'last'")
    name, _ = _named(params, "responses_processor", source)
    if name != "identity":
        raise NeuroreconError(f"{source}: params.responses_processor: expected 'identity', found {_shown(name)}")
    where = f"{source}: params.inputs_processor"
    name, processor = _named(params, "inputs_processor", source)
    if name != "stack_inputs":
        raise NeuroreconError(f"{where}: expected 'stack_inputs', found {_shown(name)}")
    size = _number(processor, "size", "sizes", where)
    if len(size) != 2:
        raise NeuroreconError(f"{where}.size: expected (width, height), found {len(size)} numbers")
    encoder = DwiseNeuro(
        **fields,
        canvas=size[::-1],
        padding=_number(processor, "pad_fill_value", "number", where),
        window_frames=_number(stack, "size", "size", f"{source}: params.frame_stack"),
        frame_step=_number(stack, "step", "size", f"{source}: params.frame_stack"),
    )
    try:
        check_sizes(encoder)
    except NeuroreconError as error:
        raise NeuroreconError(f"{source}: params.nn_module: {error}") from None
    return encoder


def _member(checkpoint: Any, key: str, path: str | os.PathLike) -> dict:
    value = checkpoint.get(key) if isinstance(checkpoint, dict) else None
    if not isinstance(value, dict):
        raise NeuroreconError(
            f"{path}: expected an argus checkpoint with params and nn_state_dict, found no usable '{key}'"
        )
    return value


def _check_names(encoder: DwiseNeuro, state: dict[str, np.ndarray], path: str | os.PathLike) -> None:
    names = {entry.name for entry in published_layout(encoder)}
    for what, some in (("lacks", names - state.keys()), ("has the unknown", state.keys() - names)):
        if some:
            shown = ", ".join(_shown(name) for name in sorted(some, key=str)[:3])
            more = f" and {len(some) - 3} more" if len(some) > 3 else ""
            raise NeuroreconError(f"{path}: nn_state_dict {what} {shown}{more}; its params describe another network")


def _checked_values(array: np.ndarray, entry: Entry, path: str | os.PathLike) -> np.ndarray:
    """The array in the dtype that we compute with; refuses what can't be weights."""
    if entry.path[-1] == "count":
        if array.dtype.kind not in "iu" or not 0 <= int(array) < 2**31:
            raise NeuroreconError(f"{path}: {entry.name}: expected a count of batches, found {array.dtype}")
        return array.astype(np.int32)
    if array.dtype in (np.float16, ml_dtypes.bfloat16):
        array = array.astype(np.float32)
    if array.dtype not in (np.float32, np.float64):
        raise NeuroreconError(f"{path}: {entry.name}: expected floating-point numbers, found {array.dtype}")
    if not np.isfinite(array).all():
        raise NeuroreconError(f"{path}: {entry.name}: expected finite numbers, found NaN or infinity")
    if entry.path[-1] == "var" and (array < 0).any():
        raise NeuroreconError(f"{path}: {entry.name}: expected variances of at least 0, found {array.min()}")
    if entry.path[-1] == "inv_freq":
        published = inverse_frequencies(3 * 2 * len(array))
        if not np.allclose(array, published, rtol=FREQUENCY_TOLERANCE, atol=0):
            raise NeuroreconError(f"{path}: {entry.name}: expected 10000^(-2i/{2 * len(array)}), found other numbers")
    return array


def _named(params: dict, key: str, source: str) -> tuple[str, dict]:
    """A (name, settings) pair of argus params."""
    pair: Any = params.get(key)
    fits = isinstance(pair, tuple | list) and len(pair) == 2
    if not fits or not isinstance(pair[0], str) or not isinstance(pair[1], dict):
        raise NeuroreconError(f"{source}: params.{key}: expected (name, settings), found {_shown(pair)}")
    return pair[0], pair[1]


def _number(settings: dict, key: str, kind: str, where: str) -> Any:
    """A size (whole number above 0), sizes (several) or number out of a dict of settings."""
    if key not in settings:
        raise NeuroreconError(f"{where}: expected '{key}', found none")
    value = settings[key]
    if kind == "number" and type(value) in (int, float) and np.isfinite(value):
        return float(value)
    if kind == "size" and type(value) is int and 0 < value < 2**31:
        return value
    if (
        kind == "sizes"
        and isinstance(value, tuple | list)
        and 0 < len(value) <= 1024
        and all(type(v) is int and 0 < v < 2**31 for v in value)
    ):
        return tuple(value)
    expected = {
        "number": "a finite number",
        "size": "a whole number above 0",
        "sizes": "whole numbers above 0",
    }
    raise NeuroreconError(f"{where}.{key}: expected {expected[kind]}, found {_shown(value)}")


def _shown(value: Any) -> str:
    """A short form for messages; never walks a nested value, which a hostile file may have made endless."""
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    return repr(value[:60]) if isinstance(value, str) else type(value).__name__
