"""A small recording for the tests, and what they ask of an error."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from neurorecon.recordings import Trial

NEURONS, HEIGHT, WIDTH, FRAMES = 5, 6, 8, 40


def make_trials(num_trials: int = 4, **changes) -> Iterator[Trial]:
    """Trials 0.. of integer grey values; the last is oracle; trial 1 has five frames less."""
    for number in range(num_trials):
        rng = np.random.default_rng(number)
        frames = FRAMES - 5 * (number == 1)
        trial = Trial(
            id=str(number),
            animal="mouse",
            tier="oracle" if number == num_trials - 1 else "train",
            stimulus=rng.integers(0, 256, (frames, HEIGHT, WIDTH)).astype(np.float32),
            responses=rng.gamma(1.0, 2.0, (frames, NEURONS)).astype(np.float32),
            behaviour=rng.normal(size=(frames, 4)).astype(np.float32),
        )
        yield dataclasses.replace(trial, **changes)


def one_line(error: pytest.ExceptionInfo, *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, f"{word!r} not in {message!r}"
