"""Clips of different lengths through one compiled descent: arrays are filled up to a common length.

What is added changes nothing but the order of sums. The parametrisation keeps the clip's own basis over time, with its
number of frames an argument of the compiled descent and not part of it; no window shows a frame that was added, and no
response counts there. That is so for recipes whose windows begin at the movie's start and whose parts treat frames one
by one or look back only, see `why_not`; others, the published recipe among them, compile each length.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import losses, windows
from neurorecon.reconstruction.recipes import TILE_FRAMES, MakePlan, Recipe, Whitened, economical_windows
from neurorecon.reconstruction.reconstruct import Reconstruction


class Padded(NamedTuple):
    """Arguments of `reconstruct_clips`, for arrays longer than the clips.

    Attributes:
      recipe: the clips' own, in longer arrays.
      responses: (clip, length, neuron), zero where added.
      behaviour: (clip, length, 4).
      baseline: (clip, length, height, width), or None.
    """

    recipe: Recipe
    responses: np.ndarray
    behaviour: np.ndarray
    baseline: np.ndarray | None


def padded_length(num_frames: int, bucket: int) -> int:
    """The next multiple of `bucket` frames; `num_frames` where `bucket` is 0.

    Not beyond the length up to which an encoder of any length sees the movie in one window: two would cost double.
    """
    if bucket <= 0:
        return num_frames
    length = -(-num_frames // bucket) * bucket
    return TILE_FRAMES if num_frames <= TILE_FRAMES < length else length


def why_not(recipe: Recipe) -> str:
    """What of the recipe would see the frames that are added; empty where nothing does.

    Losses and updates of a user's own are taken to treat frames one by one or to look back only.
    """
    if recipe.plan is not economical_windows:
        return "its windows depend on where the movie ends"
    if not isinstance(recipe.parametrisation, Whitened):
        return "its parametrisation is not the whitened cosine basis"
    if recipe.priors or recipe.smoothing:
        return "its priors or its smoothing see neighbouring frames"
    if recipe.mean_loss or recipe.normalise_windows or recipe.canvas:
        return "its windows are normalised"
    if any(isinstance(function, losses.AcrossNeurons) for _, function in recipe.losses.values()):
        return "its likelihood spans the window with slow cosines"
    return ""


def padded(
    recipe: Recipe, responses: np.ndarray, behaviour: np.ndarray, baseline: np.ndarray | None, length: int
) -> Padded:
    """Clips of one length in arrays of `length` frames; all lengths up to it compile once.

    Args:
      recipe: one of which `why_not` says nothing.
      responses: (clip, time, neuron).
      behaviour: (clip, time, 4).
      baseline: (clip, time, height, width), or None.
      length: at least the clips'.

    Raises:
      NeuroreconError: a recipe that sees the added frames, or a shorter length.
    """
    num_frames = np.shape(responses)[1]
    if reason := why_not(recipe):
        raise NeuroreconError(f"recipe {recipe.name}: can't be filled up to a common length: {reason}")
    if length < num_frames:
        raise NeuroreconError(f"length: expected at least the {num_frames} frames of the responses, found {length}")
    # The loop takes the valid responses of a step for those of `length` frames.
    share = num_frames / length
    parametrisation = recipe.parametrisation
    assert isinstance(parametrisation, Whitened)
    longer = recipe.replace(
        plan=Partial(_shortened, np.asarray(num_frames, np.int32), recipe.plan),
        parametrisation=dataclasses.replace(parametrisation, num_frames=num_frames),
        losses={name: (weight, losses.scaled(loss, share)) for name, (weight, loss) in recipe.losses.items()},
    )
    added = [(0, 0), (0, length - num_frames)]
    return Padded(
        longer,
        np.pad(responses, [*added, (0, 0)]),
        np.pad(behaviour, [*added, (0, 0)], mode="edge"),
        None if baseline is None else np.pad(baseline, [*added, (0, 0), (0, 0)]),
    )


def _shortened(num_frames: jax.Array, plan: MakePlan, encoder: Any, length: int, key: jax.Array) -> windows.WindowPlan:
    return windows.shortened(plan(encoder, length, key), num_frames)


def unpadded(
    result: Reconstruction, encoders: Sequence[tuple[Any, Any]], recipe: Recipe, num_frames: int
) -> Reconstruction:
    """What `reconstruct_clips` made of padded clips, without what was added.

    `encoder_windows` stays what went through the encoders, the added frames included.

    Args:
      result: of clips in longer arrays.
      encoders: as given to `reconstruct_clips`.
      recipe: the clips' own.
      num_frames: of the clips.
    """
    length = result.movie.shape[1]

    def number(encoder: Any, frames: int) -> int:
        return jax.eval_shape(lambda key: recipe.plan(encoder, frames, key), jax.random.key(0)).frames.shape[0]

    own, all_windows = ([number(encoder, frames) for encoder, _ in encoders] for frames in (num_frames, length))
    trace = dict(result.trace)
    for name in ("window_loss", "window_gradient_norm"):  # (clip, step, model, window)
        values = trace[name] * (length / num_frames)
        if len(set(all_windows)) == 1:
            trace[name] = values[..., : own[0]]
        else:  # each encoder's mean over its windows, empty ones included
            trace[name] = values * (np.array(all_windows) / np.array(own))[:, None]
    return dataclasses.replace(
        result, movie=result.movie[:, :num_frames], movies=result.movies[:, :, :num_frames], trace=trace
    )
