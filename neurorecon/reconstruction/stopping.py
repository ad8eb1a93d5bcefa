"""When to stop a descent: once neurons that it does not descend to are predicted no better.

What a movie gains from the noise of the neurons in use tells nothing of the others; what it gains from the stimulus
does. The measure is a correlation, not the response loss: that grows with the movie's contrast already while its
pattern still gets better. No clip with a known movie is needed, and each clip, with each movie of its own, stops by
itself.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from neurorecon.errors import NeuroreconError

PRODUCTS = ("held_out_both", "held_out_predicted", "held_out_recorded")  # sums over frames and neurons


@dataclasses.dataclass(frozen=True)
class HeldOutNeurons:
    """Stops where the prediction of neurons left out of the descent has not become better for a while.

    The movie is that of the update at which the correlation of their predicted and recorded responses, averaged over
    the last ones, was greatest.

    Attributes:
      share: of the neurons in use, between 0 and 0.5, evenly over their order.
      patience: updates to wait for a greater correlation.
      decay: of the average over updates, whose windows differ; 0: none.
    """

    share: float = 0.1
    patience: int = 100
    decay: float = 0.8

    def __post_init__(self) -> None:
        if not (0 < self.share <= 0.5 and self.patience >= 1 and 0 <= self.decay < 1):
            raise NeuroreconError(
                "held-out neurons: expected a share above 0 and at most 0.5, a patience of 1 or more and a decay of 0 "
                f"or more and below 1, found {self.share}, {self.patience} and {self.decay}"
            )


class Watch(NamedTuple):
    """What the rule has seen of one movie; empty where there is no rule.

    Attributes:
      seen: () int, updates made.
      average: () of the correlation, weighted (1 - decay) decay^k.
      greatest: () of the averages, corrected for their beginning.
      waited: () int, updates since.
      latent: (time, height, width), that it belongs to.
    """

    seen: jax.Array
    average: jax.Array
    greatest: jax.Array
    waited: jax.Array
    latent: jax.Array


def begun(rule: HeldOutNeurons | None, latent: jax.Array) -> Watch | tuple[()]:
    """Before the first update."""
    if rule is None:
        return ()
    count = jnp.zeros((), jnp.int32)
    return Watch(count, jnp.zeros((), latent.dtype), jnp.asarray(-jnp.inf, latent.dtype), count, latent)


def looked(
    rule: HeldOutNeurons | None, watch: Watch | tuple[()], trace: dict[str, jax.Array], latent: jax.Array
) -> Watch | tuple[()]:
    """After one more update.

    Args:
      rule: of the recipe.
      watch: so far.
      trace: with the correlation that belongs to `latent`.
      latent: before the update.
    """
    if rule is None or not isinstance(watch, Watch):
        return ()
    average = rule.decay * watch.average + (1 - rule.decay) * trace["held_out_correlation"]
    seen = watch.seen + 1
    now = average / (1 - rule.decay ** seen.astype(average.dtype))
    better = (now > watch.greatest) & (watch.seen > 0)  # never the start, which shows nothing
    return Watch(
        seen,
        average,
        jnp.where(better, now, watch.greatest),
        jnp.where(better | (watch.seen == 0), 0, watch.waited + 1),
        jnp.where(better, latent, watch.latent),
    )


def goes_on(rule: HeldOutNeurons | None, watch: Watch | tuple[()]) -> jax.Array | np.ndarray | bool:
    """Whether the rule wants more updates, of each movie."""
    return True if rule is None or not isinstance(watch, Watch) else watch.waited < rule.patience


def products(predicted: jax.Array, recorded: jax.Array, weights: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
    """What a window adds to a correlation over frames and neurons, each neuron less its mean in the window.

    Args:
      predicted, recorded: (stack, time, neuron).
      weights: (neuron,).
      valid: (stack, time), which frames count.
    """
    counts = valid[..., None].astype(predicted.dtype)
    number = jnp.maximum(counts.sum(), 1)
    a, b = (counts * (x - (counts * x).sum((0, 1)) / number) for x in (predicted, recorded))
    sums = ((a * b * weights).sum(), (a * a * weights).sum(), (b * b * weights).sum())
    return dict(zip(PRODUCTS, sums))


def correlation(trace: dict[str, jax.Array]) -> jax.Array:
    """() of the sums of `products`; 0 where nothing varies."""
    both, predicted, recorded = (trace[name] for name in PRODUCTS)
    return both / jnp.sqrt(jnp.maximum(predicted * recorded, 1e-12))


def held_out(rule: HeldOutNeurons | None, weights: np.ndarray, responses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the neurons in the descent (neuron,), and of those that decide when it ends (clip, neuron).

    The latter weigh one over the variance of their responses in the clip.

    Args:
      rule: of the recipe.
      weights: (neuron,), 0 for neurons not in use.
      responses: (clip, time, neuron); frames without any response are those that fill clips up to a common length.

    Raises:
      NeuroreconError: too few neurons in use for both.
    """
    if rule is None:
        return weights, np.zeros((len(responses), len(weights)))
    used = np.flatnonzero(weights)
    number = max(1, round(rule.share * len(used)))
    if number >= len(used):
        raise NeuroreconError(f"held-out neurons: expected at least 2 neurons in use, found {len(used)}")
    chosen = used[np.arange(number) * len(used) // number + math.ceil(len(used) / number) // 2]
    inside = weights.copy()
    inside[chosen] = 0
    outside = np.zeros((len(responses), len(weights)))
    for clip, of_clip in zip(outside, responses):
        variance = of_clip[(of_clip != 0).any(1)][:, chosen].var(0) if of_clip.any() else np.zeros(number)
        clip[chosen] = np.where(variance > 0, 1 / np.where(variance > 0, variance, 1), 0)
    return inside, outside
