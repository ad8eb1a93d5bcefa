"""The resolution test of Bauer et al. (2026): noise and gratings, reconstructed from each encoder's own predictions.

Part of experiments.bauer2026. As published: the mean behaviour throughout, each model inverts the responses that it
itself predicts, movies are averaged over the models and not smoothed. The stimuli are made anew (neurorecon.stimuli),
to the published sizes and rates.
"""

import functools
import math
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from experiments import cli
from experiments.alpha_masks import given_alpha
from experiments.inputs import ensemble_of
from neurorecon import runs
from neurorecon.encoders import predict_trial
from neurorecon.encoders.canvas import crop_from_canvas
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.published_movie_metrics import published_movie_correlation
from neurorecon.files import save_npz
from neurorecon.reconstruction import published_recipe
from neurorecon.reconstruction.reconstruct import reconstruct_clips
from neurorecon.recordings import Recording
from neurorecon.stimuli.gratings import grating
from neurorecon.stimuli.noise import gaussian_noise

NUM_FRAMES = 60
NOISE = ((8, 4), (0, 4))  # length constants in pixels and frames
NOISE_ANIMALS, NOISE_SEEDS = 3, 5  # each seed also with black and white exchanged
GRATINGS = ((0.018, 0), (0.036, 0), (0.071, 0), (0.143, 0), (0.018, 1.875), (0.018, 3.75), (0.018, 7.5))
GRATING_ANIMALS, DIRECTIONS = 1, 4


def stimuli(animal: int, height: int, width: int, limit: int) -> dict[tuple[str, int], np.ndarray]:
    """(name, repeat) -> (time, height, width), those that an animal is shown.

    Args:
      animal: its place among the recordings.
      limit: of the repeats of each; 0 for none.
    """
    sizes = {"num_frames": NUM_FRAMES, "height": height, "width": width}
    made: dict[tuple[str, int], np.ndarray] = {}
    if animal < NOISE_ANIMALS:
        for space, frames in NOISE:
            for seed in range(NOISE_SEEDS):
                movie = gaussian_noise(seed, spatial_sigma=space, temporal_sigma=frames, **sizes)
                made[f"noise_{space}_{frames}", 2 * seed] = movie
                made[f"noise_{space}_{frames}", 2 * seed + 1] = 255 - movie
    if animal < GRATING_ANIMALS:
        for space_rate, time_rate in GRATINGS:
            for turn in range(DIRECTIONS):
                movie = grating(
                    spatial_frequency=space_rate,
                    temporal_frequency=time_rate,
                    direction=turn * 2 * math.pi / DIRECTIONS,
                    **sizes,
                )
                made[f"grating_{space_rate}_{time_rate}", turn] = movie
    return {(name, repeat): movie for (name, repeat), movie in made.items() if not limit or repeat < limit}


def mean_behaviour(recording: Recording) -> np.ndarray:
    """(4,) as published: the largest over time of the stored means; the mean over frames where none are stored."""
    means = [recording.statistics(kind).get("mean") for kind in ("behavior", "pupil_center")]
    if any(mean is None or mean.ndim != 2 or len(mean) != 2 for mean in means):
        return recording.behaviour_mean()
    return np.nanmax(np.concatenate(means), axis=1).astype(np.float32)  # type: ignore[arg-type]


def score_stimuli(
    config: ml_collections.ConfigDict, folder: Path, recordings: list[Recording]
) -> dict[str, dict[str, dict[str, float]]]:
    """animal -> repeat -> stimulus -> movie correlation inside alpha >= 1; reconstructs what is not there yet.

    Movies go to `folder`/stimuli/ANIMAL/MODEL.npz, all of an animal and model in one.

    Raises:
      NeuroreconError: no masks are known yet, or a descent that is not finite.
    """
    scores: dict[str, dict[str, dict[str, float]]] = {}
    ensemble = functools.cache(lambda: ensemble_of(cli.listed(config.encoders)))
    settings = {"num_steps": config.num_steps, "max_clips": config.max_clips, "encoders": config.encoders}
    settings |= {"published_recipe": config.published_recipe.to_dict(), "mask": config.mask.to_dict()}
    runs.claim(folder / "stimuli", config.to_dict() | settings, "stimuli", tuple(settings))
    for index, recording in enumerate(recordings):
        shown = stimuli(index, *recording.frame_shape, config.max_clips)
        if not shown:
            continue
        alpha = _alpha(config, folder, recording.name, index)
        mask = crop_from_canvas(alpha, recording.frame_shape) >= 1
        movies = []
        for model in range(config.num_models):
            path = folder / "stimuli" / recording.name / f"{model}.npz"
            if not path.is_file():
                print(f"stimuli: {recording.name}, model {model + 1} of {config.num_models}, {len(shown)} movies")
                member, readout = ensemble().members[model], ensemble().readout(recording, index)
                save_npz(path, movies=_reconstructed(config, recording, member, readout, list(shown.values()), alpha))
            movies.append(runs.load_arrays(path)["movies"][:, config.skip_frames :].astype(np.float64))
        found: dict[str, dict[str, float]] = {}
        for (name, repeat), truth, movie in zip(shown, shown.values(), np.mean(movies, 0)):
            value = published_movie_correlation(truth[config.skip_frames :], movie, mask)
            found.setdefault(str(repeat), {})[name] = value
        scores[recording.name] = found
    return scores


def _reconstructed(
    config: ml_collections.ConfigDict,
    recording: Recording,
    member: tuple[Any, Any],
    readout: int,
    shown: list[np.ndarray],
    alpha: np.ndarray,
) -> np.ndarray:
    """(stimulus, time, height, width) from the encoder's own predictions."""
    encoder, variables = member
    behaviour = np.tile(mean_behaviour(recording), (NUM_FRAMES, 1))
    responses = [predict_trial(encoder, variables, movie, behaviour, readout=readout) for movie in shown]
    changes = config.published_recipe.to_dict() | {"smoothing": 0.0}
    result = reconstruct_clips(
        [member],
        np.stack(responses),
        np.stack([behaviour] * len(shown)),
        recipe=published_recipe(**changes),
        key=jax.random.key(config.seed),
        update_mask=alpha >= config.mask.update_threshold,
        readout=readout,
        num_steps=config.num_steps or None,
        steps_per_call=config.steps_per_call,
        window_chunk=config.window_chunk or None,
        memory_gib=config.memory_gib,
        precision=config.precision,
        parallel=False,  # one stimulus after another: bounds memory
    )
    return result.movie


def _alpha(config: ml_collections.ConfigDict, folder: Path, name: str, index: int) -> np.ndarray:
    path = folder / "masks" / f"{name}.npz"
    if path.is_file():
        return runs.load_arrays(path)["alpha"]
    if config.mask.files:
        return given_alpha(Path(config.mask.files), name, index)
    raise NeuroreconError(f"{path}: no such file; run --config.variants=standard first, or give --config.mask.files")
