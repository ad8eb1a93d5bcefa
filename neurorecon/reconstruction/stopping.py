"""When to stop a descent: once neurons that it does not descend to are explained no better.

What a movie gains from the noise of the neurons in use tells nothing of the others; what it gains from the stimulus
does. No clip with a known movie is needed, and each clip, with each movie of its own, stops by itself.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from neurorecon.errors import NeuroreconError


@dataclasses.dataclass(frozen=True)
class HeldOutNeurons:
    """Stops where the response loss of neurons left out of the descent has not fallen for a while.

    The movie is that of the update at which their loss, averaged over the last ones, was least.

    Attributes:
      share: of the neurons in use, between 0 and 0.5, evenly over their order.
      patience: updates to wait for a lower loss.
      decay: of the average over updates, whose windows differ; 0: none.
    """

    share: float = 0.1
    patience: int = 30
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
      average: () of the loss, weighted (1 - decay) decay^k.
      least: () of the averages, corrected for their beginning.
      waited: () int, updates since.
      latent: (time, height, width), that it belongs to.
    """

    seen: jax.Array
    average: jax.Array
    least: jax.Array
    waited: jax.Array
    latent: jax.Array


def begun(rule: HeldOutNeurons | None, latent: jax.Array) -> Watch | tuple[()]:
    """Before the first update."""
    if rule is None:
        return ()
    count = jnp.zeros((), jnp.int32)
    return Watch(count, jnp.zeros((), latent.dtype), jnp.asarray(jnp.inf, latent.dtype), count, latent)


def looked(
    rule: HeldOutNeurons | None, watch: Watch | tuple[()], trace: dict[str, jax.Array], latent: jax.Array
) -> Watch | tuple[()]:
    """After one more update.

    Args:
      rule: of the recipe.
      watch: so far.
      trace: with the held-out loss of `latent`.
      latent: before the update.
    """
    if rule is None or not isinstance(watch, Watch):
        return ()
    average = rule.decay * watch.average + (1 - rule.decay) * trace["held_out_loss"]
    seen = watch.seen + 1
    now = average / (1 - rule.decay ** seen.astype(average.dtype))
    better = now < watch.least
    return Watch(
        seen,
        average,
        jnp.where(better, now, watch.least),
        jnp.where(better, 0, watch.waited + 1),
        jnp.where(better, latent, watch.latent),
    )


def goes_on(rule: HeldOutNeurons | None, watch: Watch | tuple[()]) -> jax.Array | np.ndarray | bool:
    """Whether the rule wants more updates, of each movie."""
    return True if rule is None or not isinstance(watch, Watch) else watch.waited < rule.patience


def held_out(rule: HeldOutNeurons | None, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(neuron,) weights of the neurons in the descent, and of those that decide when it ends.

    Raises:
      NeuroreconError: too few neurons in use for both.
    """
    if rule is None:
        return weights, np.zeros_like(weights)
    used = np.flatnonzero(weights)
    number = max(1, round(rule.share * len(used)))
    if number >= len(used):
        raise NeuroreconError(f"held-out neurons: expected at least 2 neurons in use, found {len(used)}")
    chosen = used[np.arange(number) * len(used) // number + math.ceil(len(used) / number) // 2]
    outside = np.zeros_like(weights)
    outside[chosen] = weights[chosen]
    return weights - outside, outside
