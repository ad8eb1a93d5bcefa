"""The baseline that every reconstruction has to beat: ridge regression from responses to pixels.

Each pixel of frame t is a weighted sum of the responses of all neurons in frames t + lag, lag = 0 ..
num_lags - 1 (a response comes after its stimulus), plus a constant. Responses are standardised by neuron;
beyond a trial's end they count as the neuron's mean. Where activity is not negative, its square roots have
more even noise (Anscombe 1948) and make a stronger opponent. The penalty is chosen on validation trials by
the correlation of the movies in the mask. Linear regression under squared error estimates the posterior mean
of a linear Gaussian world, so its movies are smooth by themselves and need no smoothing to be a fair opponent.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.movie_metrics import movie_correlation
from neurorecon.evaluation.ridge import bytes_needed, principal_components, ridge_problem

# Penalty per training frame, relative to the variance of one (standardised) feature.
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
BACKGROUNDS = ("frame", "level")
COMPONENTS = 2000  # at most, where not all neurons fit into memory: time goes with the cube


@dataclasses.dataclass(frozen=True)
class LinearDecoder:
    """A fitted decoder.

    Attributes:
      weights: (lag, neuron, pixel) float32, from standardised responses to grey values; lags in steps of
        `lag_step`.
      offset: (pixel,) float32, added to the background: what zeros beyond the trials' ends did to the means.
      background: (height, width) float32, the mean training frame or grey level: what is shown for
        responses at their mean, and where nothing was decoded.
      pixels: (height, width) bool, the decoded ones.
      response_mean, response_std: (neuron,) float32, of (the roots of) the training responses.
      num_lags, lag_step: as in `fit_linear_decoder`.
      penalty: the one chosen.
      validation_correlations: penalty -> mean movie correlation over the validation trials, with this
        background.
      square_root: whether square roots of the responses are decoded.
      components: principal components of the responses that were decoded; 0: the neurons themselves.
    """

    weights: np.ndarray
    offset: np.ndarray
    background: np.ndarray
    pixels: np.ndarray
    response_mean: np.ndarray
    response_std: np.ndarray
    num_lags: int
    lag_step: int
    penalty: float
    validation_correlations: dict[float, float]
    square_root: bool = False
    components: int = 0

    @property
    def uninformative(self) -> np.ndarray:
        """(neuron,) the response of each that moves no pixel."""
        return np.square(self.response_mean) if self.square_root else self.response_mean

    def predict(self, responses: np.ndarray) -> np.ndarray:
        """Responses (time, neuron) of one trial -> movie (time, height, width) float32, not clipped.

        Raises:
          NeuroreconError: another number of neurons, or NaN or infinity.
        """
        _check_responses("responses", responses, len(self.response_mean))
        seen = transformed(responses, square_root=self.square_root)
        features = _features(seen, self.response_mean, self.response_std, self.lag_step)
        movie = np.repeat(self.background[None], len(responses), axis=0)
        movie[:, self.pixels] = self.background[self.pixels] + (
            _apply(features, self.weights, self.lag_step) + self.offset
        )
        return movie


def fit_linear_decoder(
    responses: Sequence[np.ndarray],
    movies: Sequence[np.ndarray],
    validation_responses: Sequence[np.ndarray],
    validation_movies: Sequence[np.ndarray],
    *,
    num_lags: int = 16,
    lag_step: int = 1,
    mask: np.ndarray | None = None,
    decode_outside: bool = True,
    penalties: Sequence[float] = PENALTIES,
    backgrounds: Sequence[str] = BACKGROUNDS,
    skip_frames: int = 0,
    selection_pixels: int = 512,
    memory_limit_gib: float = 8.0,
    square_root: bool = False,
) -> LinearDecoder:
    """Fits the decoder on training trials and chooses its penalty on validation trials.

    Solves with the Gram matrix of the features (neurons x lags) or, where there are fewer training frames
    than features, with that of the frames; the same solution. Time goes with the square of the smaller
    number. Where both are too large for `memory_limit_gib` (8,000 neurons, say), the leading principal
    components of the responses are decoded in place of the neurons: as many as fit, `COMPONENTS` at most.
    The weights come out for neurons all the same.

    Args:
      responses: training trials, (time, neuron) each.
      movies: their movies, (time, height, width) each.
      validation_responses, validation_movies: trials for the choice of the penalty, never fitted.
      num_lags: frames t .. t + num_lags - 1 of the responses decode frame t.
      lag_step: so many consecutive frames are averaged into one feature, which makes the problem smaller;
        divides num_lags.
      mask: (height, width) bool, where the movie will be scored: the penalty is chosen there. None:
        everywhere.
      decode_outside: False decodes the mask only, and shows the background elsewhere.
      penalties: candidates, relative to the number of training frames.
      backgrounds: candidates for what is added to the decoded deviations: "frame", the mean training frame
        (natural movies have one), or "level", its mean over pixels (white noise has none, and the frame
        would add noise).
      skip_frames: frames at the start of every validation trial that don't count in the choice.
      selection_pixels: the choice looks at no more than so many pixels of the mask, evenly spread, for speed.
      memory_limit_gib: what the matrices may need.
      square_root: decode square roots of the responses; of one below 0, that of 0.

    Raises:
      NeuroreconError: trials that don't match, NaN, an empty mask, penalties not above 0, no correlation on
        any validation trial (constant movies), or too large a problem.
    """
    shape = _check_trials("movies", responses, movies, skip_frames=0)
    if _check_trials("validation_movies", validation_responses, validation_movies, skip_frames) != shape:
        raise NeuroreconError("validation_movies: expected the neurons and frame size of the training trials")
    if num_lags < 1 or lag_step < 1 or num_lags % lag_step:
        raise NeuroreconError(
            f"lag_step: expected a divisor of num_lags, found num_lags {num_lags}, lag_step {lag_step}"
        )
    if len(penalties) == 0 or not all(np.isfinite(p) and p > 0 for p in penalties):
        raise NeuroreconError(f"penalties: expected numbers above 0, found {list(penalties)}")
    if len(backgrounds) == 0 or not set(backgrounds) <= set(BACKGROUNDS):
        raise NeuroreconError(f"backgrounds: expected some of {list(BACKGROUNDS)}, found {list(backgrounds)}")
    mask = np.ones(shape[1:], bool) if mask is None else np.asarray(mask)
    if mask.shape != shape[1:] or mask.dtype != bool or not mask.any():
        raise NeuroreconError(f"mask: expected booleans {shape[1:]}, some true, found {mask.dtype} {mask.shape}")
    pixels = np.ones_like(mask) if decode_outside else mask

    mean, std = _moments(responses, square_root=square_root)
    frame = _mean_frame(movies)

    def seen(trial: np.ndarray) -> np.ndarray:
        return _features(transformed(trial, square_root=square_root), mean, std, lag_step)

    limit = memory_limit_gib * 2**30
    num_lagged = len(range(0, num_lags, lag_step))
    components = _components(sum(len(r) for r in responses), shape[0], num_lagged, int(pixels.sum()), limit)
    directions = principal_components((seen(r) for r in responses), components) if components else None

    def features_of(trial: np.ndarray) -> np.ndarray:
        return seen(trial) if directions is None else seen(trial) @ directions

    problem = ridge_problem(
        [features_of(r) for r in responses],
        [m[:, pixels] - frame[pixels] for m in movies],
        num_lags=num_lags,
        lag_step=lag_step,
        memory_limit_gib=memory_limit_gib,
    )

    shown = {"frame": frame, "level": np.full_like(frame, frame.mean())}
    looked_at = np.flatnonzero(mask[pixels])
    if len(looked_at) > selection_pixels:
        looked_at = looked_at[np.linspace(0, len(looked_at) - 1, selection_pixels).round().astype(int)]
    truths = [m[skip_frames:, pixels][:, looked_at] for m in validation_movies]
    features = [features_of(r) for r in validation_responses]
    scores: dict[str, dict[float, float]] = {b: {} for b in backgrounds}
    for penalty in penalties:
        weights, offset = problem.solve(penalty, looked_at)
        decoded = [(_apply(f, weights, lag_step) + offset)[skip_frames:] for f in features]
        for b in backgrounds:
            behind = shown[b][pixels][looked_at]
            scores[b][float(penalty)] = _mean_correlation(truths, [d + behind for d in decoded])
    background = max(backgrounds, key=lambda b: max(scores[b].values()))
    penalty = max(scores[background], key=lambda p: scores[background][p])
    weights, offset = problem.solve(penalty, None)
    if directions is not None:
        weights = np.einsum("nc,lcp->lnp", directions, weights, optimize=True)
    return LinearDecoder(
        weights=weights,
        offset=offset,
        background=shown[background],
        pixels=pixels,
        response_mean=mean,
        response_std=std,
        num_lags=num_lags,
        lag_step=lag_step,
        penalty=penalty,
        validation_correlations=scores[background],
        square_root=square_root,
        components=components,
    )


def _components(num_frames: int, num_neurons: int, num_lags: int, num_pixels: int, limit: float) -> int:
    """So many principal components in place of the neurons; 0: all neurons fit, or nothing would."""

    def fits(number: int) -> bool:
        return bytes_needed(num_frames, num_lags * number, num_pixels) <= limit

    if fits(num_neurons) or 4 * num_lags * num_neurons * num_pixels > limit:
        return 0
    return next((n for n in range(min(COMPONENTS, num_neurons - 1), 0, -1) if fits(n)), 0)


def transformed(responses: np.ndarray, *, square_root: bool) -> np.ndarray:
    """Responses as they are decoded: themselves, or their square roots, float32."""
    responses = np.asarray(responses, np.float32)
    return np.sqrt(np.maximum(responses, 0.0)) if square_root else responses


def _features(responses: np.ndarray, mean: np.ndarray, std: np.ndarray, lag_step: int) -> np.ndarray:
    """Standardised responses, each frame averaged with the `lag_step` - 1 after it; zero beyond the end."""
    standardised = (np.asarray(responses, np.float32) - mean) / std
    if lag_step == 1:
        return standardised
    total = standardised.copy()
    for shift in range(1, lag_step):
        total[: len(total) - shift] += standardised[shift:]
    return total / lag_step


def _apply(features: np.ndarray, weights: np.ndarray, lag_step: int) -> np.ndarray:
    """(time, neuron), (lag, neuron, pixel) -> (time, pixel), without the matrix of all lags."""
    out = np.zeros((len(features), weights.shape[2]), np.float32)
    for lag, w in enumerate(weights):
        start = lag * lag_step
        if start < len(features):
            out[: len(features) - start] += features[start:] @ w
    return out


def _moments(responses: Sequence[np.ndarray], *, square_root: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over all frames; 1 for a neuron that never changes: its feature is 0."""
    seen = lambda r: transformed(r, square_root=square_root)  # noqa: E731 a trial at a time: all roots would fill memory
    count = sum(len(r) for r in responses)
    mean = np.asarray(sum(np.sum(seen(r), axis=0, dtype=np.float64) for r in responses) / count)
    variance = np.asarray(sum(np.square(seen(r) - mean).sum(axis=0) for r in responses) / count)
    changes = variance > 1e-12 * mean**2  # a constant float32 keeps some rounding
    return mean.astype(np.float32), np.where(changes, np.sqrt(variance), 1.0).astype(np.float32)


def _mean_frame(movies: Sequence[np.ndarray]) -> np.ndarray:
    total = sum(np.sum(m, axis=0, dtype=np.float64) for m in movies)
    return np.asarray(total / sum(len(m) for m in movies), np.float32)


def _mean_correlation(truths: Sequence[np.ndarray], decoded: Sequence[np.ndarray]) -> float:
    """Mean over trials of the movie correlation of (time, pixel); trials without contrast don't count."""
    values = [movie_correlation(t[:, None], d[:, None], None) for t, d in zip(truths, decoded, strict=True)]
    values = [v for v in values if np.isfinite(v)]
    if not values:
        raise NeuroreconError(
            "validation_movies: expected contrast in the mask and responses that vary, found constants only"
        )
    return float(np.mean(values))


def _check_responses(name: str, responses: np.ndarray, num_neurons: int | None) -> None:
    shape = np.shape(responses)
    if len(shape) != 2 or 0 in shape or (num_neurons is not None and shape[1] != num_neurons):
        raise NeuroreconError(f"{name}: expected (time, {num_neurons or 'neuron'}), found {shape}")
    if not np.isfinite(responses).all():
        raise NeuroreconError(f"{name}: expected finite responses, found NaN or infinity; cut the padding")


def _check_trials(
    name: str, responses: Sequence[np.ndarray], movies: Sequence[np.ndarray], skip_frames: int
) -> tuple[int, ...]:
    """(neurons, height, width) of the trials."""
    if len(responses) != len(movies) or len(movies) == 0:
        raise NeuroreconError(
            f"{name}: expected at least one, and one for each of {len(responses)} trials of responses, "
            f"found {len(movies)}"
        )
    num_neurons, frame = np.shape(responses[0])[-1], np.shape(movies[0])[1:]
    for i, (r, m) in enumerate(zip(responses, movies, strict=True)):
        _check_responses(f"{name.replace('movies', 'responses')}[{i}]", r, num_neurons)
        if np.shape(m) != (len(r), *frame) or len(frame) != 2 or len(r) <= skip_frames:
            raise NeuroreconError(
                f"{name}[{i}]: expected (time, height, width) with the {len(r)} frames of the responses "
                f"(more than {skip_frames}), found {np.shape(m)}"
            )
        if not np.isfinite(m).all():
            raise NeuroreconError(f"{name}[{i}]: expected finite grey values, found NaN or infinity")
    return (num_neurons, *frame)
