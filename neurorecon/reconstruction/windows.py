"""Which frames of a movie each window shows to an encoder, and how windows are put together again.

A plan names frames by index, so that one mechanism serves every tiling. Axes: `window`, `stack` (the interleaved
streams of a window: two for an encoder that takes every second frame), `time` (the encoder's own time axis).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from neurorecon.errors import NeuroreconError


class WindowPlan(NamedTuple):
    """Frames of the windows.

    Attributes:
      frames: (window, stack, time) int, indices into the movie.
      valid: (window, stack, time) bool; where False the place gives context and its response does not count.
      inside: (window, stack, time) bool; where False the place lies beyond the movie and repeats its border frame;
        `stitch_sum` and `stitch_mean` leave it out, so that nothing is learnt from there.
    """

    frames: jax.Array
    valid: jax.Array
    inside: jax.Array


def published_plan(num_frames: int, *, window_frames: int = 16, frame_step: int = 2, shift: int = 8) -> WindowPlan:
    """The published tiling: windows of `window_frames * frame_step` frames every `shift`, and one flush with the end.

    The flush window is always added, also where it repeats the last regular one (Bauer et al. 2026).

    Raises:
      NeuroreconError: the movie is shorter than one window.
    """
    span = window_frames * frame_step
    if num_frames < span:
        raise NeuroreconError(
            f"responses: expected at least {span} frames (one window of the encoder), found {num_frames}; "
            "reconstruct a longer trial"
        )
    starts = np.append(np.arange(0, num_frames - span + 1, shift), num_frames - span)
    frames = starts[:, None] + np.arange(span)
    frames = frames.reshape(len(starts), window_frames, frame_step).swapaxes(1, 2)
    everywhere = jnp.ones(frames.shape, bool)
    return WindowPlan(jnp.asarray(frames), everywhere, everywhere)


def shifted_plan(num_frames: int, shift: jax.Array, *, window_frames: int, frame_step: int) -> WindowPlan:
    """Windows side by side, each frame in one, the first starting `shift` frames (0 <= shift < span) before the movie.

    With a shift drawn anew each step, the gradient's expectation has no seams. Frames beyond the movie repeat its first
    or last frame and are not valid.
    """
    span = window_frames * frame_step
    num_windows = -(-num_frames // span) + 1
    frames = jnp.arange(num_windows * span) - shift
    inside = ((frames >= 0) & (frames < num_frames)).reshape(num_windows, window_frames, frame_step).swapaxes(1, 2)
    frames = jnp.clip(frames, 0, num_frames - 1).reshape(num_windows, window_frames, frame_step).swapaxes(1, 2)
    return WindowPlan(frames, inside, inside)


def tiled_plan(num_frames: int, *, tile_frames: int, frame_step: int, context_frames: int) -> WindowPlan:
    """Long tiles for encoders that take any length; each tile sees `context_frames` frames before its own.

    The first `context_frames` responses of the movie depend on frames that nobody knows and are not valid. A movie
    that fits into one tile is one window without extra context.
    """
    tile_frames = -(-tile_frames // frame_step) * frame_step
    if num_frames <= tile_frames:
        starts, context, length = np.zeros(1, int), 0, -(-num_frames // frame_step) * frame_step
    else:
        starts = np.arange(0, num_frames, tile_frames)
        context = -(-context_frames // frame_step) * frame_step
        length = tile_frames + context
    frames = starts[:, None] - context + np.arange(length)
    valid = (frames >= np.maximum(starts[:, None], context_frames)) & (frames < num_frames)
    inside = (frames >= 0) & (frames < num_frames)

    def stacks(x: np.ndarray) -> jax.Array:
        return jnp.asarray(x.reshape(len(starts), length // frame_step, frame_step).swapaxes(1, 2))

    return WindowPlan(stacks(np.clip(frames, 0, num_frames - 1)), stacks(valid), stacks(inside))


def shortened(plan: WindowPlan, num_frames: jax.Array | int) -> WindowPlan:
    """The plan of a movie that ends after `num_frames` frames: what lies beyond is neither valid nor inside.

    Its windows are those that the shorter movie has, and empty ones, for tilings that begin at the movie's start
    (`shifted_plan`, `tiled_plan`); not for `published_plan`, which has a window flush with the end.
    """
    within = plan.frames < num_frames
    return WindowPlan(jnp.minimum(plan.frames, num_frames - 1), plan.valid & within, plan.inside & within)


def one_stream(plan: WindowPlan, stream: jax.Array) -> WindowPlan:
    """The plan with one of its interleaved streams only: a `frame_step`-th of the work, unbiased if drawn at random."""
    return jax.tree.map(lambda x: jnp.take(x, stream[None], axis=1), plan)


def split(series: jax.Array, plan: WindowPlan) -> jax.Array:
    """(time, ...) -> (window, stack, time, ...)."""
    return jnp.take(series, plan.frames, axis=0)


def coverage(plan: WindowPlan, num_frames: int) -> jax.Array:
    """How many window places show each frame: (time,). Places beyond the movie show none."""
    return jnp.zeros(num_frames).at[plan.frames.reshape(-1)].add(plan.inside.reshape(-1).astype(float))


def stitch_sum(windows: jax.Array, plan: WindowPlan, num_frames: int) -> jax.Array:
    """(window, stack, time, ...) -> (time, ...): the sum over the places that show each frame."""
    inside = plan.inside.reshape(*plan.inside.shape, *[1] * (windows.ndim - 3))
    flat = (windows * inside).reshape(-1, *windows.shape[3:])
    return jnp.zeros((num_frames, *windows.shape[3:]), windows.dtype).at[plan.frames.reshape(-1)].add(flat)


def stitch_mean(windows: jax.Array, plan: WindowPlan, num_frames: int) -> jax.Array:
    """(window, stack, time, ...) -> (time, ...): the mean over the places that show each frame."""
    return mean_of_sum(stitch_sum(windows, plan, num_frames), plan)


def mean_of_sum(total: jax.Array, plan: WindowPlan) -> jax.Array:
    """(time, ...) as `stitch_sum` makes it, of all windows of the plan or a part -> what it adds to `stitch_mean`."""
    count = jnp.maximum(coverage(plan, len(total)), 1).astype(total.dtype)
    return total / count.reshape(-1, *[1] * (total.ndim - 1))
