"""How encoders are trained."""

import dataclasses

from neurorecon.errors import NeuroreconError


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How encoders are trained.

    Attributes:
      num_steps: updates of each model.
      batch_size: windows of each animal in a step.
      optimiser: "adamw", or "muon": Muon (Jordan et al. 2024) for the kernels of convolutions, AdamW for the rest.
      learning_rate: peak of AdamW's schedule; `warmup_steps` up to it, then a cosine to 1 %.
      kernel_rate: peak of Muon's, which runs alongside; not used by "adamw".
      weight_decay: of AdamW, on kernels and readout weights (not on biases, norms, positions and scales).
      position_rate: learning rate of the readout positions, as a share of the others'.
      readout_rate: learning rate of the rest of the readouts, as a multiple of the others'. That of DwiseNeuro as
        published acts through a softplus of slope 0.07, flat at low rates, and needs about 10 in short trainings.
      ema_decay: of the running mean of weights and statistics, which is what is saved.
      ema_warmup: the decay warms up as (1 + k) / (10 + k); otherwise it is constant, as published.
      cutmix_probability: of mixing a batch ("plain") or a window ("published").
      cutmix_variant: "plain", one box for the batch, behaviour mixed by its area; "published", a box for each window on
        the whole canvas, behaviour cut as the movie is.
      mixup_probability: of blending a batch that CutMix left alone (Zhang et al. 2018), share from Beta(0.2, 0.2).
      validation_every: steps between two looks at the validation trials.
      validation_trials: how many of them.
      balanced: weigh each neuron's loss by the inverse of its mean response, so that quiet neurons count as well.
      accumulate: pieces that a batch is cut into, their gradients averaged, to fit memory. The update is that of the
        whole batch, but for encoders with batch norm: each piece is then normalised by itself, and moves the running
        statistics. Dropout differs too.
      precision: of activations, "float32" or "bfloat16"; weights, loss and optimiser stay float32.
      frozen_core: only what belongs to an animal (readout, behaviour, scale) is trained; the core runs with its running
        statistics, without dropout, and keeps every bit.
      shard: over all devices: "" (one device), "windows" of each batch, "models" of the ensemble, or "both".
    """

    num_steps: int = 600
    batch_size: int = 8
    optimiser: str = "adamw"
    learning_rate: float = 5e-3
    kernel_rate: float = 0.16
    warmup_steps: int = 30
    weight_decay: float = 0.01
    position_rate: float = 0.1
    readout_rate: float = 1.0
    ema_decay: float = 0.98
    ema_warmup: bool = True
    cutmix_probability: float = 0.0
    cutmix_variant: str = "plain"
    mixup_probability: float = 0.0
    validation_every: int = 100
    validation_trials: int = 8
    balanced: bool = True
    accumulate: int = 1
    precision: str = "float32"
    frozen_core: bool = False
    shard: str = ""


_CHOICES = {
    "optimiser": ("adamw", "muon"),
    "cutmix_variant": ("plain", "published"),
    "precision": ("float32", "bfloat16"),
    "shard": ("", "windows", "models", "both"),
}


def check_settings(settings: TrainingSettings) -> None:
    """Raises NeuroreconError where a number is out of its range or a name is unknown."""
    for name, choices in _CHOICES.items():
        if getattr(settings, name) not in choices:
            known = " or ".join(c if c else repr(c) for c in choices)
            raise NeuroreconError(f"training.{name}: expected {known}, found {getattr(settings, name)!r}")
    for name in ("num_steps", "batch_size", "validation_every", "validation_trials", "accumulate"):
        if getattr(settings, name) < 1:
            raise NeuroreconError(f"training.{name}: expected at least 1, found {getattr(settings, name)}")
    for name in ("ema_decay", "cutmix_probability", "mixup_probability"):
        if not 0 <= getattr(settings, name) <= 1:
            raise NeuroreconError(f"training.{name}: expected 0 to 1, found {getattr(settings, name)}")
    if settings.batch_size % settings.accumulate:
        raise NeuroreconError(
            f"training.accumulate: expected a divisor of batch_size = {settings.batch_size}, "
            f"found {settings.accumulate}"
        )
