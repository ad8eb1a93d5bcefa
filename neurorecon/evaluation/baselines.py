"""Controls that need no training: what a score is worth when responses say nothing."""

from collections.abc import Sequence

import numpy as np

from neurorecon.errors import NeuroreconError


def grey_movie(shape: Sequence[int], level: float = 127.5) -> np.ndarray:
    """A movie (time, height, width) float32 of one grey value, which is where reconstruction starts."""
    return np.full(tuple(shape), level, np.float32)


def mean_frame_movie(movies: Sequence[np.ndarray], num_frames: int) -> np.ndarray:
    """The mean frame of the training movies, repeated: (num_frames, height, width) float32.

    What is known of a movie before a single spike; its correlation is above 0 wherever movies share their
    layout.
    """
    if len(movies) == 0 or len({np.shape(m)[1:] for m in movies}) != 1:
        raise NeuroreconError("movies: expected at least one, all of one frame size")
    total = sum(np.sum(m, axis=0, dtype=np.float64) for m in movies)
    frame = np.asarray(total / sum(len(m) for m in movies), np.float32)
    return np.repeat(frame[None], num_frames, axis=0)


def shuffled_neurons(num_neurons: int, *, seed: int) -> np.ndarray:
    """An order of the neurons in which none keeps its place, (neuron,), for responses[:, order].

    For the same recipe as the reconstruction. The statistics of the population stay, what each neuron
    stands for is gone. A single cycle (Sattolo), so that no neuron is left where it was.

    Raises:
      NeuroreconError: fewer than two neurons.
    """
    if num_neurons < 2:
        raise NeuroreconError(f"num_neurons: expected at least 2 to shuffle, found {num_neurons}")
    rng = np.random.default_rng(seed)
    order = np.arange(num_neurons)
    for i in range(num_neurons - 1, 0, -1):
        j = rng.integers(i)
        order[i], order[j] = order[j], order[i]
    return order
