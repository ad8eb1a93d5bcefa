"""The linear part: ridge on square roots of the responses, and its movies of trials that it was not fitted to.

Recorded activity is not negative and its noise grows with it; the square root evens that out (Anscombe 1948). It is
used where no response is negative, otherwise responses enter as they are. A network that corrects the linear movie
must learn from movies as faulty as those that it will see: each training trial is decoded by a ridge decoder fitted to
the other folds.

One frame in `lag_step`, at a phase drawn for each trial, is fitted: features are means over so many frames, so that
the frames between tell little more, and cost as much again each.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from neurorecon.decoders.settings import DecoderSettings
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.linear_decoder import LinearDecoder, fit_linear_decoder, transformed

SELECTION_PIXELS = 32  # of fits whose penalty is given already


@dataclasses.dataclass(frozen=True)
class LinearStage:
    """A fitted linear part.

    Attributes:
      decoder: of features at every `lag_step`-th frame, see `features`.
      square_root: whether responses enter as square roots.
      mean, std: (neuron,) of the (roots of the) training responses.
      lag_step: frames averaged into one feature.
      held_out: for each training trial (time, rows of the box, columns of the box) float16, decoded by a decoder that
        was not fitted to it; none in a stage that was read from a trained decoder.
    """

    decoder: LinearDecoder
    square_root: bool
    mean: np.ndarray
    std: np.ndarray
    lag_step: int
    held_out: tuple[np.ndarray, ...] = ()

    def features(self, responses: np.ndarray) -> np.ndarray:
        """Responses (time, neuron) -> the same, standardised and averaged over the next `lag_step` frames."""
        return _features(transformed(responses, square_root=self.square_root), self.mean, self.std, self.lag_step)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Features (time, neuron) at every frame -> movie (time, height, width), not clipped."""
        return _by_phases(self.decoder, features, self.lag_step)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """For an npz."""
        decoder = {f.name: getattr(self.decoder, f.name) for f in dataclasses.fields(self.decoder)}
        correlations = decoder.pop("validation_correlations")
        arrays = {f"decoder_{k}": np.asarray(v) for k, v in decoder.items()}
        arrays["decoder_candidates"] = np.array(list(correlations.items()), np.float64)
        own = ("square_root", "mean", "std", "lag_step")
        arrays |= {name: np.asarray(getattr(self, name)) for name in own}
        return arrays | {f"held_out_{k}": movie for k, movie in enumerate(self.held_out)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> "LinearStage":
        """From what `to_arrays` gave.

        Raises:
          NeuroreconError: something is missing.
        """
        try:
            plain = ("weights", "offset", "background", "pixels", "response_mean", "response_std")
            decoder = LinearDecoder(
                **{name: np.asarray(arrays[f"decoder_{name}"]) for name in plain},
                num_lags=int(arrays["decoder_num_lags"]),
                lag_step=int(arrays["decoder_lag_step"]),
                penalty=float(arrays["decoder_penalty"]),
                validation_correlations={float(k): float(v) for k, v in arrays["decoder_candidates"]},
                square_root=False,  # `features` takes it
                components=int(arrays.get("decoder_components", 0)),
            )
            count = sum(name.startswith("held_out_") for name in arrays)
            return cls(
                decoder=decoder,
                square_root=bool(arrays["square_root"]),
                mean=np.asarray(arrays["mean"]),
                std=np.asarray(arrays["std"]),
                lag_step=int(arrays["lag_step"]),
                held_out=tuple(np.asarray(arrays[f"held_out_{k}"]) for k in range(count)),
            )
        except KeyError as error:
            raise NeuroreconError(f"convolutional decoder: expected {error} in the file, found none") from None


def fit_linear_stage(
    responses: Sequence[np.ndarray],
    movies: Sequence[np.ndarray],
    validation_responses: Sequence[np.ndarray],
    validation_movies: Sequence[np.ndarray],
    *,
    mask: np.ndarray,
    settings: DecoderSettings,
    seed: int,
    skip_frames: int = 0,
    on_fit: Callable[[int, int], None] | None = None,
) -> LinearStage:
    """Fits the linear decoder, and one for each fold of the training trials.

    Args:
      responses, movies, validation_responses, validation_movies, mask, skip_frames: see `fit_linear_decoder`.
      settings: lags and folds.
      seed: of the phases.
      on_fit: called with the number of fits done and that of all.

    Raises:
      NeuroreconError: see `fit_linear_decoder`; or fewer training trials than folds.
    """
    if len(responses) < settings.folds:
        raise NeuroreconError(
            f"convolutional_decoder.folds: expected at most {len(responses)}, the number of training trials, found "
            f"{settings.folds}"
        )
    root = all(np.min(r) >= 0 for r in (*responses, *validation_responses))
    step = settings.lag_step
    seen = [transformed(r, square_root=root) for r in responses]
    stacked = np.concatenate(seen)
    mean, std = stacked.mean(0, dtype=np.float64), stacked.std(0, dtype=np.float64)
    mean, std = mean.astype(np.float32), np.where(std > 1e-6 * np.abs(mean), std, 1.0).astype(np.float32)
    features = [_features(r, mean, std, step) for r in seen]
    validation = [_features(transformed(r, square_root=root), mean, std, step) for r in validation_responses]
    phases = np.random.default_rng([seed, 1]).integers(step, size=len(features))
    box = box_of(mask, settings.patch)
    fits = settings.folds + 1

    def fitted(trials: Sequence[int], area: tuple[slice, slice] | None, **given: Any) -> LinearDecoder:
        rows, columns = area or (slice(None), slice(None))
        return fit_linear_decoder(
            [features[i][phases[i] :: step] for i in trials],
            [movies[i][phases[i] :: step, rows, columns] for i in trials],
            [x[::step] for x in validation],
            [m[::step, rows, columns] for m in validation_movies],
            num_lags=settings.num_lags // step,
            lag_step=1,
            mask=mask[rows, columns],
            skip_frames=-(-skip_frames // step),
            **given,
        )

    decoder = fitted(range(len(features)), None)
    chosen = "level" if np.ptp(decoder.background) == 0 else "frame"
    held_out: list[np.ndarray] = [np.empty(0)] * len(features)
    for fold in range(settings.folds):
        if on_fit is not None:
            on_fit(fold + 1, fits)
        others = [i for i in range(len(features)) if i % settings.folds != fold]
        of_others = fitted(
            others, box, penalties=(decoder.penalty,), backgrounds=(chosen,), selection_pixels=SELECTION_PIXELS
        )
        for i in range(fold, len(features), settings.folds):
            held_out[i] = _by_phases(of_others, features[i], step).astype(np.float16)
    if on_fit is not None:
        on_fit(fits, fits)
    return LinearStage(decoder, root, mean, std, step, tuple(held_out))


def box_of(mask: np.ndarray, patch: int) -> tuple[slice, slice]:
    """Rows and columns of the smallest box of whole cells around the mask (height, width)."""

    def side(inside: np.ndarray) -> slice:
        found = np.flatnonzero(inside)
        length = -(-(found[-1] + 1 - found[0]) // patch) * patch
        start = max(0, min(int(found[0]), len(inside) - length))
        return slice(start, min(start + length, len(inside)))

    return side(np.asarray(mask.any(1))), side(np.asarray(mask.any(0)))


def _features(transformed: np.ndarray, mean: np.ndarray, std: np.ndarray, step: int) -> np.ndarray:
    """Standardised, each frame averaged with the `step` - 1 after it; the mean, 0, beyond the end."""
    standardised = (transformed - mean) / std
    total = standardised.copy()
    for shift in range(1, step):
        total[: max(len(total) - shift, 0)] += standardised[shift:]
    return total / np.float32(step)


def _by_phases(decoder: LinearDecoder, features: np.ndarray, step: int) -> np.ndarray:
    movie = np.empty((len(features), *decoder.background.shape), np.float32)
    for phase in range(min(step, len(features))):
        movie[phase::step] = decoder.predict(features[phase::step])
    return movie
