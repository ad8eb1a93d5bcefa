"""One process of a job array: its share of the movies of a work folder that all of them write to."""

import contextlib
import fcntl
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_collections

from experiments.descents import Descent
from neurorecon.errors import NeuroreconError

FOR_ALL = ("first", "validation")  # kinds of descents that tell how the others are made


class Job(NamedTuple):
    """The `number`-th, from 1, of `total` jobs."""

    number: int
    total: int

    @property
    def name(self) -> str:
        """For files and folders of its own."""
        return f"{self.number}-of-{self.total}"

    def share(self, descents: Sequence[Descent]) -> list[Descent]:
        """Every `total`-th movie; of the validation clips, which tell how all others are made, each.

        It depends on the clips and controls that are asked for, not on which are there: jobs that start at different
        times share the same movies.
        """
        others = [d for d in descents if d.kind not in FOR_ALL]
        return [d for d in descents if d.kind in FOR_ALL] + others[self.number - 1 :: self.total]


def job_of(config: ml_collections.ConfigDict) -> Job | None:
    """Which job `config.job` names; None where it is empty.

    Raises:
      NeuroreconError: no such job.
    """
    if not config.job:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", config.job)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise NeuroreconError(
            f"--config.job: expected K/N, the K-th of N jobs counted from 1, such as 2/8, found {config.job!r}"
        )
    return Job(int(found[1]), int(found[2]))


def told(descents: Sequence[Descent]) -> str:
    """How far all jobs together are, and what comes next."""
    movies = [d for d in descents if d.kind not in FOR_ALL]
    there = sum(d.path.is_file() for d in movies)
    rest = "" if there == len(movies) else "when the other jobs are done, "
    return (
        f"{there} of {len(movies)} movies are there; {rest}the same command without --config.job scores them and "
        "makes the report"
    )


def made_once(config: ml_collections.ConfigDict, folder: Path, animals: Sequence[str]) -> list[Path]:
    """Files of a preparation that one process makes for all: masks, and decoders that are trained.

    The rest of a preparation each works out from the same numbers.

    Args:
      config: of the run.
      folder: of the run.
      animals: whose masks are kept.
    """
    files = [folder / "masks" / f"{name}.npz" for name in animals]
    if config.prior.mean == "convolutional_decoder":
        files += [folder / "controls" / "convolutional_decoder" / f"{name}.npz" for name in animals]
    return files


@contextlib.contextmanager
def first_alone(config: ml_collections.ConfigDict, folder: Path, animals: Sequence[str]) -> Iterator[None]:
    """Of jobs that begin together one is inside, and makes what is kept for all; the others wait until that is there.

    Args:
      config, folder, animals: see `made_once`.

    Raises:
      NeuroreconError: the file system has no locks.
    """
    needed = made_once(config, folder, animals)
    if all(path.is_file() for path in needed):
        yield
        return
    path = folder / "masks" / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:  # released when the process ends, however it ends
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("waits for the job that prepares for all")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if all(path.is_file() for path in needed):
                fcntl.flock(lock, fcntl.LOCK_UN)
        except OSError as error:
            raise NeuroreconError(
                f"{path}: could not be locked ({error.strerror}); put --workdir on a file system with locks, or make "
                "the first clip without --config.job (--config.max_clips=1)"
            ) from error
        yield
