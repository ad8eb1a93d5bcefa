"""Stimulus, responses and optional behaviour arrays -> a recording that train and reconstruct can read.

Example, a continuous recording of 20 minutes at 30 Hz, cut into 10-second trials:

  python -m experiments.import_arrays --output recordings/retina \\
    --stimulus movie.npy --stimulus_axes time,height,width --value_range 0,1 \\
    --responses session.mat:spikes --response_axes neuron,time \\
    --frame_rate 30 --trial_frames 300 --splits train=0:30000,oracle=30000:36000 --gap 100

Files are .npy, .npz:NAME or .mat:NAME (MATLAB's -v7; STRUCT.FIELD reaches into a struct).
"""

import sys

from absl import app, flags

from neurorecon.errors import NeuroreconError
from neurorecon.recordings import import_arrays, parse_splits

_OUTPUT = flags.DEFINE_string("output", None, "Folder to make, named after the animal.", required=True)
_STIMULUS = flags.DEFINE_string("stimulus", None, "File of the movie.", required=True)
_RESPONSES = flags.DEFINE_string("responses", None, "File of the responses.", required=True)
_BEHAVIOUR = flags.DEFINE_string(
    "behaviour", None, "File of pupil dilation, running speed, pupil x, pupil y; zeros without it."
)
_STIMULUS_AXES = flags.DEFINE_string("stimulus_axes", "time,height,width", "Order of the movie's axes.")
_RESPONSE_AXES = flags.DEFINE_string("response_axes", "time,neuron", "Order of the responses' axes.")
_BEHAVIOUR_AXES = flags.DEFINE_string("behaviour_axes", "time,channel", "Order of the behaviour's axes.")
_PACKED = flags.DEFINE_list(
    "packed_bits_shape",
    None,
    "A,B: each frame is a row of packed bits that unpack to A x B, named by stimulus_axes.",
)
_RANGE = flags.DEFINE_list(
    "value_range",
    None,
    "BLACK,WHITE: the values scaled to 0 and 255. Default: 0,255, or 0,1 for packed bits.",
)
_POOL = flags.DEFINE_integer("pool", 1, "Pixels averaged in each direction.")
_FRAME_RATE = flags.DEFINE_float("frame_rate", None, "Frames per second.", required=True)
_TRIAL_FRAMES = flags.DEFINE_integer("trial_frames", 300, "Frames of a trial; the last of a range may be shorter.")
_SPLITS = flags.DEFINE_string(
    "splits", None, "TIER=START:STOP[+START:STOP...],... in frames. Default: everything is for training."
)
_GAP = flags.DEFINE_integer("gap", 0, "Frames between train and any other tier used by neither.")
_LEAD_IN = flags.DEFINE_integer("lead_in", 0, "Frames shown before each trial's own, except in train.")
_MIN_FRAMES = flags.DEFINE_integer("min_trial_frames", 1, "Shorter remainders are left out.")


def _numbers(name: str, texts: list[str] | None, kind: type) -> tuple | None:
    if texts is None:
        return None
    try:
        first, second = (kind(text) for text in texts)
    except ValueError:
        raise NeuroreconError(f"--{name}: expected two numbers A,B, found {','.join(texts)!r}") from None
    return first, second


def main(_: list[str]) -> int:
    try:
        recording = import_arrays(
            _OUTPUT.value,
            stimulus=_STIMULUS.value,
            responses=_RESPONSES.value,
            behaviour=_BEHAVIOUR.value,
            stimulus_axes=_STIMULUS_AXES.value,
            response_axes=_RESPONSE_AXES.value,
            behaviour_axes=_BEHAVIOUR_AXES.value,
            packed_bits_shape=_numbers("packed_bits_shape", _PACKED.value, int),
            value_range=_numbers("value_range", _RANGE.value, float),
            pool=_POOL.value,
            frame_rate=_FRAME_RATE.value,
            trial_frames=_TRIAL_FRAMES.value,
            splits=parse_splits(_SPLITS.value) if _SPLITS.value else None,
            gap=_GAP.value,
            lead_in=_LEAD_IN.value,
            min_trial_frames=_MIN_FRAMES.value,
        )
    except NeuroreconError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    tiers = ", ".join(f"{tier} {count}" for tier, count in recording.tier_counts.items())
    print(f"{recording.path}: {recording.num_trials} trials ({tiers}), {recording.num_neurons} neurons")
    return 0


if __name__ == "__main__":
    app.run(main)
