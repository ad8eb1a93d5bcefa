"""A simulated animal: its population, how it is imaged, and trials that can be made one by one."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

from neurorecon.errors import NeuroreconError
from neurorecon.recordings.trial import TIERS, Trial
from neurorecon.simulation.behaviour import simulate_behaviour
from neurorecon.simulation.calcium import Imaging, expected_responses, make_imaging, sample_responses
from neurorecon.simulation.cortex import Population, expected_rate, make_population
from neurorecon.simulation.filters import Patch
from neurorecon.stimuli.natural import natural_movie


@dataclasses.dataclass(frozen=True)
class SimulatedTrial:
    """Attributes: responses, expected (time, neuron) float32; behaviour (time, 4) float32."""

    responses: np.ndarray
    expected: np.ndarray
    behaviour: np.ndarray


@dataclasses.dataclass(frozen=True)
class Animal:
    """Attributes: name, seed, population, imaging."""

    name: str
    seed: int
    population: Population
    imaging: Imaging


def make_animal(
    seed: int,
    *,
    num_neurons: int = 1000,
    height: int = 36,
    width: int = 64,
    frame_rate: float = 30.0,
    patch: Patch | None = None,
    name: str | None = None,
) -> Animal:
    """Draws an animal; arguments as `make_population`. The name defaults to "simulated" and the seed."""
    population = make_population(
        seed, num_neurons=num_neurons, height=height, width=width, frame_rate=frame_rate, patch=patch
    )
    imaging = make_imaging(seed, num_neurons=num_neurons, frame_rate=frame_rate)
    return Animal(name or f"simulated{seed}", seed, population, imaging)


def simulate_trial(
    animal: Animal,
    movie: np.ndarray,
    *,
    seed: int,
    noise_level: float = 1.0,
    behaviour: np.ndarray | None = None,
) -> SimulatedTrial:
    """Shows one movie once.

    Args:
      movie: (time, height, width), grey values 0..255.
      seed: of behaviour and noise; another seed is another repeat.
      noise_level: scales the variance of all noise; 1 is like the recordings, 0 is none.
      behaviour: (time, 4), drawn where not given.

    Returns:
      responses, their expectation over noise given movie and behaviour, and the behaviour.

    Raises:
      NeuroreconError: a negative noise level, or a movie or behaviour of the wrong shape.
    """
    if not 0 <= noise_level < float("inf"):
        raise NeuroreconError(f"noise_level: expected 0 or more, found {noise_level}; 1 is like the recordings")
    rng = np.random.default_rng([0x747269, seed])
    drawn = simulate_behaviour(rng, len(movie), animal.population.frame_rate)
    behaviour = drawn if behaviour is None else np.asarray(behaviour, np.float32)
    rate = expected_rate(animal.population, movie, behaviour)
    expected = expected_responses(animal.imaging, rate, noise_level=noise_level)
    responses = sample_responses(animal.imaging, rate, rng, noise_level=noise_level)
    return SimulatedTrial(responses, expected, behaviour)


@dataclasses.dataclass(frozen=True)
class PlannedTrial:
    """One trial before it is simulated: `index` counts from 0, `clip` and `repeat` within the tier."""

    index: int
    tier: str
    clip: int
    repeat: int


def plan_trials(num_clips: Mapping[str, int], num_repeats: Mapping[str, int] | None = None) -> list[PlannedTrial]:
    """The order of the trials: tier by tier as given, clip by clip, repeat by repeat.

    Args:
      num_clips: tier -> number of different movies, such as {"train": 100, "oracle": 10}.
      num_repeats: tier -> how often each of its movies is shown; 1 where not given.

    Raises:
      NeuroreconError: an unknown tier or a count below 0 (below 1 for repeats).
    """
    repeats = dict(num_repeats or {})
    for tier in [*num_clips, *repeats]:
        if tier not in TIERS or tier not in num_clips:
            known = ", ".join(TIERS if tier not in TIERS else num_clips)
            raise NeuroreconError(f"tier {tier}: expected one of {known}; correct the name")
        if num_clips[tier] < 0 or repeats.get(tier, 1) < 1:
            raise NeuroreconError(f"tier {tier}: expected 0 or more clips and 1 or more repeats; correct the counts")
    keys = [
        (tier, clip, repeat)
        for tier, count in num_clips.items()
        for clip in range(count)
        for repeat in range(repeats.get(tier, 1))
    ]
    return [PlannedTrial(index, *key) for index, key in enumerate(keys)]


def derived_seed(seed: int, *key: str | int) -> int:
    """A seed of 62 bits from a seed and a key; in practice no two keys share one."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 2


def simulate_planned(
    animal: Animal, planned: PlannedTrial, *, num_frames: int = 300, noise_level: float = 1.0
) -> tuple[Trial, np.ndarray]:
    """One trial of the plan and its expected responses (time, neuron).

    The movie depends on (animal seed, tier, clip), behaviour and noise on (animal seed, tier, clip, repeat):
    any trial can be made alone.
    """
    clip_key = (planned.tier, planned.clip)
    movie = natural_movie(
        derived_seed(animal.seed, "movie", *clip_key),
        num_frames=num_frames,
        height=animal.population.height,
        width=animal.population.width,
        frame_rate=animal.population.frame_rate,
    )
    seed = derived_seed(animal.seed, "trial", *clip_key, planned.repeat)
    shown = simulate_trial(animal, movie, seed=seed, noise_level=noise_level)
    trial = Trial(
        id=str(planned.index),
        animal=animal.name,
        tier=planned.tier,
        stimulus=movie,
        responses=shown.responses,
        behaviour=shown.behaviour,
    )
    return trial, shown.expected


def simulate_animal(
    seed: int,
    *,
    num_clips: Mapping[str, int],
    num_repeats: Mapping[str, int] | None = None,
    num_neurons: int = 1000,
    num_frames: int = 300,
    height: int = 36,
    width: int = 64,
    frame_rate: float = 30.0,
    noise_level: float = 1.0,
    patch: Patch | None = None,
    name: str | None = None,
    skip: int = 0,
) -> Iterator[tuple[Trial, np.ndarray]]:
    """All trials of one animal in the order of `plan_trials`, with their expected responses (time, neuron).

    Args:
      num_clips, num_repeats: per tier, see `plan_trials`.
      skip: leaves out so many trials at the start, to go on where a run stopped; the others are the same.
      Others as `make_animal` and `simulate_trial`.
    """
    plan = plan_trials(num_clips, num_repeats)
    animal = make_animal(
        seed,
        num_neurons=num_neurons,
        height=height,
        width=width,
        frame_rate=frame_rate,
        patch=patch,
        name=name,
    )
    return (
        simulate_planned(animal, planned, num_frames=num_frames, noise_level=noise_level) for planned in plan[skip:]
    )
