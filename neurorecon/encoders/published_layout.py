"""The published names, shapes and axis orders of DwiseNeuro's parameters and buffers, beside ours."""

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np

from neurorecon.encoders.dwiseneuro import DwiseNeuro


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of the published state dict and its place among our variables.

    Attributes:
      name: published name.
      path: collection, then module and variable names.
      shape: published shape.
      load, dump: published array -> ours, and back (views).
    """

    name: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    load: Callable[[np.ndarray], np.ndarray] = lambda array: array
    dump: Callable[[np.ndarray], np.ndarray] = lambda array: array


def published_layout(encoder: DwiseNeuro) -> Iterator[Entry]:
    """Every array of the published state dict, in the published order."""
    e = encoder
    k, kt = e.spatial_kernel, e.temporal_kernel
    width = e.core_features[0]
    yield _pointwise("core.stem.0.weight", ("params", "stem", "conv"), e.in_channels, width)
    yield from _norm("core.stem.1.bn", ("stem", "norm"), width)
    for i, narrow in enumerate(e.core_features):
        block = f"block{i}"
        out = e.core_features[min(i + 1, len(e.core_features) - 1)]
        wide = narrow * e.expansion_ratio
        reduced = wide // e.se_reduce_ratio
        yield Entry(
            f"core.blocks.{2 * i}.inv_freq",
            ("batch_stats", block, "position", "inv_freq"),
            (math.ceil(narrow / 6),),
        )
        at = f"core.blocks.{2 * i + 1}"
        yield _pointwise(f"{at}.conv_pw.0.weight", ("params", block, "expand"), narrow, wide)
        yield from _norm(f"{at}.conv_pw.1.bn", (block, "expand_norm"), wide)
        yield _depthwise(f"{at}.spat_covn_dw.0.weight", ("params", block, "spatial"), wide, (1, k, k))
        yield from _norm(f"{at}.spat_covn_dw.1.bn", (block, "spatial_norm"), wide)
        yield _depthwise(f"{at}.temp_covn_dw.0.weight", ("params", block, "temporal"), wide, (kt, 1, 1))
        yield from _norm(f"{at}.temp_covn_dw.1.bn", (block, "temporal_norm"), wide)
        yield _pointwise(f"{at}.se.conv_reduce.weight", ("params", block, "squeeze"), wide, reduced)
        yield Entry(f"{at}.se.conv_reduce.bias", ("params", block, "squeeze_bias"), (reduced,))
        yield _pointwise(f"{at}.se.conv_expand.weight", ("params", block, "excite"), reduced, wide)
        yield Entry(f"{at}.se.conv_expand.bias", ("params", block, "excite_bias"), (wide,))
        yield _pointwise(f"{at}.conv_pwl.0.weight", ("params", block, "project"), wide, out)
        yield from _norm(f"{at}.conv_pwl.1.bn", (block, "project_norm"), out)
        yield from _norm(f"{at}.bn_sc.bn", (block, "shortcut_norm"), out)
    width = e.core_features[-1]
    for i, out in enumerate(e.cortex_features):
        layer, at = f"cortex{i}", f"cortex.layers.{i}"
        yield _grouped(f"{at}.conv.weight", ("params", layer, "conv"), width, out, e.groups)
        yield from _norm(f"{at}.bn.bn", (layer, "norm"), out)
        yield from _norm(f"{at}.bn_sc.bn", (layer, "shortcut_norm"), out)
        width = out
    for i, neurons in enumerate(e.num_neurons):
        readout, at = f"readout{i}", f"readouts.{i}.layer.1"
        out = -(-neurons // e.groups) * e.groups
        yield _grouped(f"{at}.weight", ("params", readout, "conv"), width, out, e.groups)
        yield Entry(f"{at}.bias", ("params", readout, "bias"), (out,))


def _pointwise(name: str, path: tuple[str, ...], inputs: int, outputs: int) -> Entry:
    shape = (outputs, inputs, 1, 1, 1)
    return Entry(name, path, shape, lambda a: a.reshape(outputs, inputs).T, lambda a: a.T)


def _depthwise(name: str, path: tuple[str, ...], channels: int, kernel: tuple[int, int, int]) -> Entry:
    """Ours: (row, column, channel) for a spatial kernel, (time, channel) for a temporal one."""
    time, height, width = kernel
    ours = (time,) if path[-1] == "temporal" else (height, width)
    return Entry(
        name,
        path,
        (channels, 1, *kernel),
        lambda a: np.moveaxis(a.reshape(channels, *ours), 0, -1),
        lambda a: np.moveaxis(a, -1, 0),
    )


def _grouped(name: str, path: tuple[str, ...], inputs: int, outputs: int, groups: int) -> Entry:
    split = (groups, outputs // groups, inputs // groups)
    shape = (outputs, inputs // groups, 1)
    return Entry(name, path, shape, lambda a: a.reshape(split).swapaxes(1, 2), lambda a: a.swapaxes(1, 2))


def _norm(name: str, path: tuple[str, ...], size: int) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", ("params", *path, "scale"), (size,))
    yield Entry(f"{name}.bias", ("params", *path, "bias"), (size,))
    yield Entry(f"{name}.running_mean", ("batch_stats", *path, "mean"), (size,))
    yield Entry(f"{name}.running_var", ("batch_stats", *path, "var"), (size,))
    yield Entry(f"{name}.num_batches_tracked", ("batch_stats", *path, "count"), ())
