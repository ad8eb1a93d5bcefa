"""DwiseNeuro's first convolution: of single pixels as published, or of patches of them."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from neurorecon.encoders.batch_norm import BatchNorm
from neurorecon.encoders.convolution import convolve
from neurorecon.encoders.gaussian_readout import space_to_depth
from neurorecon.encoders.pending import Pending, moments_of


def normal_fan_out(fan_out: int) -> Callable:
    """The published initialisation of convolutions: normal(0, sqrt(2 / fan_out))."""
    return nn.initializers.normal(math.sqrt(2.0 / fan_out))


class Stem(nn.Module):
    """Convolution and batch norm, without an activation.

    Attributes:
      features: channels.
      folded: the norm is in the kernel.
      patch: pixels (side) of a cell; the result has one place for each cell.
      kernel_size: cells (side) that a place sees, zeros beyond the border; 1, with single pixels, is published.
    """

    features: int
    folded: bool = False
    patch: int = 1
    kernel_size: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Any:
        """(window, time, height, width, channel) -> (window, time, ceil(height / patch), ..., features).

        Pending in training, an array otherwise.
        """
        if self.patch > 1:
            x = space_to_depth(x, self.patch)
        k = self.kernel_size
        taps = () if k == 1 else (k, k)
        kernel = self.param("conv", normal_fan_out(self.features), (*taps, x.shape[-1], self.features))
        norm = BatchNorm(self.folded, name="norm")

        def convolved(kernel: jax.Array) -> jax.Array:
            if k == 1:
                return x @ kernel
            frames = convolve(x.reshape(-1, *x.shape[2:]), kernel.astype(x.dtype), ((k // 2, k // 2), (k // 2, k // 2)))
            return frames.reshape(*x.shape[:2], *frames.shape[1:])

        if train:
            # Single pixels have fewer channels than what becomes of them: less to keep.
            function, constants, parts = (_product, kernel, x) if k == 1 else (_whole, (), convolved(kernel))
            number, frame = math.prod(parts.shape[:4]), math.prod(parts.shape[2:4]) * self.features
            statistics = moments_of(Pending(function, constants, parts).flat(), frame)
            constants = (constants, norm.of_moments(statistics, number))
            return Pending(partial(_normalised, function), constants, parts).settled()
        kernel, offset = norm.absorbed(kernel)
        return convolved(kernel) + offset


def _product(kernel, x):
    return x @ kernel


def _whole(nothing, x):
    del nothing
    return x


def _normalised(function, constants, x):
    inner, (mean, factor, bias) = constants
    return ((function(inner, x) - mean) * factor + bias).astype(x.dtype)
