"""An encoder on disk: a folder with `architecture.json` and, beside it, the Orbax tree `variables/`."""

import dataclasses
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from neurorecon.encoders.dwiseneuro import DwiseNeuro
from neurorecon.errors import NeuroreconError
from neurorecon.files import atomic_path, read_json, save_json

FORMAT = 1
_ARCHITECTURES: dict[str, type[nn.Module]] = {"dwiseneuro": DwiseNeuro}


def register_encoder(name: str, encoder_class: type[nn.Module]) -> None:
    """Makes an encoder class known to `save_encoder` and `load_encoder` under `name`.

    Raises:
      NeuroreconError: the name belongs to another class.
    """
    if _ARCHITECTURES.setdefault(name, encoder_class) is not encoder_class:
        raise NeuroreconError(f"encoder name '{name}': already taken by {_ARCHITECTURES[name].__name__}")


def save_encoder(folder: str | os.PathLike, encoder: nn.Module, variables: Any) -> None:
    """Writes an encoder and its variables; an encoder already in `folder` is replaced, and nothing else is.

    A reader never sees half an encoder: it is written beside `folder` and renamed.

    Raises:
      NeuroreconError: the encoder's class is not registered, or the folder holds something else or can't be
        written.
    """
    folder = Path(folder)
    arrays = {
        "/".join(path): np.asarray(value)
        for path, value in traverse_util.flatten_dict(nn.meta.unbox(variables)).items()
    }
    architecture = {
        "format": FORMAT,
        **architecture_to_json(encoder),
        "variables": {
            name: {"shape": list(array.shape), "dtype": array.dtype.name, "crc32": _checksum(array)}
            for name, array in arrays.items()
        },
    }
    replaced = folder.exists() and any(folder.iterdir())
    if replaced and not (folder / "architecture.json").is_file():
        raise NeuroreconError(f"{folder}: expected an encoder's folder or a new one, found other files; choose another")
    try:
        shutil.rmtree(folder.with_name(folder.name + ".new"), ignore_errors=True)  # left by a kill before the swap
        with atomic_path(folder.with_name(folder.name + ".new") if replaced else folder, directory=True) as temporary:
            _write(temporary / "variables", traverse_util.unflatten_dict(arrays, sep="/"))
            save_json(temporary / "architecture.json", architecture)
        if replaced:
            shutil.rmtree(folder)
            os.replace(folder.with_name(folder.name + ".new"), folder)
    except OSError as error:
        raise NeuroreconError(f"{folder}: could not be written ({error.strerror or error})") from error


def load_encoder(folder: str | os.PathLike) -> tuple[nn.Module, Any]:
    """Reads what `save_encoder` wrote; the variables are on the default device.

    Raises:
      NeuroreconError: the folder is missing, incomplete, damaged or of an unknown architecture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NeuroreconError(f"{folder}: expected an encoder's folder (architecture.json and variables/), found none")
    path = folder / "architecture.json"
    architecture = read_json(path)
    if not isinstance(architecture, dict) or architecture.get("format") != FORMAT:
        raise NeuroreconError(f"{path}: expected an encoder's architecture of format {FORMAT}, found something else")
    encoder = architecture_from_json(architecture, str(path))
    try:
        expected = {
            name: (tuple(entry["shape"]), np.dtype(jnp.dtype(entry["dtype"])), entry["crc32"])
            for name, entry in architecture["variables"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise NeuroreconError(f"{path}: expected shape, dtype and crc32 of each variable ({error!r})") from error
    arrays = _read(folder / "variables", expected)
    for name, (shape, dtype, checksum) in expected.items():
        array = arrays[name]
        if array.shape != shape or array.dtype != dtype or _checksum(array) != checksum:
            raise NeuroreconError(
                f"{folder}: the variable {name} is damaged, it differs from what was saved; copy it again"
            )
    return encoder, jax.device_put(traverse_util.unflatten_dict(arrays, sep="/"))


def architecture_to_json(encoder: nn.Module) -> dict[str, Any]:
    """{"encoder": registered name, "fields": {field: value}} of an encoder.

    Raises:
      NeuroreconError: the class is not registered.
    """
    names = [name for name, known in _ARCHITECTURES.items() if known is type(encoder)]
    if not names:
        raise NeuroreconError(
            f"encoder: expected one of {', '.join(sorted(_ARCHITECTURES))}, found {type(encoder).__name__}; "
            "register_encoder makes a new class known"
        )
    return {"encoder": names[0], "fields": {f: getattr(encoder, f) for f in _fields(type(encoder))}}


def architecture_from_json(architecture: dict[str, Any], source: str) -> nn.Module:
    """The inverse of `architecture_to_json`; `source` names the file in error messages.

    Raises:
      NeuroreconError: unknown encoder or field.
    """
    name, fields = architecture.get("encoder"), architecture.get("fields")
    if name not in _ARCHITECTURES or not isinstance(fields, dict):
        known = ", ".join(sorted(_ARCHITECTURES))
        raise NeuroreconError(f"{source}: expected an encoder among {known} and its fields, found {name!r}")
    encoder_class = _ARCHITECTURES[name]
    unknown = sorted(set(fields) - set(_fields(encoder_class)))
    if unknown:
        raise NeuroreconError(f"{source}: the encoder '{name}' has no field '{unknown[0]}'")
    try:
        encoder = encoder_class(**{key: _frozen(value) for key, value in fields.items()})
        hash(encoder)
    except TypeError as error:
        raise NeuroreconError(f"{source}: the fields don't make an encoder '{name}' ({error})") from error
    return encoder


def _fields(encoder_class: type[nn.Module]) -> list[str]:
    return [f.name for f in dataclasses.fields(encoder_class) if f.init and f.name not in ("parent", "name")]


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data) if array.size else 0


def _write(folder: Path, tree: Any) -> None:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(folder.absolute(), args=ocp.args.PyTreeSave(tree))


def _read(folder: Path, expected: dict[str, tuple]) -> dict[str, np.ndarray]:
    """Reads the Orbax tree as NumPy arrays, whatever devices wrote it."""
    if not folder.is_dir():
        raise NeuroreconError(f"{folder}: expected the encoder's Orbax variables, found no such folder")
    like = {name: np.empty(shape, dtype) for name, (shape, dtype, _) in expected.items()}
    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in like}
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(
                folder.absolute(),
                args=ocp.args.PyTreeRestore(
                    item=traverse_util.unflatten_dict(like, sep="/"),
                    restore_args=traverse_util.unflatten_dict(as_numpy, sep="/"),
                ),
            )
    except Exception as error:  # Orbax raises whatever its storage layers do; the user needs one line.
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise NeuroreconError(f"{folder}: the encoder's variables can't be read ({first_line})") from error
    return {"/".join(path): np.asarray(v) for path, v in traverse_util.flatten_dict(restored).items()}
