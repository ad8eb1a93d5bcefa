"""Receptive fields of the simulated cortex: Gabor pairs in space, biphasic gamma functions in time."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Patch:
    """The part of the visual field that the population sees, an ellipse, in pixels of the movie.

    Attributes:
      centre_y, centre_x: its middle; pixel (0, 0) has its own middle at 0.5, 0.5.
      radius_y, radius_x: half its height and width.
    """

    centre_y: float
    centre_x: float
    radius_y: float
    radius_x: float

    @classmethod
    def central(cls, height: int, width: int, share: float = 0.55) -> "Patch":
        """The ellipse in the middle of the screen that covers `share` of its area."""
        reach = math.sqrt(share / math.pi)
        return cls(height / 2, width / 2, reach * height, reach * width)

    def mask(self, height: int, width: int) -> np.ndarray:
        """(height, width) bool: pixels whose middle lies inside."""
        y = (np.arange(height)[:, None] + 0.5 - self.centre_y) / self.radius_y
        x = (np.arange(width)[None] + 0.5 - self.centre_x) / self.radius_x
        return y**2 + x**2 <= 1.0


def spatial_pairs(
    pixel_y: np.ndarray,
    pixel_x: np.ndarray,
    *,
    centre: np.ndarray,
    sigma: np.ndarray,
    aspect: np.ndarray,
    frequency: np.ndarray,
    orientation: np.ndarray,
    phase: np.ndarray,
) -> np.ndarray:
    """Quadrature pairs of Gabor functions, (2, pixel, neuron) float32.

    Where `frequency` is above 0 both members have zero sum over the given pixels (weighted by the envelope,
    so that the correction stays local) and unit norm; where it is 0 the cell is a Gaussian blob whose sign is
    that of cos(phase), with an all-zero partner.

    Args:
      pixel_y, pixel_x: (pixel,) middles of the pixels.
      centre: (neuron, 2) y, x in pixels.
      sigma: (neuron,) pixels along the modulation; across it, `sigma * aspect`.
      frequency: (neuron,) cycles per pixel.
      orientation: (neuron,) radians, direction of the modulation, 0 = along x.
      phase: (neuron,) radians.
    """
    dy = pixel_y[:, None] - centre[None, :, 0]
    dx = pixel_x[:, None] - centre[None, :, 1]
    along = np.cos(orientation) * dx + np.sin(orientation) * dy
    across = np.cos(orientation) * dy - np.sin(orientation) * dx
    envelope = np.exp(-0.5 * ((along / sigma) ** 2 + (across / (sigma * aspect)) ** 2))
    envelope[envelope < np.exp(-0.5 * 3.0**2)] = 0.0
    blob = frequency == 0.0
    pairs = []
    for shift in (0.0, -np.pi / 2):
        carrier = np.cos(2 * np.pi * frequency * along + phase + shift)
        gabor = envelope * carrier
        gabor -= envelope * (gabor.sum(0) / envelope.sum(0))
        if shift == 0.0:
            gabor[:, blob] = (envelope * np.sign(np.cos(phase)))[:, blob]
        else:
            gabor[:, blob] = 0.0
        norm = np.linalg.norm(gabor, axis=0)
        pairs.append(gabor / np.where(norm > 0, norm, 1.0))
    return np.stack(pairs).astype(np.float32)


def temporal_pairs(tau: np.ndarray, biphasic: np.ndarray, *, frame_rate: float, seconds: float) -> np.ndarray:
    """Fast and slow causal filters, (2, lag, neuron) float32, unit norm; lag 0 is the present frame.

    h_n(t) = (t/tau)^n exp(-t/tau) (1/n! - b (t/tau)^2 / (n+2)!), n = 3 (fast) and 6 (slow), the form of
    Adelson & Bergen 1985 with a free weight b of the second lobe: 0 sustained, 1 transient.

    Args:
      tau: (neuron,) seconds.
      biphasic: (neuron,) b.
      seconds: length of the filter.
    """
    lag = (np.arange(round(seconds * frame_rate)) + 0.5) / frame_rate
    x = lag[:, None] / tau
    pairs = []
    for n in (3, 6):
        kernel = x**n * np.exp(-x) * (1 / math.factorial(n) - biphasic * x**2 / math.factorial(n + 2))
        pairs.append(kernel / np.linalg.norm(kernel, axis=0))
    return np.stack(pairs).astype(np.float32)


def filter_in_time(signal: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Each neuron's signal (time, neuron) through its own causal kernel (lag, neuron), from rest."""
    out = np.zeros_like(signal)
    for lag in range(min(len(kernel), len(signal))):
        out[lag:] += signal[: len(signal) - lag] * kernel[lag]
    return out
