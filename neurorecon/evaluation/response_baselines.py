"""What can be said of responses without looking at the movie: their mean course, and behaviour alone."""

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import linalg

from neurorecon.errors import NeuroreconError

# Behaviour of so many frames ago; calcium is slow, and so is the effect of running.
LAGS = (0, 4, 8, 15, 30)
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT = 5  # every so manieth trial chooses the penalty


class MeanResponse:
    """Mean response of each neuron at each frame of a trial, over the training trials."""

    def __init__(self, responses: Iterable[np.ndarray]) -> None:
        """Adds up (time, neuron) arrays; trials may differ in length.

        Raises:
          NeuroreconError: there is none.
        """
        total, count = np.zeros((0, 0)), np.zeros(0)
        for r in responses:
            if len(r) > len(total):
                longer = np.zeros((len(r), r.shape[1]))
                longer[: len(total)] = total if len(total) else 0.0
                total, count = longer, np.concatenate([count, np.zeros(len(r) - len(count))])
            total[: len(r)] += r
            count[: len(r)] += 1
        if not len(total):
            raise NeuroreconError("responses: expected at least one training trial, found none")
        self.mean = total.sum(0) / count.sum()
        self._course = total / count[:, None]

    def predict(self, num_frames: int) -> np.ndarray:
        """(num_frames, neuron); the mean over all frames where no training trial is so long."""
        late = np.broadcast_to(self.mean, (max(0, num_frames - len(self._course)), len(self.mean)))
        return np.concatenate([self._course[:num_frames], late])


class BehaviourOnly:
    """Ridge regression of each neuron's responses on the trial's behaviour, its square and its past (`LAGS`).

    Every fifth training trial chooses the penalty, one for all neurons; the weights are then fitted to all.
    """

    def __init__(self, behaviour: Sequence[np.ndarray], responses: Iterable[np.ndarray]) -> None:
        """Fits.

        Args:
          behaviour: (time, channel) of each training trial.
          responses: (time, neuron) of each; read once, in the same order.

        Raises:
          NeuroreconError: no trial, or lengths that differ.
        """
        if not len(behaviour):
            raise NeuroreconError("behaviour: expected at least one training trial, found none")
        every = np.concatenate(list(behaviour)).astype(np.float64)
        self._centre, self._scale = every.mean(0), np.where(every.std(0) > 1e-6, every.std(0), np.inf)
        sums: list[list[np.ndarray]] = []  # of the trials that fit, and of those that choose
        for number, (b, r) in enumerate(zip(behaviour, responses, strict=True)):
            if len(b) != len(r):
                raise NeuroreconError(f"behaviour[{number}]: expected {len(r)} frames, found {len(b)}")
            x, y = self._features(b), np.asarray(r, np.float64)
            part = [x.T @ x, x.T @ y, (y * y).sum(0)]
            where = 1 if number % HELD_OUT == HELD_OUT - 1 else 0
            while len(sums) <= where:
                sums.append([np.zeros_like(s) for s in part])
            sums[where] = [a + b for a, b in zip(sums[where], part, strict=True)]
        self.penalty = _chosen(*sums) if len(sums) == 2 else PENALTIES[2]
        xx, xy = (sum(s[k] for s in sums) for k in (0, 1))
        self._weights = _solved(np.asarray(xx), np.asarray(xy), self.penalty)

    def predict(self, behaviour: np.ndarray) -> np.ndarray:
        """(time, neuron) from (time, channel)."""
        return self._features(behaviour) @ self._weights

    def _features(self, behaviour: np.ndarray) -> np.ndarray:
        x = (np.asarray(behaviour, np.float64) - self._centre) / self._scale
        x = np.concatenate([x, x * x], axis=1)
        # Before the trial, behaviour was as at its first frame.
        past = [x[np.maximum(np.arange(len(x)) - lag, 0)] for lag in LAGS]
        return np.concatenate([np.ones((len(x), 1)), *past], axis=1)


def _solved(xx: np.ndarray, xy: np.ndarray, penalty: float) -> np.ndarray:
    frames = xx[0, 0]  # the constant term, which is not penalised
    ridge = np.full(len(xx), penalty * frames)
    ridge[0] = 0.0
    return linalg.solve(xx + np.diag(ridge), xy, assume_a="pos")


def _chosen(fit: list[np.ndarray], held_out: list[np.ndarray]) -> float:
    """The penalty with the least squared error on the held-out trials, each neuron's relative to its power."""
    xx, xy, yy = held_out
    errors = []
    for penalty in PENALTIES:
        w = _solved(fit[0], fit[1], penalty)
        error = yy - 2 * (w * xy).sum(0) + (w * (xx @ w)).sum(0)
        errors.append((error / np.maximum(yy, 1e-12)).mean())
    return PENALTIES[int(np.argmin(errors))]
