"""An amortised decoder: a linear decoder, and a convolutional network that corrects its movie.

A network trained once gives a movie from responses in a fraction of a second (MEIcoder, 2025, and others); it sees no
encoder. Here it starts as the linear decoder, see `linear_stage`, whose movie it corrects inside the mask from that
movie and the neurons' activity put back to their places. Early stopping on the validation trials counts the linear
movie as the first candidate, so that it stays where the network finds nothing to add.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter

from neurorecon.decoders.fitting import DecoderState, Trials, corrected, descend, initial_decoder_state, score
from neurorecon.decoders.linear_stage import LinearStage, box_of, fit_linear_stage
from neurorecon.decoders.network import Correction
from neurorecon.decoders.settings import DecoderSettings, check_decoder_settings
from neurorecon.errors import NeuroreconError
from neurorecon.files import save_npz

_PARAMETER = "parameter/"
DEFAULTS = DecoderSettings()


@dataclasses.dataclass(frozen=True)
class ConvolutionalDecoder:
    """A trained decoder.

    Attributes:
      settings: how it was built.
      stage: its linear part.
      params: of the network.
      mask: (height, width) bool, where movies are corrected; elsewhere they are the linear part's.
      scale: grey values, standard deviation of the training movies in the mask.
      linear_correlation, validation_correlation: movie correlation in the mask, mean over validation trials, of the
        linear part and of the corrected movie, at one frame in `lag_step`.
    """

    settings: DecoderSettings
    stage: LinearStage
    params: Any
    mask: np.ndarray
    scale: float
    linear_correlation: float
    validation_correlation: float

    @property
    def uninformative(self) -> np.ndarray:
        """(neuron,) the response of each whose feature is 0."""
        return np.square(self.stage.mean) if self.stage.square_root else self.stage.mean

    def predict(self, responses: np.ndarray) -> np.ndarray:
        """Responses (time, neuron) of one trial -> movie (time, height, width) float32, not clipped.

        Raises:
          NeuroreconError: another number of neurons, or NaN or infinity.
        """
        neurons = len(self.stage.mean)
        if np.ndim(responses) != 2 or np.shape(responses)[1] != neurons or not len(responses):
            raise NeuroreconError(f"responses: expected (time, {neurons}), found {np.shape(responses)}")
        if not np.isfinite(responses).all():
            raise NeuroreconError("responses: expected finite numbers, found NaN or infinity; cut the padding")
        activity = self.stage.features(responses)
        movie = self.stage.predict(activity)
        rows, columns = box_of(self.mask, self.settings.patch)
        network = _network(self.settings, movie[:, rows, columns].shape[1:])
        linear = (movie[:, rows, columns] - _level(self.stage)) / np.float32(self.scale)
        better = corrected(network, self.params, linear, activity, self.settings.lag_step)
        movie[:, self.mask] = (better * np.float32(self.scale) + _level(self.stage))[:, self.mask[rows, columns]]
        return movie

    def save(self, path: str | os.PathLike) -> None:
        """Writes one npz, atomically."""
        flat = jax.tree_util.tree_flatten_with_path(self.params)[0]
        arrays = {_PARAMETER + "/".join(k.key for k in keys): np.asarray(x) for keys, x in flat}
        stage = dataclasses.replace(self.stage, held_out=()).to_arrays()
        own = ("mask", "scale", "linear_correlation", "validation_correlation")
        numbers = {name: getattr(self, name) for name in own}
        save_npz(path, settings=json.dumps(dataclasses.asdict(self.settings)), **stage, **numbers, **arrays)


def load_decoder(path: str | os.PathLike) -> ConvolutionalDecoder:
    """Reads what `ConvolutionalDecoder.save` wrote.

    Raises:
      NeuroreconError: it is missing or damaged.
    """
    if not Path(path).is_file():
        raise NeuroreconError(f"{path}: expected a convolutional decoder, found no file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        values: dict[str, Any] = json.loads(str(arrays["settings"]))
        values["dilations"] = tuple(values["dilations"])
        params: dict[str, Any] = {}
        for name, value in arrays.items():
            if name.startswith(_PARAMETER):
                *inner, last = name.removeprefix(_PARAMETER).split("/")
                node = params
                for part in inner:
                    node = node.setdefault(part, {})
                node[last] = jnp.asarray(value)
        return ConvolutionalDecoder(
            settings=DecoderSettings(**values),
            stage=LinearStage.from_arrays(arrays),
            params=params,
            mask=arrays["mask"],
            scale=float(arrays["scale"]),
            linear_correlation=float(arrays["linear_correlation"]),
            validation_correlation=float(arrays["validation_correlation"]),
        )
    except Exception as error:  # zip, zlib, header and key errors all mean the same here
        line = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise NeuroreconError(f"{path}: damaged ({line[0][:120]}); remove it and run the same command again") from error


def fit_convolutional_decoder(
    responses: Sequence[np.ndarray],
    movies: Sequence[np.ndarray],
    validation_responses: Sequence[np.ndarray],
    validation_movies: Sequence[np.ndarray],
    *,
    mask: np.ndarray,
    seed: int,
    settings: DecoderSettings = DEFAULTS,
    skip_frames: int = 0,
    stage: LinearStage | None = None,
    restored: Callable[[DecoderState], DecoderState] | None = None,
    on_step: Callable[[DecoderState, dict[str, Any]], None] | None = None,
) -> ConvolutionalDecoder:
    """Trains the decoder; the same arguments give the same decoder, also where it goes on from a stored state.

    Args:
      responses: training trials, (time, neuron) each.
      movies: their movies, (time, height, width) each.
      validation_responses, validation_movies: trials that choose the penalty and the moment to stop, never fitted.
      mask: (height, width) bool, where movies are corrected, scored and the loss is taken.
      seed: of everything random.
      settings: see `DecoderSettings`.
      skip_frames: frames at the start of every validation trial that don't count in the choices.
      stage: the linear part, fitted before to the same trials by `fit_linear_stage`; None: fits it.
      restored: gives the state to go on from, given the initial one.
      on_step: called after each step with the state and what there is to log; the state's buffers are given away by the
        next step, so copy what is kept.

    Raises:
      NeuroreconError: trials that don't match, see `fit_linear_decoder`, bad settings, or a loss that is not finite.
    """
    check_decoder_settings(settings)
    frame = np.shape(movies[0])[1:] if len(movies) else ()
    mask = np.asarray(mask)
    if mask.shape != frame or mask.dtype != bool or not mask.any():
        raise NeuroreconError(f"mask: expected booleans {frame}, some true, found {mask.dtype} {mask.shape}")
    if stage is None:
        stage = fit_linear_stage(
            responses,
            movies,
            validation_responses,
            validation_movies,
            mask=mask,
            settings=settings,
            seed=seed,
            skip_frames=skip_frames,
        )
    if len(stage.held_out) != len(movies):
        raise NeuroreconError(f"stage: expected one of these {len(movies)} trials, found {len(stage.held_out)}")
    rows, columns = box_of(mask, settings.patch)
    inside, level = mask[rows, columns], _level(stage)
    scale = float(np.sqrt(np.mean([np.square(m[:, mask] - level).mean() for m in movies])))
    if not scale > 0:
        raise NeuroreconError("movies: expected contrast in the mask, found a constant")

    def trials_of(linear: Sequence[np.ndarray], activity: list[np.ndarray], truth: Sequence[np.ndarray]) -> Trials:
        def scaled(x: np.ndarray) -> np.ndarray:
            return ((np.asarray(x, np.float32) - level) / np.float32(scale)).astype(np.float16)

        return Trials([scaled(x) for x in linear], activity, [scaled(x[:, rows, columns]) for x in truth])

    seen = trials_of(stage.held_out, [stage.features(r) for r in responses], movies)
    activity = [stage.features(r) for r in validation_responses]
    decoded = [stage.predict(a)[:, rows, columns] for a in activity]
    chosen_by = trials_of(decoded, activity, validation_movies)
    network = _network(settings, inside.shape)
    state = initial_decoder_state(
        network, _positions(stage, mask, settings.patch), settings, box=inside.shape, seed=seed
    )
    if restored is not None:
        state = restored(state)
    state = descend(
        network,
        seen,
        chosen_by,
        settings,
        mask=inside,
        seed=seed,
        state=state,
        skip_frames=skip_frames,
        on_step=on_step,
    )
    return ConvolutionalDecoder(
        settings=settings,
        stage=dataclasses.replace(stage, held_out=()),
        params=state.best,
        mask=mask,
        scale=scale,
        linear_correlation=score(chosen_by, chosen_by.linear, inside, settings.lag_step, skip_frames),
        validation_correlation=float(state.best_score),
    )


def _network(settings: DecoderSettings, box: tuple[int, ...]) -> Correction:
    return Correction(
        cells=(-(-box[0] // settings.patch), -(-box[1] // settings.patch)),
        num_lags=settings.num_lags // settings.lag_step,
        patch=settings.patch,
        features=settings.features,
        maps=settings.maps,
        dilations=settings.dilations,
        temporal_taps=settings.temporal_taps,
        dropout=settings.dropout,
    )


def _level(stage: LinearStage) -> np.float32:
    """The grey value that stands for nothing decoded."""
    return np.float32(stage.decoder.background.mean())


def _positions(stage: LinearStage, mask: np.ndarray, patch: int) -> np.ndarray:
    """(neuron, 2) in cells of the box: where each neuron's linear weights are strongest, a first guess of its field."""
    rows, columns = box_of(mask, patch)
    energy = np.square(stage.decoder.weights).sum(0)
    maps = np.zeros((len(energy), *mask.shape), np.float32)
    maps[:, stage.decoder.pixels] = energy
    maps = gaussian_filter(maps, (0, 1.5, 1.5))[:, rows, columns]
    peak = maps.reshape(len(maps), -1).argmax(1)
    return np.stack(np.divmod(peak, maps.shape[2]), 1).astype(np.float32) / patch
