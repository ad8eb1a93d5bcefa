"""Which trials are fitted, and the batches of each step."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.recordings import Recording
from neurorecon.recordings.prepared import PreparedRecording, Windows
from neurorecon.training.objective import cutmix, mixup, published_boxes
from neurorecon.training.settings import TrainingSettings

Encoder = Any


def draw_batches(
    encoder: Encoder,
    recordings: Sequence[PreparedRecording],
    windows: Sequence[np.ndarray],
    settings: TrainingSettings,
    *,
    num_models: int,
    seed: int,
    step: int,
    models: range | None = None,
    rows: range | None = None,
) -> list[tuple[np.ndarray, ...]]:
    """The batches of one step, the same whenever it is asked for.

    Args:
      encoder, recordings, settings: see `train`.
      windows: for each animal those to draw from, (window, 2), see `PreparedRecording.windows`.
      num_models, seed, step: see `train`.
      models, rows: the part of the batch that is asked for, models and windows of it, all by default; no more is read
        from the recordings than it needs.

    Returns:
      For each animal (stimulus, responses, behaviour), each (model, window, time, ...); with published CutMix also the
      boxes (model, window, 4), where the next window's inputs go: responses are mixed, inputs not yet.
    """
    batches = []
    for animal, (recording, legal) in enumerate(zip(recordings, windows)):
        parts = []
        for model in range(num_models) if models is None else models:
            rng = np.random.default_rng([seed, step, animal, model])
            chosen = legal[rng.integers(len(legal), size=settings.batch_size)]
            if rows is None or len(rows) == settings.batch_size:
                places = np.arange(settings.batch_size)
            else:
                # Windows are mixed with the one before them, for the first the last.
                mixing = settings.cutmix_probability > 0 or settings.mixup_probability > 0
                places = np.array([*([(rows[0] - 1) % settings.batch_size] if mixing else []), *rows])
            batch = recording.gather(chosen[places], encoder.window_frames, encoder.frame_step, raw=True)
            mixed = _mixed(batch, places, rng, encoder, settings)
            parts.append(tuple(x[-len(rows) :] if rows is not None else x for x in mixed))
        batches.append(tuple(np.stack(arrays) for arrays in zip(*parts)))
    return batches


def _mixed(
    batch: Windows, places: np.ndarray, rng: np.random.Generator, encoder: Encoder, settings: TrainingSettings
) -> tuple[np.ndarray, ...]:
    """Mixes windows with their neighbours; `places` says which windows of the whole batch these are."""
    stimulus, responses, behaviour = batch
    boxes: tuple[np.ndarray, ...] = ()
    if settings.cutmix_variant == "published":
        part = len(places) < settings.batch_size
        if part:  # the draws are those of the whole batch; what is not here stays 0
            here, responses = responses, np.zeros((settings.batch_size, *responses.shape[1:]), responses.dtype)
            responses[places] = here
        cut, responses = published_boxes(responses, rng, settings.cutmix_probability, encoder.canvas)
        alone = not cut.any()
        if part:
            cut, responses = cut[places], responses[places]
        boxes = (cut,)
    else:
        stimulus, responses, behaviour = cutmix(stimulus, responses, behaviour, rng, settings.cutmix_probability)
        alone = stimulus is batch.stimulus
    if settings.mixup_probability > 0 and alone:
        stimulus, responses, behaviour = mixup(stimulus, responses, behaviour, rng, settings.mixup_probability)
    return (stimulus, responses, behaviour, *boxes)


def split_trials(
    recording: PreparedRecording | Recording, *, validation_tier: str, num_validation: int
) -> tuple[list[str], list[str]]:
    """Ids of the trials to fit and of those to validate on.

    With `validation_tier` "train", `num_validation` trials spread evenly over the training tier are held out from
    fitting; otherwise the first ones of that tier are used.

    Raises:
      NeuroreconError: no trial is left to fit or to validate on.
    """
    training = recording.trial_ids("train")
    if num_validation < 1:
        raise NeuroreconError(f"validation_trials: expected at least 1, found {num_validation}")
    if validation_tier != "train":
        return training, recording.trial_ids(validation_tier)[:num_validation]
    if len(training) <= num_validation:
        raise NeuroreconError(
            f"{recording.name}: expected more than {num_validation} training trials, since so many are held out for "
            f"validation, found {len(training)}; lower validation_trials"
        )
    held_out = {training[int((k + 0.5) * len(training) / num_validation)] for k in range(num_validation)}
    return [i for i in training if i not in held_out], [i for i in training if i in held_out]
