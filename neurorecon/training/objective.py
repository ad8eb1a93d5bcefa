"""What training minimises, and the mixing of samples that keeps it from memorising."""

import jax
import jax.numpy as jnp
import numpy as np


def poisson_loss(predicted: jax.Array, target: jax.Array, weights: jax.Array) -> jax.Array:
    """Poisson loss p - y log(p + 1e-8), summed over neurons and frames, averaged over windows: ().

    Args:
      predicted, target: (window, time, neuron).
      weights: broadcast to the same shape; 0 leaves an element out.
    """
    values = (predicted - target * jnp.log(predicted + 1e-8)) * weights
    return values.sum((1, 2)).mean()


def cutmix_box(share: float, row: int, column: int, height: int, width: int) -> tuple[int, int, int, int]:
    """The published CutMix box, (first row, last row, first column, last column), ends excluded.

    The published code takes the box's x range along the height and its y range along the width, and cuts their lengths
    from the other axis; with square frames that is no difference, so the plain reading is used here.

    Args:
      share: of the area, taken from the other sample.
      row, column: centre.
      height, width: of the frame.
    """
    cut_rows, cut_columns = int(height * share**0.5), int(width * share**0.5)
    rows = np.clip([row - cut_rows // 2, row + cut_rows // 2], 0, height)
    columns = np.clip([column - cut_columns // 2, column + cut_columns // 2], 0, width)
    return int(rows[0]), int(rows[1]), int(columns[0]), int(columns[1])


def cutmix(
    stimulus: np.ndarray, responses: np.ndarray, behaviour: np.ndarray, rng: np.random.Generator, probability: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CutMix (Yun et al. 2019) within a batch: a box of each movie comes from the next window of the batch.

    Responses and behaviour mix by the box's area. Mixing happens to the whole batch with `probability`.

    Args:
      stimulus: (window, time, height, width).
      responses: (window, time, neuron).
      behaviour: (window, time, 4).
      rng: draws the box, one for the batch.
      probability: of mixing at all.
    """
    draw, share = rng.random(), rng.beta(1.0, 1.0)
    height, width = stimulus.shape[2:]
    row, column = int(rng.integers(height)), int(rng.integers(width))
    if draw >= probability or len(stimulus) < 2:
        return stimulus, responses, behaviour
    r0, r1, c0, c1 = cutmix_box(share, row, column, height, width)
    area = (r1 - r0) * (c1 - c0) / (height * width)
    mixed = stimulus.copy()
    mixed[:, :, r0:r1, c0:c1] = np.roll(stimulus, 1, axis=0)[:, :, r0:r1, c0:c1]

    def mix(values: np.ndarray) -> np.ndarray:
        return ((1 - area) * values + area * np.roll(values, 1, axis=0)).astype(values.dtype)

    return mixed, mix(responses), mix(behaviour)
