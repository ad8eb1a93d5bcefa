"""How a convolutional decoder is built and trained."""

import dataclasses

from neurorecon.errors import NeuroreconError


@dataclasses.dataclass(frozen=True)
class DecoderSettings:
    """How a convolutional decoder is built and trained.

    Attributes:
      num_lags: frames t .. t + num_lags - 1 of the responses decode frame t.
      lag_step: frames averaged into one feature, and the time step of the network; divides num_lags.
      folds: of the training trials; each is decoded linearly by a decoder that was not fitted to it.
      patch: pixels, squared, in a cell of the network.
      features: channels of its convolutions.
      maps: channels onto which the neurons are projected.
      dilations: of the spatial convolutions, one for each block, in cells.
      temporal_taps: of each block, in steps of `lag_step` frames; an odd number.
      dropout: probability that a neuron is left out of the projection, drawn anew for each trial and step.
      num_steps, batch_size: updates, and trials in each.
      learning_rate, kernel_rate: peaks of AdamW's and of Muon's schedule.
      weight_decay: of AdamW.
      validation_every: steps between two looks at the validation trials.
    """

    num_lags: int = 15
    lag_step: int = 3
    folds: int = 4
    patch: int = 2
    features: int = 24
    maps: int = 8
    dilations: tuple[int, ...] = (1, 2, 4)
    temporal_taps: int = 5
    dropout: float = 0.3
    num_steps: int = 400
    batch_size: int = 1
    learning_rate: float = 0.003
    kernel_rate: float = 0.02
    weight_decay: float = 0.01
    validation_every: int = 50


def check_decoder_settings(settings: DecoderSettings) -> None:
    """Raises NeuroreconError where a value is out of its range."""

    def expect(name: str, fine: bool, what: str) -> None:
        if not fine:
            raise NeuroreconError(f"convolutional_decoder.{name}: expected {what}, found {getattr(settings, name)!r}")

    for name in ("lag_step", "patch", "features", "maps", "num_steps", "batch_size", "validation_every"):
        expect(name, getattr(settings, name) >= 1, "at least 1")
    expect("folds", settings.folds >= 2, "at least 2")
    expect("num_lags", settings.num_lags >= 1 and settings.num_lags % settings.lag_step == 0, "a multiple of lag_step")
    expect("temporal_taps", settings.temporal_taps >= 1 and settings.temporal_taps % 2 == 1, "an odd number")
    expect("dilations", bool(settings.dilations) and min(settings.dilations) >= 1, "one or more numbers above 0")
    expect("dropout", 0 <= settings.dropout < 1, "0 or more, below 1")
    for name in ("learning_rate", "kernel_rate"):
        expect(name, getattr(settings, name) > 0, "above 0")
    expect("weight_decay", settings.weight_decay >= 0, "0 or more")
