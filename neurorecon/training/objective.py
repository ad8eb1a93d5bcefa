"""What training minimises, the mixing of samples that keeps it from memorising, and the averaging of its weights."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from neurorecon.errors import NeuroreconError


def poisson_loss(predicted: jax.Array, target: jax.Array, weights: jax.Array) -> jax.Array:
    """Poisson loss p - y log(p + 1e-8), summed over neurons and frames, averaged over windows: ().

    Args:
      predicted, target: (window, time, neuron).
      weights: broadcast to the same shape; 0 leaves an element out.
    """
    values = (predicted - target * jnp.log(predicted + 1e-8)) * weights
    return values.sum((1, 2)).mean()


def cutmix_box(
    share: float,
    row: int,
    column: int,
    height: int,
    width: int,
    variant: Literal["plain", "published"] = "plain",
) -> tuple[int, int, int, int]:
    """The CutMix box, (first row, last row, first column, last column), ends excluded.

    Args:
      share: of the area, taken from the other sample.
      row, column: centre. Published: drawn from 0..width-1 and 0..height-1.
      height, width: of the frame.
      variant: "plain": rows along the height, columns along the width. "published": the published code takes the box's
        x range, which is cut from the width, along the height and its y range the other way about. Square frames know
        no difference; in others the rows may end beyond the frame, where slicing stops but `box_area` does not.
    """
    if variant not in ("plain", "published"):
        raise NeuroreconError(f"variant: expected 'plain' or 'published', found {variant!r}")
    if variant == "published":
        height, width = width, height
    cut_rows, cut_columns = int(height * share**0.5), int(width * share**0.5)
    rows = np.clip([row - cut_rows // 2, row + cut_rows // 2], 0, height)
    columns = np.clip([column - cut_columns // 2, column + cut_columns // 2], 0, width)
    return int(rows[0]), int(rows[1]), int(columns[0]), int(columns[1])


def box_area(box: tuple[int, int, int, int], height: int, width: int) -> float:
    """A box's area as a share of the frame's: the share of the other sample's responses in a mix."""
    return (box[1] - box[0]) * (box[3] - box[2]) / (height * width)


def mix_inputs(
    inputs: np.ndarray,
    other: np.ndarray,
    responses: np.ndarray,
    other_responses: np.ndarray,
    box: tuple[int, int, int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """The published CutMix of two samples of one animal: the box in all five channels and all frames from the other.

    Unlike in `cutmix`, behaviour is cut as the movie is, its planes within the box being the other's.

    Args:
      inputs, other: (..., height, width, channel), as `make_inputs` makes them.
      responses, other_responses: (..., neuron), mixed by the box's area.
      box: from `cutmix_box`.

    Raises:
      NeuroreconError: samples of unlike shapes.
    """
    if inputs.shape != other.shape or responses.shape != other_responses.shape or inputs.ndim < 3:
        raise NeuroreconError(
            "inputs, responses: expected two samples of one shape, (..., height, width, channel) and (..., neuron), "
            f"found {inputs.shape} and {other.shape}, {responses.shape} and {other_responses.shape}"
        )
    r0, r1, c0, c1 = box
    mixed = inputs.copy()
    mixed[..., r0:r1, c0:c1, :] = other[..., r0:r1, c0:c1, :]
    area = box_area(box, *inputs.shape[-3:-1])
    return mixed, ((1 - area) * responses + area * other_responses).astype(responses.dtype)


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
    r0, r1, c0, c1 = box = cutmix_box(share, row, column, height, width)
    area = box_area(box, height, width)
    mixed = stimulus.copy()
    mixed[:, :, r0:r1, c0:c1] = np.roll(stimulus, 1, axis=0)[:, :, r0:r1, c0:c1]

    def mix(values: np.ndarray) -> np.ndarray:
        return ((1 - area) * values + area * np.roll(values, 1, axis=0)).astype(values.dtype)

    return mixed, mix(responses), mix(behaviour)


def published_boxes(
    responses: np.ndarray, rng: np.random.Generator, probability: float, canvas: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Published CutMix of a batch: a box for each window, which takes the next window's inputs, see `cut_inputs`.

    Args:
      responses: (window, time, neuron); below 0 they count as 0, before they are mixed.
      rng: draws for each window whether it is mixed, and its box.
      probability: of mixing a window.
      canvas: (height, width) of the encoder's inputs.

    Returns:
      Boxes (window, 4) int32 as from `cutmix_box`, of no area where a window stays; and the responses mixed by area.
    """
    height, width = canvas
    number = len(responses)
    draws, shares = rng.random(number), rng.beta(1.0, 1.0, number)
    rows, columns = rng.integers(width, size=number), rng.integers(height, size=number)
    boxes = np.zeros((number, 4), np.int32)
    responses = np.maximum(responses, 0)
    if number < 2:
        return boxes, responses
    mixed, other = responses.copy(), np.roll(responses, 1, axis=0)
    for k in np.flatnonzero(draws < probability):
        box = cutmix_box(shares[k], int(rows[k]), int(columns[k]), height, width, "published")
        area = box_area(box, height, width)
        boxes[k] = box
        mixed[k] = (1 - area) * responses[k] + area * other[k]
    return boxes, mixed


def cut_inputs(inputs: jax.Array, boxes: jax.Array) -> jax.Array:
    """Puts the next window's inputs into each window's box, in all channels and frames, as `mix_inputs` does for two.

    Args:
      inputs: (window, time, height, width, channel).
      boxes: (window, 4), first row, last row, first column, last column, ends excluded.
    """
    r0, r1, c0, c1 = (boxes[:, k, None, None] for k in range(4))
    rows, columns = jnp.arange(inputs.shape[2])[:, None], jnp.arange(inputs.shape[3])
    inside = (rows >= r0) & (rows < r1) & (columns >= c0) & (columns < c1)
    return jnp.where(inside[:, None, :, :, None], jnp.roll(inputs, 1, axis=0), inputs)


def mixup(
    stimulus: np.ndarray, responses: np.ndarray, behaviour: np.ndarray, rng: np.random.Generator, probability: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mixup (Zhang et al. 2018) within a batch: each window is blended with the next one, and so are its responses.

    Arguments as `cutmix`; the share of the other comes from Beta(0.2, 0.2), one for the batch. Whole grey values stay
    whole.
    """
    draw, share = rng.random(), rng.beta(0.2, 0.2)
    if draw >= probability or len(stimulus) < 2:
        return stimulus, responses, behaviour

    def mix(values: np.ndarray) -> np.ndarray:
        mixed = (1 - share) * values + share * np.roll(values, 1, axis=0)
        return (np.rint(mixed) if values.dtype.kind in "iu" else mixed).astype(values.dtype)

    return mix(stimulus), mix(responses), mix(behaviour)


def moving_average(average: Any, values: Any, decay: float | jax.Array) -> Any:
    """decay * average + (1 - decay) * values, leaf by leaf, each in its own dtype: what is saved of a training.

    As published (decay 0.999, from the initial weights on, no bias correction, over weights, batch statistics and all
    other buffers): whole numbers such as batch counts are averaged in float32 and cut to whole numbers, and so stay
    behind.

    Args:
      average, values: trees of arrays of like shapes.
      decay: 0..1.
    """

    def one(old: jax.Array, new: jax.Array) -> jax.Array:
        old, new = jnp.asarray(old), jnp.asarray(new)
        if jnp.issubdtype(old.dtype, jnp.floating):
            return (decay * old + (1 - decay) * new).astype(old.dtype)
        return (decay * old.astype(jnp.float32) + (1 - decay) * new.astype(jnp.float32)).astype(old.dtype)

    return jax.tree.map(one, average, values)
