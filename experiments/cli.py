"""What the entry points share: flags, configs that name a wrong key, and errors in one line."""

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from neurorecon import runs
from neurorecon.errors import NeuroreconError

_PREFIX = "--config."


def run(job: Callable[[Any, str], None], description: str, *, config: str | None) -> None:
    """Runs `job(config, workdir)` from the command line.

    Args:
      job: the work, its config None where it needs none; NeuroreconError ends the program with its line and status 1.
      description: shown by --help.
      config: default config file, relative to the repository; None for a job that needs none.
    """
    sys.modules["__main__"].__doc__ = description
    holder = None
    if config is not None:
        default = str(Path(__file__).resolve().parents[1] / config)
        text = "Config file; --config.KEY=VALUE changes a key."
        # The default config is read, and overridden from sys.argv, as soon as the flag is defined.
        holder = _explained(sys.argv, lambda: config_flags.DEFINE_config_file("config", default, text))
    workdir = flags.DEFINE_string("workdir", None, "Folder for everything that is written.", required=True)

    def main(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)
        try:
            if len(argv) > 1:
                raise NeuroreconError(f"unknown argument {argv[1]!r}; see --help")
            given = None if holder is None else _config_in(holder)
            if given is not None:
                _divide_processor(given.cpu_devices)
                _keep_compiled(given.compilation_cache)
            job(given, workdir.value)
        except NeuroreconError as error:
            _fail(error)
        except KeyboardInterrupt:
            _fail("stopped; the same command goes on where it was")

    app.run(main, flags_parser=lambda argv: _explained(argv, lambda: flags.FLAGS(argv)))


def _divide_processor(devices: int) -> None:
    """Makes so many devices of the processor, 0 one for each core; before JAX looks for devices."""
    if devices < 0:
        raise NeuroreconError(f"--config.cpu_devices: expected 0 or more, found {devices}")
    if devices != 1:  # 1 is JAX's own choice, unless the environment says otherwise
        jax.config.update("jax_num_cpu_devices", devices or len(os.sched_getaffinity(0)))


def _keep_compiled(folder: str) -> None:
    """What JAX compiles is kept in the folder, and taken from there by later processes; nothing where it is empty."""
    if not folder:
        return
    path = Path(folder).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NeuroreconError(
            f"--config.compilation_cache: expected a folder that can be written, found {folder} ({error.strerror})"
        ) from None
    jax.config.update("jax_compilation_cache_dir", str(path))
    # However quick to compile, however small: together they take long too.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _config_in(holder: flags.FlagHolder) -> ml_collections.ConfigDict:
    if not isinstance(holder.value, ml_collections.ConfigDict):
        file = Path(config_flags.get_config_filename(flags.FLAGS["config"]))
        found = "something else" if file.is_file() else "no such file"
        raise NeuroreconError(f"--config {file}: expected a file with get_config() -> ConfigDict, found {found}")
    return checked(holder.value)


def _explained(argv: list[str], parse: Callable[[], Any]) -> Any:
    """`parse()`; whatever goes wrong in it is the fault of the command line or the config file, told in one line."""
    unknown = _unknown_key(argv)
    if unknown is not None:
        _fail(unknown)
    try:
        return parse()
    except flags.UnrecognizedFlagError as error:
        _fail(f"--{error.flagname}: no such flag; see --help")
    except flags.Error as error:
        _fail(error)
    except Exception as error:  # a config file is a program of the user's, and can fail in any way
        _fail(f"--config: can't be read ({type(error).__name__}: {error})")


def checked(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config over the defaults of `configs/base.py`.

    Raises:
      NeuroreconError: it is no config, or has a key that no config has.
    """
    from experiments.configs.base import get_config

    if not isinstance(config, ml_collections.ConfigDict):
        raise NeuroreconError("--config: expected a file with get_config() -> ConfigDict, which can be read")
    full = get_config()
    _update(full, config, "")
    return full


def claim(workdir: str | os.PathLike, config: ml_collections.ConfigDict, job: str, keys: Sequence[str]) -> Path:
    """`runs.claim`, where a key that is newer than the job counts as its default in `configs/base.py`."""
    from experiments.configs.base import get_config

    return runs.claim(workdir, config.to_dict(), job, tuple(keys), get_config().to_dict())


def _update(full: ml_collections.ConfigDict, changes: ml_collections.ConfigDict, prefix: str) -> None:
    for key, value in changes.items():
        if key not in full:
            raise NeuroreconError(f"--config.{prefix}{key}: {_nearest(key, [str(k) for k in full])}")
        if isinstance(full[key], ml_collections.ConfigDict):
            if not isinstance(value, ml_collections.ConfigDict):
                raise NeuroreconError(f"--config.{prefix}{key}: expected keys of its own, found {value!r}")
            _update(full[key], value, f"{prefix}{key}.")
        else:
            if isinstance(value, list) or (isinstance(value, tuple) and isinstance(full[key], str)):
                value = ",".join(map(str, value)) if isinstance(full[key], str) else tuple(value)
            try:
                full[key] = value
            except TypeError:
                raise NeuroreconError(
                    f"--config.{prefix}{key}: expected {type(full[key]).__name__}, found {value!r}"
                ) from None


def _unknown_key(argv: list[str]) -> str | None:
    """Which override names no key; None where the fault is elsewhere."""
    from experiments.configs.base import get_config

    for argument in argv:
        if not argument.startswith(_PREFIX):
            continue
        path = argument[len(_PREFIX) :].partition("=")[0].split(".")
        node = get_config()
        for part in path:
            if not isinstance(node, ml_collections.ConfigDict) or part not in node:
                keys = [str(k) for k in node] if isinstance(node, ml_collections.ConfigDict) else []
                return f"--config.{'.'.join(path)}: {_nearest(part, keys)}"
            node = node[part]
    return None


def _nearest(key: str, keys: list[str]) -> str:
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)
    return f"no such key; the nearest is {close[0]!r}" if close else "no such key"


def _fail(message: object) -> NoReturn:
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(1)


def listed(text: str) -> list[str]:
    """A comma-separated config value as a list."""
    return [part.strip() for part in str(text).split(",") if part.strip()]
