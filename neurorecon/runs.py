"""A work folder: what was asked for, how far it got, and with which versions."""

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from neurorecon import __version__
from neurorecon.errors import NeuroreconError
from neurorecon.files import read_json, save_json, save_npz

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "tensorflow-datasets")


def versions() -> dict[str, str]:
    """Versions of what makes the numbers, and the device."""
    found = {"neurorecon": __version__, "python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    device = jax.devices()[0]
    return found | {"device": f"{device.platform} ({device.device_kind}) x {jax.device_count()}"}


def claim(
    workdir: str | os.PathLike,
    config: Mapping[str, Any],
    job: str,
    keys: tuple[str, ...],
    defaults: Mapping[str, Any] | None = None,
) -> Path:
    """Makes the work folder, or goes on in one where `job` was begun with the same values of `keys`.

    `config.json` holds the latest config, `jobs.json` what each job was begun with.

    Args:
      workdir, config, job, keys: see above.
      defaults: what a key is taken to have been that did not exist yet when the job was begun; must be what the job
        did then. Without them such a key is not compared.

    Raises:
      NeuroreconError: the job was begun here with another value of one of `keys`, or the folder can't be written.
    """
    folder = Path(workdir)
    if folder.exists() and not folder.is_dir():
        raise NeuroreconError(f"--workdir {folder}: expected a folder, found a file")
    path = folder / "jobs.json"
    jobs = read_json(path) if path.exists() else {}
    if not isinstance(jobs, dict) or not all(isinstance(begun, dict) for begun in jobs.values()):
        raise NeuroreconError(f"{path}: expected what each job was begun with, found something else; remove it")
    asked = json.loads(json.dumps({key: config.get(key) for key in keys}))
    known = json.loads(json.dumps({key: (defaults or {}).get(key) for key in keys if key in (defaults or {})}))
    for key, old in _filled(jobs.get(job, asked), known).items():
        new = asked.get(key)
        if old != new:
            raise NeuroreconError(
                f"{path}: {job} was begun with {key} = {_short(old, new)}, now {_short(new, old)}; "
                "use another --workdir, or remove this one to start again"
            )
    save_json(folder / "config.json", config)
    save_json(path, {**jobs, job: asked})
    return folder


def _filled(begun: Any, defaults: Any) -> Any:
    """`begun` with the keys that it lacks."""
    if not isinstance(begun, dict) or not isinstance(defaults, dict):
        return begun
    return defaults | {key: _filled(value, defaults.get(key)) for key, value in begun.items()}


def _short(value: Any, other: Any) -> str:
    """The part of a nested value that differs from the other one."""
    if isinstance(value, dict) and isinstance(other, dict):
        differ = {k: value.get(k) for k in {**value, **other} if value.get(k) != other.get(k)}
        return json.dumps(differ)
    return json.dumps(value)


class MetricsLog:
    """Metrics as JSON lines, one for each record; a torn last line, from a kill, is dropped when it is opened."""

    def __init__(self, path: str | os.PathLike, *, last_step: int | None = None) -> None:
        """Opens the log to append; records of steps after `last_step` (of a run cut off later) are dropped."""
        self._path = Path(path)
        kept = [r for r in read_metrics(path) if last_step is None or r.get("step", 0) <= last_step]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_name(self._path.name + ".new")
            temporary.write_text("".join(json.dumps(r) + "\n" for r in kept))
            os.replace(temporary, self._path)
        except OSError as error:
            raise NeuroreconError(f"{self._path}: could not be written ({error.strerror})") from error

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record with the time of writing."""
        line = json.dumps({**record, "time": round(time.time(), 2)}) + "\n"
        try:
            with open(self._path, "a") as handle:
                handle.write(line)
        except OSError as error:
            raise NeuroreconError(f"{self._path}: could not be written ({error.strerror})") from error


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a metrics log; [] where there is none. Lines torn by a kill are left out.

    Raises:
      NeuroreconError: it is there and can't be read.
    """
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise NeuroreconError(f"{path}: could not be read ({error.strerror})") from error
    return list(_parsed(lines))


def _parsed(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            yield record


class Checkpoints:
    """Orbax checkpoints of a training state; the newest two are kept, so that a kill while saving loses nothing."""

    def __init__(self, folder: str | os.PathLike) -> None:
        self._folder = Path(folder).resolve()
        try:
            self._manager = ocp.CheckpointManager(
                self._folder, options=ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
            )
        except OSError as error:
            raise NeuroreconError(f"{folder}: could not be written ({error.strerror})") from error

    def save(self, step: int, state: Any) -> None:
        """Saves and waits: the caller is about to give the state's buffers away.

        Raises:
          NeuroreconError: the disk is full or read-only.
        """
        try:
            self._manager.save(step, args=ocp.args.StandardSave(state), force=True)
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise NeuroreconError(f"{self._folder}: checkpoint {step} could not be written ({_line(error)})") from error

    def restore(self, like: Any) -> Any | None:
        """The newest state, shaped as `like`; None where there is none yet.

        Raises:
          NeuroreconError: the checkpoint is damaged or of another shape.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(like))
        except Exception as error:  # Orbax raises many kinds for one damaged file
            raise NeuroreconError(
                f"{self._folder / str(step)}: the checkpoint is damaged ({_line(error)}); "
                "remove that folder to go on from the one before it"
            ) from error


def _line(error: BaseException) -> str:
    """An error's first line, short enough to stand in ours."""
    text = str(error).strip().splitlines()
    return text[0][:160] if text else type(error).__name__


def save_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as one `.npz`, atomically."""
    save_npz(path, **arrays)


def load_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """What `save_arrays` wrote.

    Raises:
      NeuroreconError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except Exception as error:  # zip, zlib and header errors all mean the same here
        raise NeuroreconError(f"{path}: damaged ({_line(error)}); remove it and run the same command again") from error
