"""Simulated animals for `benchmarks.quality`: natural movies to learn from, and clips of other kinds to be tested on.

Trials of the tier "oracle" show natural movies of unseen seeds, those of "final_test_bonus" what no training movie is
like: drifting gratings, Gaussian noise, and filmed clips where a folder of them is given. Each is shown twice. And one
animal that is not simulated: a salamander's retina.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from tqdm import tqdm

from neurorecon.errors import NeuroreconError
from neurorecon.files import read_json, save_json
from neurorecon.recordings import Trial, import_arrays, parse_splits, write_sensorium
from neurorecon.simulation.animal import Animal, derived_seed, make_animal, simulate_trial
from neurorecon.stimuli.gratings import grating
from neurorecon.stimuli.natural import natural_movie
from neurorecon.stimuli.noise import gaussian_noise

REPEATS = 2  # the second tells whether a movie was fitted to the noise of the first
OTHER_KINDS = ("grating", "noise", "filmed")


@dataclasses.dataclass(frozen=True)
class Screen:
    """Attributes: height, width in pixels; frame_rate in Hz; num_frames of a clip."""

    height: int
    width: int
    frame_rate: float
    num_frames: int

    @property
    def degrees_per_pixel(self) -> float:
        return 3.4 * 36 / self.height  # the same field of view at any number of pixels


@dataclasses.dataclass(frozen=True)
class Shown:
    """One trial: which kind of clip, its number within the kind, and which showing of it."""

    trial: str
    kind: str
    clip: int
    repeat: int


def filmed_clips(folder: Path, screen: Screen, most: int) -> list[np.ndarray]:
    """The first `most` films of a folder, by name, from a third of their length on: (time, height, width) grey values.

    Films shorter than a clip after that are left out.

    Raises:
      NeuroreconError: a folder without any film that is long enough.
    """
    clips: list[np.ndarray] = []
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".mp4", ".mkv", ".gif", ".avi", ".mov")):
        if len(clips) == most:
            break
        scale = f"fps={screen.frame_rate},scale={screen.width}:{screen.height}:flags=area"
        frames = imageio_ffmpeg.read_frames(
            str(path),
            pix_fmt="gray",
            bits_per_pixel=8,
            output_params=["-vf", scale, "-s", f"{screen.width}x{screen.height}"],
        )
        next(frames)  # what is known of the film
        film = [np.frombuffer(frame, np.uint8).reshape(screen.height, screen.width) for frame in frames]
        start = min(len(film) // 3, len(film) - screen.num_frames)
        if start >= 0:
            clips.append(np.stack(film[start : start + screen.num_frames]).astype(np.float32))
    if not clips:
        raise NeuroreconError(f"{folder}: expected films of at least {screen.num_frames} frames, found none")
    return clips


def make_tree(
    folder: Path,
    *,
    seed: int,
    num_neurons: int,
    noise_level: float,
    screen: Screen,
    num_train: int,
    num_clips: int,
    num_others: int,
    films: Path | None,
) -> tuple[Path, list[Shown]]:
    """Writes the recording `folder`/recordings/mouse and `folder`/shown.json, if they aren't there.

    Args:
      folder: of this animal.
      seed: of everything that is drawn.
      num_neurons, noise_level: of the animal, see `neurorecon.simulation`.
      screen: of all movies.
      num_train: natural movies to learn from.
      num_clips: unseen natural movies.
      num_others: clips of each of the other kinds.
      films: a folder of filmed clips; None: without that kind.

    Returns:
      The tree, and what each test trial shows.

    Raises:
      NeuroreconError: the folder can't be written, or holds no films.
    """
    tree, listing = folder / "recordings" / "mouse", folder / "shown.json"
    if not tree.exists():
        animal = make_animal(
            seed,
            num_neurons=num_neurons,
            height=screen.height,
            width=screen.width,
            frame_rate=screen.frame_rate,
            name="mouse",
        )
        movies = list(_test_movies(animal, screen, num_clips, num_others, films))
        total = num_train + REPEATS * len(movies)
        shown = [
            Shown(str(num_train + REPEATS * place + repeat), kind, clip, repeat)
            for place, (kind, clip, _) in enumerate(movies)
            for repeat in range(REPEATS)
        ]
        save_json(listing, [dataclasses.asdict(s) for s in shown])
        trials = tqdm(_trials(animal, screen, noise_level, num_train, movies), "simulate", total, unit="trial")
        write_sensorium(tree, trials, frame_rate=screen.frame_rate, extra={"simulated": True, "seed": seed})
    return tree, [Shown(**values) for values in read_json(listing)]


def salamander_tree(data: Path, folder: Path) -> Path:
    """Writes `folder`/recordings/salamander, cut as experiments/configs/salamander.py says, if it isn't there.

    Raises:
      NeuroreconError: `data` does not hold the recording.
    """
    tree = folder / "recordings" / "salamander"
    if not tree.exists():
        import_arrays(
            tree,
            stimulus=data / "stim_crop80x80_bits_36000x800.npy",
            responses=data / "spikecounts_177x36000_u8.npy",
            stimulus_axes="time,width,height",
            response_axes="neuron,time",
            packed_bits_shape=(80, 80),
            pool=4,
            frame_rate=30.0,
            trial_frames=1470,
            lead_in=30,
            gap=70,
            splits=parse_splits("train=0:30000,oracle=27100:29980,final_test_main=30100:35980"),
        )
    return tree


def _natural(animal: Animal, screen: Screen, tier: str, clip: int) -> np.ndarray:
    return natural_movie(
        derived_seed(animal.seed, "movie", tier, clip),
        num_frames=screen.num_frames,
        height=screen.height,
        width=screen.width,
        frame_rate=screen.frame_rate,
    )


def _test_movies(
    animal: Animal, screen: Screen, num_clips: int, num_others: int, films: Path | None
) -> Iterator[tuple[str, int, np.ndarray]]:
    size = {"num_frames": screen.num_frames, "height": screen.height, "width": screen.width}
    for clip in range(num_clips):
        yield "natural", clip, _natural(animal, screen, "oracle", clip)
    rng = np.random.default_rng([0x717561, animal.seed])
    for clip in range(num_others):
        yield (
            "grating",
            clip,
            grating(
                # Eight to sixteen pixels a cycle: what can be seen goes with the resolution.
                spatial_frequency=float(rng.choice([0.061, 0.085, 0.122])) / screen.degrees_per_pixel,
                temporal_frequency=float(rng.choice([0.5, 1.0, 2.0])),
                direction=float(rng.uniform(0, 2 * np.pi)),
                contrast=0.8,
                frame_rate=screen.frame_rate,
                degrees_per_pixel=screen.degrees_per_pixel,
                **size,
            ),
        )
    for clip in range(num_others):
        yield (
            "noise",
            clip,
            gaussian_noise(
                int(rng.integers(2**31)),
                spatial_sigma=10.0 / screen.degrees_per_pixel,
                temporal_sigma=0.2 * screen.frame_rate,
                contrast=0.6,
                **size,
            ),
        )
    if films is not None:
        for clip, movie in enumerate(filmed_clips(films, screen, num_others)):
            yield "filmed", clip, movie


def _trials(
    animal: Animal, screen: Screen, noise_level: float, num_train: int, movies: list[tuple[str, int, np.ndarray]]
) -> Iterator[Trial]:
    def trial(number: int, tier: str, movie: np.ndarray, *key: str | int) -> Trial:
        seed = derived_seed(animal.seed, "trial", *key)
        seen = simulate_trial(animal, movie, seed=seed, noise_level=noise_level)
        return Trial(str(number), animal.name, tier, movie, seen.responses, seen.behaviour)

    for clip in range(num_train):
        yield trial(clip, "train", _natural(animal, screen, "train", clip), "train", clip, 0)
    number = num_train
    for kind, clip, movie in movies:
        for repeat in range(REPEATS):
            tier = "oracle" if kind == "natural" else "final_test_bonus"
            yield trial(number, tier, movie, kind, clip, repeat)
            number += 1
