"""Learning-rate schedules."""

import jax.numpy as jnp
import optax


def warmup_cosine(peak: float, *, warmup_steps: int, num_steps: int, floor: float = 0.01) -> optax.Schedule:
    """Linear warm-up from 0, then a cosine to `floor` of the peak, as the Sensorium 2023 winner's.

    Step k of the warm-up uses peak * k / warmup_steps, so the very first step moves nothing; step k after it uses
    low + (peak - low) * (1 + cos(pi * k / N)) / 2 with N = num_steps - warmup_steps.
    """
    decay_steps = max(num_steps - warmup_steps, 1)

    def schedule(step):
        warm = peak * step / max(warmup_steps, 1)
        share = jnp.clip((step - warmup_steps) / decay_steps, 0.0, 1.0)
        cold = floor * peak + (1 - floor) * peak * (1 + jnp.cos(jnp.pi * share)) / 2
        return jnp.where(step < warmup_steps, warm, cold)

    return schedule
