"""Where on the screen the recorded neurons look: the published transparency mask, and a cheaper sensitivity map."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy.ndimage import gaussian_filter

from neurorecon.encoders.canvas import crop_from_canvas, make_inputs, place_on_canvas
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction.checks import check_encoders, check_key

MASK_START = 0.05  # the transparency starts uniform in 0..0.05
MASK_SKIP = 50  # first frame that the published training shows
BLUR_SIGMA, BLUR_RADIUS = 5.0, 7
UPDATE_THRESHOLDS = {"published": 0.5, "strict": 1.0, "published_none": 0.0}  # on the unclipped alpha
EVALUATION_THRESHOLD = 1.0


class AlphaTraining(NamedTuple):
    """How a transparency mask was trained.

    Attributes:
      alpha: (height, width) of the canvas, the mask of the window's first frame, which is what is published; not
        clipped to 0..1. See `update_mask` and `evaluation_mask`.
      frames: (time, height, width) the mask of every frame; they differ in their random starts alone.
      losses: (step,) mean squared error of the responses.
      gradient_norms: (step,) L2 norm over movie, mask and behaviour channels.
      steps: (step, height, width) the mask of the first frame after each step.
    """

    alpha: np.ndarray
    frames: np.ndarray
    losses: np.ndarray
    gradient_norms: np.ndarray
    steps: np.ndarray


def published_pairs(key: jax.Array, num_trials: int, num_steps: int) -> np.ndarray:
    """(step, 2) trial and background of each step, drawn independently as published: never the last trial.

    The published draw excludes the upper end of a range that ends at the last trial already. Both draws may be the same
    trial, whose step then changes nothing.
    """
    return np.asarray(jax.random.randint(key, (num_steps, 2), 0, num_trials - 1))


def train_alpha_mask(
    encoder: Any,
    variables: Any,
    stimuli: Sequence[np.ndarray],
    behaviours: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
    *,
    key: jax.Array,
    **options: Any,
) -> np.ndarray:
    """The published transparency mask, (height, width) of the encoder's canvas; see `alpha_training`."""
    return alpha_training(encoder, variables, stimuli, behaviours, responses, key=key, **options).alpha


def alpha_training(
    encoder: Any,
    variables: Any,
    stimuli: Sequence[np.ndarray],
    behaviours: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
    *,
    key: jax.Array,
    readout: int = 0,
    num_steps: int = 1000,
    learning_rate: float = 10.0,
    skip_frames: int = MASK_SKIP,
    pairs: np.ndarray | None = None,
    initial: np.ndarray | None = None,
) -> AlphaTraining:
    """Trains the transparency mask of one animal and encoder exactly as published (Bauer et al. 2026).

    Each step shows one window of a trial, blended with the same window of another trial where the mask is transparent,
    and descends the squared error between predicted and recorded responses: the mask turns opaque where the neurons
    look. Gradients over movie, mask and behaviour are divided by (their common L2 norm + 1e-6), clipped to -1..1,
    averaged over the window's frames and blurred (Gaussian, sigma 5, 15 x 15, mirrored at the borders).

    Args:
      encoder, variables: one encoder.
      stimuli: of each trial (time, height, width), grey 0..255; at least `skip_frames` and one window long.
      behaviours: of each trial (time, 4).
      responses: of each trial (time, neuron), recorded.
      key: for the draws of trials and the initial mask.
      readout: which animal's readout.
      num_steps, learning_rate: as published.
      skip_frames: the window's first frame (published: frames 50..81 of a 32-frame window).
      pairs: (step, 2) trial and background, in place of `published_pairs`; fixes `num_steps`.
      initial: (height, width) or (time, height, width) of the canvas, in place of a mask uniform in 0..0.05.

    Raises:
      NeuroreconError: shapes that don't fit, NaN, or fewer than two trials.
    """
    check_key(key)
    check_encoders([(encoder, variables)], readout, same_canvas=False)
    span = encoder.window_frames * encoder.frame_step
    trials = _trials(encoder, stimuli, behaviours, responses, readout, slice(skip_frames, skip_frames + span))
    pairs_key, start_key = jax.random.split(key)
    if pairs is None:
        if len(trials[0]) < 2:
            raise NeuroreconError("stimuli: expected at least 2 trials to draw from, found 1")
        pairs = published_pairs(pairs_key, len(trials[0]), num_steps)
    pairs = np.asarray(pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not ((pairs >= 0) & (pairs < len(trials[0]))).all():
        raise NeuroreconError(f"pairs: expected (step, 2) trial numbers below {len(trials[0])}, found {pairs.shape}")
    shape = (span, *encoder.canvas)
    dtype = trials[0].dtype
    if initial is None:
        start = jax.random.uniform(start_key, shape, dtype, 0.0, MASK_START)
    elif np.shape(initial) in (shape, shape[1:]):
        start = jnp.broadcast_to(jnp.asarray(initial, dtype), shape)
    else:
        raise NeuroreconError(f"initial: expected shape {shape[1:]} or {shape}, found {np.shape(initial)}")
    settings = (encoder, readout)
    mask, trace = _descend_mask(settings, variables, trials, jnp.asarray(pairs), start, learning_rate)
    losses, norms, steps = (np.asarray(x) for x in trace)
    if not np.isfinite(losses).all():
        raise NeuroreconError(f"mask training: the loss is not finite at step {int(np.argmin(np.isfinite(losses)))}")
    frames = np.asarray(mask)
    return AlphaTraining(frames[0], frames, losses, norms, steps)


@functools.partial(jax.jit, static_argnames=("settings",))
def _descend_mask(settings, variables, trials, pairs, mask, learning_rate):
    def step(mask, pair):
        stimulus, behaviour, responses = (x[pair[0]] for x in trials)
        gradient, loss, norm = mask_gradient(
            settings, variables, mask, stimulus, behaviour, responses, trials[0][pair[1]]
        )
        mask = mask - learning_rate * blur(gradient)
        return mask, (loss, norm, mask[0])

    return lax.scan(step, mask, pairs)


def mask_gradient(settings: tuple[Any, int], variables: Any, mask, stimulus, behaviour, responses, background):
    """The published gradient of a transparency mask before its blur.

    Args:
      settings: (encoder, readout).
      variables: of the encoder.
      mask: (time, height, width) of the canvas.
      stimulus, background: (time, height, width) of the screen; behaviour: (time, 4); responses: (time, neuron).

    Returns:
      (height, width) gradient, normalised, clipped and averaged over frames; () the loss; () the gradient's norm.
    """
    encoder, readout = settings
    canvas = tuple(encoder.canvas)
    stimulus, background = (place_on_canvas(x, canvas, encoder.padding) for x in (stimulus, background))
    counts = jnp.arange(encoder.window_frames) >= (encoder.warmup_frames if encoder.time_invariant else 0)

    def stacks(series):  # (time, ...) -> (stack, time of the encoder, ...)
        return series.reshape(encoder.window_frames, encoder.frame_step, *series.shape[1:]).swapaxes(0, 1)

    def loss(stimulus, mask, planes):
        # The published clip passes the gradient at 0 and 1 themselves.
        alpha = jnp.where((mask >= 0) & (mask <= 1), mask, lax.stop_gradient(jnp.clip(mask, 0, 1)))
        movie = background + (stimulus - background) * alpha  # a trial before itself has a gradient of exactly 0
        predicted = encoder.apply(variables, stacks(jnp.concatenate([movie[..., None], planes], -1)), readout=readout)
        error = (predicted - stacks(responses)) ** 2 * counts[:, None]
        return error.sum() / (counts.sum() * error.shape[0] * error.shape[2])

    planes = make_inputs(stimulus, behaviour, canvas)[..., 1:]
    value, gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))(stimulus, mask, planes)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in gradients))
    return jnp.clip(gradients[1] / (norm + 1e-6), -1, 1).mean(0), value, norm


def blur(image: jax.Array) -> jax.Array:
    """Gaussian of sigma 5 in a 15 x 15 window, mirrored at the borders without repeating the edge; (height, width)."""
    rows, columns = (jnp.asarray(_blur_matrix(size), image.dtype) for size in image.shape)
    return jnp.einsum("ij,jk,lk->il", rows, image, columns, precision="highest")


@functools.cache
def _blur_matrix(size: int) -> np.ndarray:
    taps = np.exp(-(np.arange(-BLUR_RADIUS, BLUR_RADIUS + 1) ** 2) / (2 * BLUR_SIGMA**2))
    taps /= taps.sum()
    source = np.pad(np.arange(size), BLUR_RADIUS, mode="reflect")
    matrix = np.zeros((size, size))
    for row in range(size):
        np.add.at(matrix[row], source[row : row + len(taps)], taps)
    return matrix


def sensitivity_map(
    encoders: Sequence[tuple[Any, Any]],
    stimuli: Sequence[np.ndarray],
    behaviours: Sequence[np.ndarray],
    *,
    key: jax.Array,
    readout: int = 0,
    windows_per_trial: int = 2,
    smoothing: float = 1.5,
) -> np.ndarray:
    """How strongly each pixel moves the predicted responses: (height, width) of the screen, from 0 to 1 (its maximum).

    The root mean square of d response / d pixel over neurons, frames, windows and encoders. With random signs v over
    neurons and frames, E[(J^T v)^2] is the sum of the squares of J's rows (Hutchinson 1989), so that one backward pass
    stands for all neurons.

    Args:
      encoders: (encoder, variables).
      stimuli: movies to look around, of each trial (time, height, width), grey 0..255, at least one window long.
      behaviours: of each trial (time, 4).
      key: for windows and signs.
      readout: which animal's readout.
      windows_per_trial: windows drawn from each trial, for each encoder.
      smoothing: sigma of a Gaussian over the mean square, in pixels; 0 for none.

    Raises:
      NeuroreconError: shapes that don't fit, or encoders that no pixel moves.
    """
    check_key(key)
    check_encoders(encoders, readout, same_canvas=False)
    total = np.zeros(encoders[0][0].screen)
    for model, (encoder, variables) in enumerate(encoders):
        span = (encoder.window_frames - 1) * encoder.frame_step + 1
        trials = [
            _checked_trial(encoder, stimulus, behaviour, span) for stimulus, behaviour in zip(stimuli, behaviours)
        ]
        if not trials or len(stimuli) != len(behaviours):
            raise NeuroreconError(
                f"stimuli, behaviours: expected as many of both, found {len(stimuli)} and {len(behaviours)}"
            )
        for place in range(len(trials) * windows_per_trial):
            start_key, signs_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, model), place))
            stimulus, behaviour = trials[place % len(trials)]
            start = int(jax.random.randint(start_key, (), 0, len(stimulus) - span + 1))
            frames = slice(start, start + span, encoder.frame_step)
            square = _squared_sensitivity(encoder, variables, stimulus[frames], behaviour[frames], readout, signs_key)
            total += np.asarray(square)
    if smoothing:
        total = gaussian_filter(total, smoothing)
    if not np.isfinite(total).all() or total.max() <= 0:
        raise NeuroreconError(
            "encoders: no pixel changes the predicted responses, or they are not finite; train longer"
        )
    return np.sqrt(total / total.max()).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("encoder", "readout"))
def _squared_sensitivity(encoder, variables, stimulus, behaviour, readout, key):
    def predict(movie):
        inputs = make_inputs(movie, behaviour, tuple(encoder.canvas), encoder.padding)
        predicted = encoder.apply(variables, inputs[None], readout=readout)[0]
        return predicted[encoder.warmup_frames :] if encoder.time_invariant else predicted

    predicted, pull = jax.vjp(predict, stimulus)
    (gradient,) = pull(jax.random.rademacher(key, predicted.shape, predicted.dtype))
    return jnp.mean(gradient**2, axis=0) / predicted.size


def update_mask(alpha: np.ndarray, variant: str = "published") -> np.ndarray:
    """The pixels that a reconstruction may change, (height, width) bool, from a transparency mask as trained.

    Args:
      alpha: (height, width), not clipped; of the canvas, as published: rows of padding inside the mask are descended
        with the screen's.
      variant: "published": alpha >= 0.5; "strict": alpha >= 1, the published control in which only the pixels that are
        scored change; "published_none": alpha >= 0, what the published control without a mask runs: since the trained
        mask is not clipped, pixels that training pushed below 0 stay grey. To mask nothing at all, give
        `reconstruct` no mask.

    Raises:
      NeuroreconError: an unknown variant, not a mask, or no pixel reaches the threshold.
    """
    if variant not in UPDATE_THRESHOLDS:
        raise NeuroreconError(f"variant: expected one of {', '.join(UPDATE_THRESHOLDS)}, found {variant!r}")
    return population_mask(_checked_alpha(alpha), UPDATE_THRESHOLDS[variant])


def evaluation_mask(alpha: np.ndarray, screen: tuple[int, int] | None = None) -> np.ndarray:
    """The pixels that are scored: alpha >= 1, as published.

    Args:
      alpha: (height, width) of the canvas or of the screen, not clipped.
      screen: (height, width) to crop the mask to, since truth and reconstruction have no padding; None: as it is.

    Returns:
      (height, width) bool of the screen.

    Raises:
      NeuroreconError: not a mask, smaller than the screen, or no pixel of the screen reaches 1.
    """
    alpha = _checked_alpha(alpha)
    if screen is not None:
        if any(large < small for large, small in zip(alpha.shape, screen)):
            raise NeuroreconError(f"alpha: expected at least the screen {tuple(screen)}, found {alpha.shape}")
        alpha = crop_from_canvas(alpha, screen)
    return population_mask(alpha, EVALUATION_THRESHOLD)


def _checked_alpha(alpha: np.ndarray) -> np.ndarray:
    alpha = np.asarray(alpha)
    if alpha.ndim != 2 or alpha.dtype.kind != "f" or not np.isfinite(alpha).all():
        raise NeuroreconError(
            f"alpha: expected finite floating-point numbers (height, width), as trained, "
            f"found {alpha.dtype} of shape {alpha.shape}"
        )
    return alpha


def population_mask(sensitivity: np.ndarray, threshold: float) -> np.ndarray:
    """(height, width) bool: where a map reaches `threshold`, as the published update mask does at 0.5.

    Raises:
      NeuroreconError: it does nowhere.
    """
    mask = np.asarray(sensitivity) >= threshold
    if not mask.any():
        highest = np.max(sensitivity)
        raise NeuroreconError(f"threshold: expected at most the map's maximum {highest:.3g}, found {threshold}")
    return mask


def _trials(encoder, stimuli, behaviours, responses, readout: int, window: slice) -> tuple[jax.Array, ...]:
    """One window of every trial: (trial, time, ...) of stimuli, behaviours and responses."""
    if not len(stimuli) == len(behaviours) == len(responses) or not len(stimuli):
        raise NeuroreconError(
            f"stimuli, behaviours, responses: expected as many of each, "
            f"found {len(stimuli)}, {len(behaviours)} and {len(responses)}"
        )
    series: tuple[list, list, list] = ([], [], [])
    for trial, (stimulus, behaviour, response) in enumerate(zip(stimuli, behaviours, responses)):
        stimulus, behaviour = _checked_trial(encoder, stimulus, behaviour, window.stop)
        response = np.asarray(response)
        if response.shape != (len(stimulus), encoder.num_neurons[readout]) or not np.isfinite(response[window]).all():
            raise NeuroreconError(
                f"responses: expected finite numbers of shape {(len(stimulus), encoder.num_neurons[readout])} "
                f"in trial {trial}, found shape {response.shape}"
            )
        for values, value in zip(series, (stimulus, behaviour, response)):
            values.append(np.asarray(value[window], jnp.result_type(float)))
    return tuple(jnp.asarray(np.stack(values)) for values in series)


def _checked_trial(encoder, stimulus, behaviour, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    stimulus, behaviour = np.asarray(stimulus), np.asarray(behaviour)
    if stimulus.shape[1:] != tuple(encoder.screen) or len(stimulus) < num_frames:
        raise NeuroreconError(
            f"stimuli: expected (time, {encoder.screen[0]}, {encoder.screen[1]}) with {num_frames} frames or more, "
            f"found {stimulus.shape}"
        )
    if behaviour.shape != (len(stimulus), 4):
        raise NeuroreconError(f"behaviours: expected {(len(stimulus), 4)}, found {behaviour.shape}")
    for name, values in (("stimuli", stimulus), ("behaviours", behaviour)):
        if not np.isfinite(values).all():
            raise NeuroreconError(f"{name}: expected finite values, found NaN or infinity; cut trials to their length")
    dtype = jnp.result_type(float)
    return stimulus.astype(dtype), behaviour.astype(dtype)
