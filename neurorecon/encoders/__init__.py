"""Encoders: pure Flax modules, `encoder.apply(variables, inputs, readout=i)`.

inputs: (window, time, height, width, channel) with the movie (grey 0..255) in channel 0 and pupil dilation, running
speed, pupil x and pupil y in planes of their own; output (window, time, neuron). Every encoder has the fields
`num_neurons` (one number for each readout), `canvas`, `screen`, `padding`, `window_frames` and `frame_step`, and says
with `time_invariant` whether it takes windows of any length (then its first `warmup_frames` outputs lack history).
"""

import dataclasses
import difflib
from typing import Any

from neurorecon.encoders.checkpoints import load_encoder, register_encoder, save_encoder
from neurorecon.encoders.dwiseneuro import DwiseNeuro
from neurorecon.encoders.factorized import Factorized
from neurorecon.encoders.linear_nonlinear import LinearNonlinear
from neurorecon.encoders.prediction import predict_ensemble, predict_trial
from neurorecon.encoders.published import export_published, load_published
from neurorecon.errors import NeuroreconError

__all__ = [
    "DwiseNeuro",
    "Factorized",
    "LinearNonlinear",
    "build_encoder",
    "export_published",
    "load_encoder",
    "load_published",
    "predict_ensemble",
    "predict_trial",
    "save_encoder",
]

ARCHITECTURES = {"dwiseneuro": DwiseNeuro, "factorized": Factorized, "linear_nonlinear": LinearNonlinear}
for _name, _architecture in ARCHITECTURES.items():
    register_encoder(_name, _architecture)


def build_encoder(name: str, **fields: Any) -> Any:
    """An untrained encoder by the name of its architecture.

    Raises:
      NeuroreconError: no such architecture, or a field that it doesn't have.
    """
    if name not in ARCHITECTURES:
        raise NeuroreconError(f"encoder: expected one of {', '.join(ARCHITECTURES)}, found {name!r}")
    known = [f.name for f in dataclasses.fields(ARCHITECTURES[name]) if f.name not in ("parent", "name")]
    for field in fields:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1, cutoff=0.0)[0]
            raise NeuroreconError(f"encoder {name}: no field {field!r}; the nearest is {near!r}")
    frozen = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in fields.items()}
    return ARCHITECTURES[name](**frozen)
