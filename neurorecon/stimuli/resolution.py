"""Stimuli of known scale: noise of each pair of length constants, gratings of each pair of frequencies."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.stimuli.gratings import grating
from neurorecon.stimuli.noise import gaussian_noise
from neurorecon.stimuli.sizes import check_seed

KINDS = ("noise", "grating")


class Scale(NamedTuple):
    """What the stimuli of one condition have in common.

    Attributes:
      kind: "noise" or "grating".
      spatial: length constant, pixels; or cycles/degree.
      temporal: length constant, frames; or Hz.
    """

    kind: str
    spatial: float
    temporal: float

    @property
    def name(self) -> str:
        """A file name."""
        return f"{self.kind}-{self.spatial:g}-{self.temporal:g}"


def scales(kind: str, spatial: Sequence[float], temporal: Sequence[float]) -> list[Scale]:
    """Every pair, spatial ones outermost.

    Raises:
      NeuroreconError: another kind, no scale, or scales that don't rise from 0 or above.
    """
    if kind not in KINDS:
        raise NeuroreconError(f"kind: expected one of {', '.join(KINDS)}, found {kind!r}")
    for name, values in (("spatial", spatial), ("temporal", temporal)):
        rising = all(a < b for a, b in itertools.pairwise(values))
        if not len(values) or not rising or not all(math.isfinite(v) and v >= 0 for v in values):
            raise NeuroreconError(f"{kind}, {name}: expected rising numbers of 0 or more, found {tuple(values)}")
    return [Scale(kind, float(s), float(t)) for s in spatial for t in temporal]


def stimuli_of(
    scale: Scale,
    *,
    repeats: int,
    seed: int,
    num_frames: int,
    height: int,
    width: int,
    frame_rate: float,
    degrees_per_pixel: float,
) -> np.ndarray:
    """The stimuli of one condition, (repeat, time, height, width) float32, grey values 0..255.

    Noise is drawn anew for each repeat, gratings turn by an equal angle and start at a random phase: a still grating is
    then never shown twice. One repeat uses the same seed in all conditions.

    Args:
      scale: the condition.
      repeats: of the noise, or directions of the grating.
      seed: non-negative.
      num_frames, height, width: of each.
      frame_rate: Hz.
      degrees_per_pixel: at the screen's centre, taken for the whole of it as published.

    Raises:
      NeuroreconError: sizes that are not positive, or a negative seed.
    """
    check_seed(seed)
    if repeats < 1:
        raise NeuroreconError(f"repeats: expected at least 1, found {repeats}")
    sizes = {"num_frames": num_frames, "height": height, "width": width}
    if scale.kind == "noise":
        drawn = [
            # A seed's multiples keep the repeats of neighbouring seeds apart.
            gaussian_noise(1000 * seed + k, spatial_sigma=scale.spatial, temporal_sigma=scale.temporal, **sizes)
            for k in range(repeats)
        ]
    else:
        drawn = [
            grating(
                spatial_frequency=scale.spatial,
                temporal_frequency=scale.temporal,
                direction=2 * math.pi * k / repeats,
                phase=float(np.random.default_rng([0x67726174, seed, k]).uniform(0, 2 * math.pi)),
                frame_rate=frame_rate,
                degrees_per_pixel=degrees_per_pixel,
                **sizes,
            )
            for k in range(repeats)
        ]
    return np.stack(drawn)
