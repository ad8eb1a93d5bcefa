"""Distillation, the second stage of the published training: trained encoders fill in what was not recorded.

A window was seen by one animal. For the readouts of all others the teachers' prediction of the very same inputs
(after CutMix) is the target, in evaluation mode, the mean over the teachers. With the published ratio r, the recorded
responses weigh 1 - r in the loss and the predicted ones r, shared equally by all pairs of a window and another animal.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax

from neurorecon.encoders import DwiseNeuro
from neurorecon.errors import NeuroreconError
from neurorecon.training.objective import poisson_loss

PUBLISHED_RATIO = 0.36
_LAYOUT = ("canvas", "padding", "window_frames", "frame_step", "in_channels")


@partial(jax.tree_util.register_dataclass, data_fields=["variables"], meta_fields=["encoders", "ratio"])
@dataclasses.dataclass(frozen=True)
class Teachers:
    """Trained encoders.

    Attributes:
      encoders: one or more DwiseNeuro, with the student's animals in the student's order.
      variables: of each.
      ratio: share of the loss that their predictions have, above 0 and below 1.
    """

    encoders: tuple[Any, ...]
    variables: tuple[Any, ...]
    ratio: float


def make_teachers(
    members: Sequence[tuple[Any, Any]],
    animals: Sequence[str],
    student: Any,
    student_animals: Sequence[str],
    ratio: float,
) -> Teachers:
    """Teachers for a student.

    Args:
      members: (encoder, variables) of each teacher.
      animals: whose readouts they have, in their order.
      student: the encoder to train.
      student_animals: whose readouts it has.
      ratio: see `Teachers`.

    Raises:
      NeuroreconError: encoders that can't teach this student, a single animal, or a ratio out of its range.
    """
    if not 0 < ratio < 1:
        raise NeuroreconError(f"training.distil_ratio: expected above 0 and below 1, found {ratio}")
    if not members:
        raise NeuroreconError("training.distil_from: expected at least one trained encoder, found none")
    if len(student_animals) < 2:
        raise NeuroreconError(
            "training.distil_from: expected two or more recordings, since teachers fill in the other animals' "
            f"responses, found {len(student_animals)}"
        )
    if list(animals) != list(student_animals):
        raise NeuroreconError(
            f"training.distil_from: expected teachers of the animals {', '.join(student_animals)} in this order, "
            f"found {', '.join(animals)}"
        )
    for encoder in (student, *(encoder for encoder, _ in members)):
        if not isinstance(encoder, DwiseNeuro):
            raise NeuroreconError(
                "training.distil_from: expected encoders of the architecture dwiseneuro, whose readouts share one pass "
                f"of the core, found {type(encoder).__name__}"
            )
        for name in (*_LAYOUT, "num_neurons"):
            if getattr(encoder, name) != getattr(student, name):
                raise NeuroreconError(
                    f"training.distil_from: expected teachers with {name} = {getattr(student, name)} as the student, "
                    f"found {getattr(encoder, name)}"
                )
    encoders, variables = zip(*members)
    return Teachers(tuple(encoders), tuple(variables), float(ratio))


def taught(teachers: Teachers, inputs: jax.Array) -> tuple[jax.Array, ...]:
    """The teachers' mean prediction for each readout, (window, time, neuron) each; no gradient goes through it.

    Args:
      inputs: (window, time, height, width, channel), as the student sees them, in float32.
    """
    every = [
        encoder.apply(variables, inputs, readout=None)
        for encoder, variables in zip(teachers.encoders, teachers.variables)
    ]
    return tuple(jax.lax.stop_gradient(sum(found) / len(found)) for found in zip(*every))


def distilled_loss(
    predicted: Sequence[jax.Array],
    responses: jax.Array,
    taught: Sequence[jax.Array],
    animal: int,
    ratio: float,
    weights: Sequence[Any],
) -> jax.Array:
    """Loss of windows of one animal over all readouts: (), in place of `poisson_loss` of its own readout alone.

    Args:
      predicted, taught: for each readout (window, time, neuron).
      responses: (window, time, neuron), recorded, of `animal`.
      weights: for each readout (neuron,).
    """
    total: Any = (1 - ratio) * poisson_loss(predicted[animal].astype(responses.dtype), responses, weights[animal])
    share = ratio / (len(predicted) - 1)
    for other, (found, target) in enumerate(zip(predicted, taught)):
        if other != animal:
            total += share * poisson_loss(found.astype(target.dtype), target, weights[other])
    return total
