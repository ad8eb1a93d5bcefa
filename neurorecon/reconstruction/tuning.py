"""Chooses the strengths of the default recipe by the movies of validation clips.

The search walks along one setting at a time and takes a step only where the paired 95 % interval of its gain over the
same clips lies above zero. The true movies stay with the caller, as functions that score.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.evaluation import bootstrap_difference
from neurorecon.reconstruction.likelihoods import fit_likelihood
from neurorecon.reconstruction.losses import scaled
from neurorecon.reconstruction.recipes import adam_at, default_recipe
from neurorecon.reconstruction.reconstruct import reconstruct_clips

Settings = Mapping[str, Any]
ORDERED = ("likelihood_weight", "learning_rate", "num_steps")  # walked along; of the others every value is tried


class Clip(NamedTuple):
    """A validation clip.

    Attributes:
      responses: (time, neuron).
      behaviour: (time, 4).
      prediction: (time, neuron) of the encoders for the true movie.
      score: movie (time, height, width) -> its score, which knows the true movie.
      baseline: (time, height, width) grey values, a decoder's movie of the clip: the prior's mean where `prior_mean`
        is 0. None: that is `prior_mean`.
    """

    responses: np.ndarray
    behaviour: np.ndarray
    prediction: np.ndarray
    score: Callable[[np.ndarray], float]
    baseline: np.ndarray | None = None


class Tried(NamedTuple):
    """Settings and the (clip,) scores under them."""

    settings: dict[str, Any]
    scores: list[float]


class Tuning(NamedTuple):
    """The settings chosen, their scores, and all that were tried, the first as they were given."""

    best: Tried
    tried: list[Tried]


def clip_scorer(
    encoders: Sequence[tuple[Any, Any]],
    clips: Sequence[Clip],
    *,
    spectra: Mapping[str, Callable[[tuple[int, int, int]], np.ndarray]],
    prior_mean: float,
    key: jax.Array,
    skip_frames: int,
    readout: int = 0,
    update_mask: np.ndarray | None = None,
) -> Callable[[Settings], list[float]]:
    """settings -> (clip,) scores; settings that differ in numbers alone, `num_steps` excepted, compile nothing.

    Likelihoods are fitted to one half of the clips for the other, so that one with more parameters has no advantage.

    Args:
      encoders: of one frame step, by which the likelihood's weight is divided, see `config.default_recipe`.
      clips: of equal length, two at least, which encoders and prior were not fitted to.
      spectra: name -> prior variance of the cosine coefficients, as `default_recipe` takes it.
      prior_mean: grey value, to which a clip's `baseline` is added.
      key: of every reconstruction.
      skip_frames: at the start of each clip, which encoders can't know.
      readout, update_mask: as in `reconstruct_clips`.

    Raises:
      NeuroreconError: fewer than two clips, of unequal length, or encoders of different frame steps.
    """
    steps = {encoder.frame_step for encoder, _ in encoders}
    if len(clips) < 2 or len({len(clip.responses) for clip in clips}) > 1 or len(steps) > 1:
        raise NeuroreconError(
            f"clip_scorer: expected two or more clips of equal length and encoders of one frame step, found "
            f"{[len(clip.responses) for clip in clips]} frames and steps {sorted(steps)}"
        )
    halves = (range(0, len(clips), 2), range(1, len(clips), 2))
    fitted: dict[tuple[str, int], Any] = {}

    def score(settings: Settings) -> list[float]:
        scores = np.zeros(len(clips))
        for half, places in enumerate(halves):
            name = settings["likelihood"]
            if (name, half) not in fitted:
                others = [clips[i] for i in halves[1 - half]]
                fitted[name, half] = fit_likelihood(
                    name,
                    [c.prediction[skip_frames:] for c in others],
                    [c.responses[skip_frames:] for c in others],
                    frame_step=min(steps),
                )
            recipe = default_recipe(
                power=spectra[settings["spectrum"]],
                prior_mean=prior_mean,
                losses={name: (1.0, scaled(fitted[name, half], settings["likelihood_weight"] / min(steps)))},
                update=adam_at(settings["learning_rate"]),
                num_steps=int(settings["num_steps"]),
            )
            for i in places:  # one by one: both halves have one shape, whatever the number of clips
                found = reconstruct_clips(
                    encoders,
                    clips[i].responses[None],
                    clips[i].behaviour[None],
                    recipe=recipe,
                    key=key,
                    baseline=None if (known := clips[i].baseline) is None else known[None],
                    readout=readout,
                    update_mask=update_mask,
                )
                scores[i] = clips[i].score(found.movie[0])
        return [float(s) for s in scores]

    return score


def tune(
    score: Callable[[Settings], list[float]],
    start: Settings,
    grids: Mapping[str, Sequence[Any]],
    *,
    rounds: int = 2,
    seed: int = 0,
) -> Tuning:
    """Coordinate search from `start`.

    Args:
      score: settings -> (clip,) scores, the same clips each time. A likelihood is judged at the best of its weights.
      start: a value for each name.
      grids: name -> values to try; of `ORDERED` names neighbours are tried, going on while it gets better.
      rounds: through all names at most; ends where one changes nothing.
      seed: of the intervals.

    Raises:
      NeuroreconError: a grid without a start.
    """
    for name in grids:
        if name not in start:
            raise NeuroreconError(f"tune, {name}: expected a value to start from, found one of {sorted(start)} alone")
    known: dict[str, Tried] = {}

    def tried(settings: Settings) -> Tried:
        name = repr(sorted(settings.items()))
        if name not in known:
            known[name] = Tried(dict(settings), list(score(settings)))
        return known[name]

    def better(new: Tried, old: Tried) -> bool:
        gain = bootstrap_difference(new.scores, old.scores, seed=seed)
        return gain.mean > 0 and (gain.low > 0 if np.isfinite(gain.low) else False)

    def walked(best: Tried, name: str) -> Tried:
        values = sorted({*grids.get(name, ()), best.settings[name]})
        for direction in (1, -1):
            place = values.index(best.settings[name]) + direction
            while 0 <= place < len(values):
                new = tried({**best.settings, name: values[place]})
                if not better(new, best):
                    break
                best, place = new, place + direction
        return best

    best = tried(start)
    for _ in range(rounds):
        before = best
        for name in grids:
            if name in ORDERED:
                best = walked(best, name)
                continue
            for value in grids[name]:
                if value == best.settings[name]:
                    continue
                new = tried({**best.settings, name: value})
                if name == "likelihood":  # its own weight, before it is compared
                    new = walked(new, "likelihood_weight")
                if better(new, best):
                    best = new
        if best is before:
            break
    return Tuning(best, list(known.values()))
