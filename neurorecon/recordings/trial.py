"""A trial: what one animal saw, did and answered during one movie."""

import dataclasses

import numpy as np

BEHAVIOUR = ("pupil_dilation", "running_speed", "pupil_x", "pupil_y")
TIERS = (
    "train",
    "oracle",
    "live_test_main",
    "live_test_bonus",
    "final_test_main",
    "final_test_bonus",
    "none",
)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One trial, cut to its valid length, float32.

    Attributes:
      id: name of the trial's files, such as "12".
      animal: name of the recording's folder.
      tier: one of `TIERS`.
      stimulus: (time, height, width), grey values 0..255.
      responses: (time, neuron), at least 0 as a rule; all zeros where `withheld`.
      behaviour: (time, 4) in the order of `BEHAVIOUR`, in the units of the recording.
      withheld: the responses were not published (all zeros); never a target.
    """

    id: str
    animal: str
    tier: str
    stimulus: np.ndarray
    responses: np.ndarray
    behaviour: np.ndarray
    withheld: bool = False

    @property
    def num_frames(self) -> int:
        return self.stimulus.shape[0]
