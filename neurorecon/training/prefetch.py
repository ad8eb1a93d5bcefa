"""The batches of the next steps, drawn by a background thread while the device works on the present one."""

import collections
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

Batch = TypeVar("Batch")
DEPTH = 2  # one batch is ready and one is being drawn: more only takes memory


class Prefetch(Generic[Batch]):
    """Iterates over (step, `draw(step)`) in the order of the steps; use it as a context manager.

    `draw` runs in one background thread, for one step after another: what comes out is what the caller would have
    drawn, so that prefetching changes no result. At most `depth` batches are there at a time, beside the caller's.

    Attributes:
      waited: seconds that the caller has waited for batches so far.
    """

    def __init__(self, draw: Callable[[int], Batch], steps: Iterable[int], *, depth: int = DEPTH) -> None:
        """Starts drawing.

        Args:
          draw: a function of the step alone; what it raises is raised where the batch is asked for.
          steps: whose batches are asked for.
          depth: of the queue, at least 1.
        """
        if depth < 1:
            raise ValueError(f"depth: expected at least 1, found {depth}")
        self.waited = 0.0
        self._draw, self._steps = draw, iter(steps)
        self._ready: collections.deque[tuple[int, Batch]] = collections.deque()
        self._error: BaseException | None = None
        self._drawn = threading.Semaphore(0)  # batches that are ready, and once more at the end
        self._room = threading.Semaphore(depth)
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        return self

    def __next__(self) -> tuple[int, Batch]:
        begun = time.perf_counter()
        self._drawn.acquire()
        self.waited += time.perf_counter() - begun
        if not self._ready:
            self._drawn.release()  # the end stays the end
            if self._error is not None:
                raise self._error
            raise StopIteration
        step_and_batch = self._ready.popleft()
        self._room.release()
        return step_and_batch

    def close(self) -> None:
        """Ends the thread, after the batch that it is drawing, and forgets what was not asked for."""
        self._closed = True
        self._room.release()
        self._thread.join()
        self._ready.clear()

    def _work(self) -> None:
        try:
            for step in self._steps:
                self._room.acquire()
                if self._closed:
                    break
                self._ready.append((step, self._draw(step)))
                self._drawn.release()
        except BaseException as error:  # the caller's, wherever it comes from
            self._error = error
        finally:
            self._drawn.release()
