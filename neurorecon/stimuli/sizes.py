"""Checks of the sizes and rates that stimuli are asked for."""

import math

from neurorecon.errors import NeuroreconError


def check_sizes(**sizes: float) -> None:
    """Raises a one-line `NeuroreconError` for the first size that is not a positive number."""
    for name, value in sizes.items():
        if not math.isfinite(value) or value <= 0:
            raise NeuroreconError(f"{name}: expected a positive number, found {value}; choose a larger one")


def check_seed(seed: int) -> None:
    """Raises a one-line `NeuroreconError` for a negative seed."""
    if seed < 0:
        raise NeuroreconError(f"seed: expected a non-negative integer, found {seed}; choose another seed")
