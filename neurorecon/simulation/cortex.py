"""A simulated population of mouse primary visual cortex: from movie and behaviour to firing rates.

Not an artificial network: each neuron is the textbook model of a V1 cell with parameters drawn from published
distributions, listed at the constants. Movie -> Gabor pairs x biphasic temporal filters, combined for
direction preference (Adelson & Bergen 1985) -> half-rectified (simple), energy (complex) or between (Rust et
al. 2005) -> divisive normalisation by local contrast energy and saturation (Heeger 1992; Carandini & Heeger
2012) -> running and pupil gains (Niell & Stryker 2010; Reimer et al. 2014). Eye movements do not move the
image.
"""

import dataclasses
import functools

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.signal import lfilter

from neurorecon.errors import NeuroreconError
from neurorecon.simulation.behaviour import DILATION_MEAN, DILATION_STD, simulate_behaviour
from neurorecon.simulation.filters import Patch, filter_in_time, spatial_pairs, temporal_pairs
from neurorecon.stimuli.natural import natural_movie
from neurorecon.stimuli.sizes import check_seed, check_sizes

DEGREES_PER_PIXEL = 3.4  # at a height of 36 pixels; the screen's centre in the Sensorium recordings
FREQUENCY_MEDIAN = 0.04  # cycles/degree; Niell & Stryker 2008: peaks 0.02..0.08, few above
FREQUENCY_LIMITS = (0.015, 0.12)
SIGMA_MEDIAN = 6.0  # degrees; Niell & Stryker 2008: half-width at half-maximum 5..7 degrees
TAU_MEDIAN = 0.022  # seconds; response peaks near 70 ms, best temporal frequency near 2 Hz (same source)
FILTER_SECONDS = 0.5
# The rest is simple. In layer 2/3 of the mouse simple and complex cells are both common (same source).
SHARES = {"complex": 0.45, "intermediate": 0.15, "blob": 0.12}
# Mean spikes/s over natural movies: log-normal, about 1, as usual for layer 2/3 (Buzsaki & Mizuseki 2014).
# Within that range it is set so that expected and single-trial responses correlate by 0.45.
RATE_MEDIAN, RATE_LOG_STD = 1.2, 0.6
SATURATION = 0.04  # largest response is 1 / SATURATION, some 40 times the mean over natural movies
NORMALISATION_SECONDS = 0.15
CALIBRATION_MOVIES = 24  # of 3 seconds, on which scales and gains are set
NORMALISATION_DEGREES = 17.0  # sigma of the pool: surrounds are two to three times the receptive field
BAND_DEGREES = 9.0  # sigma of the local mean that the pool's contrast is measured against


@dataclasses.dataclass(frozen=True)
class Population:
    """The neurons' parameters. P is the number of pixels in the patch, N of neurons, L of lags.

    Attributes:
      height, width, frame_rate: the movies it sees.
      patch: the ellipse of the screen that it sees; pixels outside have no effect at all.
      pixels: (P,) flat indices of the patch's pixels.
      centre: (N, 2) receptive field centres, y, x, pixels.
      frequency: (N,) cycles/pixel, 0 for blobs. orientation: (N,) radians. sigma: (N,) pixels.
      direction: (N,) -1..1, how much motion along (above 0) or against `orientation` is preferred.
      complexity: (N,) 0 simple .. 1 complex.
      exponent: (N,) of the contrast response.
      spatial: (2, P, N) quadrature pair. temporal: (2, L, N) fast and slow.
      drive_scale: (N,) root mean square drive over natural movies. pool_scale: the same of the pool.
      baseline, gain: (N,) spikes/s at rest, and per unit of normalised drive.
      running_gain, pupil_gain: (N,) log gains per unit of saturated speed and of dilation in standard
        deviations.
    """

    height: int
    width: int
    frame_rate: float
    patch: Patch
    pixels: np.ndarray
    centre: np.ndarray
    frequency: np.ndarray
    orientation: np.ndarray
    sigma: np.ndarray
    direction: np.ndarray
    complexity: np.ndarray
    exponent: np.ndarray
    spatial: np.ndarray
    temporal: np.ndarray
    drive_scale: np.ndarray
    pool_scale: float
    baseline: np.ndarray
    gain: np.ndarray
    running_gain: np.ndarray
    pupil_gain: np.ndarray

    @property
    def num_neurons(self) -> int:
        return len(self.frequency)

    @property
    def degrees_per_pixel(self) -> float:
        return DEGREES_PER_PIXEL * 36 / self.height


def make_population(
    seed: int,
    *,
    num_neurons: int = 1000,
    height: int = 36,
    width: int = 64,
    frame_rate: float = 30.0,
    patch: Patch | None = None,
) -> Population:
    """Draws a population, and sets each neuron's gain so that natural movies drive it to its mean rate.

    Args:
      seed: non-negative. The population does not depend on the trials.
      patch: what it sees; by default the central ellipse over 55 % of the screen.

    Raises:
      NeuroreconError: a negative seed, a size that is not positive, or a patch with fewer than 12 pixels.
    """
    check_seed(seed)
    check_sizes(num_neurons=num_neurons, height=height, width=width, frame_rate=frame_rate)
    rng = np.random.default_rng([0x763100, seed])
    patch = patch or Patch.central(height, width)
    mask = patch.mask(height, width)
    if mask.sum() < 12:
        raise NeuroreconError(
            f"patch: expected at least 12 pixels on a screen of {height} x {width}, found {mask.sum()}; enlarge it"
        )
    pixels = np.flatnonzero(mask)
    degrees = DEGREES_PER_PIXEL * 36 / height
    n = num_neurons
    kind = rng.choice(4, n, p=[1 - sum(SHARES.values()), *SHARES.values()])  # simple, complex, intermediate, blob
    blob = kind == 3
    angle, reach = rng.uniform(0, 2 * np.pi, n), 0.95 * np.sqrt(rng.random(n))
    centre = np.stack(
        [
            patch.centre_y + patch.radius_y * reach * np.sin(angle),
            patch.centre_x + patch.radius_x * reach * np.cos(angle),
        ],
        axis=1,
    )
    frequency = np.clip(rng.lognormal(np.log(FREQUENCY_MEDIAN), 0.5, n), *FREQUENCY_LIMITS) * degrees
    frequency = np.where(blob, 0.0, np.minimum(frequency, 0.4))
    # Higher frequencies come with smaller fields: a third to half a cycle per sigma (Niell & Stryker 2008).
    sigma = rng.lognormal(np.log(SIGMA_MEDIAN), 0.25, n) / degrees
    sigma = np.where(blob, sigma, np.clip(sigma, 0.2 / np.maximum(frequency, 1e-6), 0.6 / np.maximum(frequency, 1e-6)))
    sigma = np.clip(sigma, 0.7, 0.35 * height)
    orientation = rng.uniform(0, np.pi, n)
    spatial = spatial_pairs(
        pixels // width + 0.5,
        pixels % width + 0.5,
        centre=centre,
        sigma=sigma,
        aspect=rng.uniform(0.8, 1.5, n),
        frequency=frequency,
        orientation=orientation,
        phase=rng.uniform(0, 2 * np.pi, n),
    )
    temporal = temporal_pairs(
        rng.lognormal(np.log(TAU_MEDIAN), 0.25, n),
        rng.uniform(0.3, 1.0, n),
        frame_rate=frame_rate,
        seconds=FILTER_SECONDS,
    )
    direction = rng.choice([-1.0, 1.0], n) * rng.beta(0.9, 1.2, n)
    complexity = np.select([kind == 1, kind == 2], [np.ones(n), rng.uniform(0.2, 0.8, n)], 0.0)
    ones = np.ones(n, np.float32)
    draft = Population(
        height=height,
        width=width,
        frame_rate=frame_rate,
        patch=patch,
        pixels=pixels,
        centre=centre,
        frequency=frequency,
        orientation=orientation,
        sigma=sigma,
        direction=np.where(blob, 0.0, -direction).astype(np.float32),
        complexity=complexity.astype(np.float32),
        exponent=rng.uniform(1.5, 2.5, n).astype(np.float32),
        spatial=spatial,
        temporal=temporal,
        drive_scale=ones,
        pool_scale=1.0,
        baseline=0 * ones,
        gain=ones,
        running_gain=rng.normal(0.5, 0.4, n).astype(np.float32),  # on average x 1.6, some suppressed
        pupil_gain=rng.normal(0.1, 0.12, n).astype(np.float32),
    )
    mean_rate = rng.lognormal(np.log(RATE_MEDIAN), RATE_LOG_STD, n)
    return _set_gains(draft, mean_rate, rng)


def _set_gains(draft: Population, mean_rate: np.ndarray, rng: np.random.Generator) -> Population:
    """Homeostasis: scales drives and gains by what a few natural movies do."""
    movies = [
        natural_movie(int(seed), num_frames=90, height=draft.height, width=draft.width, frame_rate=draft.frame_rate)
        for seed in rng.integers(2**62, size=CALIBRATION_MOVIES)
    ]
    raw = [(_drive(draft, _contrast(draft, movie)), _pool(draft, _contrast(draft, movie))) for movie in movies]
    drive_scale = np.sqrt(np.mean([np.mean(drive**2, axis=0) for drive, _ in raw], axis=0))
    pool_scale = float(np.sqrt(np.mean([np.mean(pool**2) for _, pool in raw])))
    scaled = dataclasses.replace(
        draft, drive_scale=np.maximum(drive_scale, 1e-6).astype(np.float32), pool_scale=max(pool_scale, 1e-6)
    )
    driven, modulation = [], []
    for drive, pool in raw:
        driven.append(_normalise(scaled, drive, pool).mean(axis=0))
        behaviour = simulate_behaviour(rng, len(drive), draft.frame_rate)
        modulation.append(_behaviour_gain(scaled, behaviour).mean(axis=0))
    share = rng.uniform(0.02, 0.2, draft.num_neurons)  # of the mean rate that is spontaneous
    mean_rate = mean_rate / np.mean(modulation, axis=0)
    return dataclasses.replace(
        scaled,
        baseline=(share * mean_rate).astype(np.float32),
        gain=((1 - share) * mean_rate / np.maximum(np.mean(driven, axis=0), 1e-3)).astype(np.float32),
    )


def expected_rate(population: Population, movie: np.ndarray, behaviour: np.ndarray) -> np.ndarray:
    """Firing rates without noise, (time, neuron) float32 in spikes/s; causal.

    Args:
      movie: (time, height, width), grey values 0..255; grey is assumed before it.
      behaviour: (time, 4) as `simulate_behaviour` gives it.

    Raises:
      NeuroreconError: a movie or behaviour of another shape, or with values that are not finite.
    """
    behaviour = np.asarray(behaviour, np.float32)
    if behaviour.shape != (len(movie), 4) or not np.isfinite(behaviour).all():
        raise NeuroreconError(
            f"behaviour: expected finite values of shape ({len(movie)}, 4), found shape {behaviour.shape}; "
            "give one row per frame of the movie"
        )
    rate = population.baseline + population.gain * normalised_drive(population, movie)
    return rate * _behaviour_gain(population, behaviour)


def normalised_drive(population: Population, movie: np.ndarray) -> np.ndarray:
    """What the movie does to each neuron after divisive normalisation, (time, neuron) float32, at least 0.

    r = d^n / (1/2 + p^n + s d^n), with drive d and pool p in units of their root mean square over natural
    movies: the contrast response of Albrecht & Hamilton 1982, whose half-saturation rises with the contrast
    around (Heeger 1992), and which saturates at 1 / s.
    """
    contrast = _contrast(population, movie)
    return _normalise(population, _drive(population, contrast), _pool(population, contrast))


def _normalise(population: Population, drive: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """The formula of `normalised_drive`, from drive and pool (time, N)."""
    n = population.exponent
    power = (drive / population.drive_scale) ** n
    return power / (0.5 + (pool / population.pool_scale) ** n + SATURATION * power)


def _contrast(population: Population, movie: np.ndarray) -> np.ndarray:
    """The patch's pixels as contrast against grey, (time, P) float32."""
    movie = np.asarray(movie, np.float32)
    expected = (population.height, population.width)
    if movie.ndim != 3 or movie.shape[1:] != expected or not np.isfinite(movie).all():
        raise NeuroreconError(
            f"movie: expected finite values of shape (time, {expected[0]}, {expected[1]}), found shape "
            f"{movie.shape}; resize the movie or make the population for its size"
        )
    return (movie.reshape(len(movie), -1)[:, population.pixels] - 127.5) / 127.5


def _drive(population: Population, contrast: np.ndarray) -> np.ndarray:
    """Rectified linear, energy, or between: (time, N), at least 0.

    With S1, S2 the quadrature pair and T1, T2 fast and slow, S1 T1 - d S2 T2 and S2 T1 + d S1 T2 prefer
    motion along `orientation` for d = 1, against it for d = -1, neither for d = 0 (Adelson & Bergen 1985).
    """
    even, odd = (contrast @ weights for weights in population.spatial)
    fast, slow = population.temporal
    d = population.direction
    first = filter_in_time(even, fast) - d * filter_in_time(odd, slow)
    energetic = np.flatnonzero(population.complexity > 0)
    drive = np.maximum(first, 0)
    if energetic.size:
        second = filter_in_time(odd[:, energetic], fast[:, energetic])
        second += d[energetic] * filter_in_time(even[:, energetic], slow[:, energetic])
        energy = np.sqrt(first[:, energetic] ** 2 + second**2)
        mix = population.complexity[energetic]
        drive[:, energetic] += mix * (energy - drive[:, energetic])
    return drive


def _pool(population: Population, contrast: np.ndarray) -> np.ndarray:
    """Local contrast energy around each neuron, (time, N), at least 0.

    Stands for the summed energy of all neurons around (every orientation, band-pass), without depending on
    how many were drawn. Averages are over the patch's pixels only.
    """
    shape = (population.height, population.width)
    weight, pooled_weight, sites = _pool_geometry(population)
    frames = np.zeros((len(contrast), *shape), np.float32)
    frames.reshape(len(contrast), -1)[:, population.pixels] = contrast
    local = _blur(frames, BAND_DEGREES / population.degrees_per_pixel) / np.maximum(weight, 1e-6)
    flat = local.reshape(len(contrast), -1)[:, population.pixels]
    frames.reshape(len(contrast), -1)[:, population.pixels] = (contrast - flat) ** 2
    energy = _blur(frames, NORMALISATION_DEGREES / population.degrees_per_pixel).reshape(len(contrast), -1)
    energy = energy[:, sites] / pooled_weight.reshape(-1)[sites]
    keep = np.exp(-1.0 / (NORMALISATION_SECONDS * population.frame_rate))
    return np.sqrt(np.maximum(lfilter([1 - keep], [1, -keep], energy, axis=0), 0)).astype(np.float32)


def _pool_geometry(population: Population) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The patch blurred finely and coarsely, (height, width), and each neuron's nearest patch pixel (N,)."""
    mask = np.zeros((1, population.height, population.width), np.float32)
    mask.reshape(-1)[population.pixels] = 1.0
    fine = _blur(mask, BAND_DEGREES / population.degrees_per_pixel)[0]
    coarse = _blur(mask, NORMALISATION_DEGREES / population.degrees_per_pixel)[0]
    y, x = np.divmod(population.pixels, population.width)
    distance = (y + 0.5 - population.centre[:, :1]) ** 2 + (x + 0.5 - population.centre[:, 1:]) ** 2
    return fine, coarse, population.pixels[distance.argmin(axis=1)]


_blur = functools.partial(gaussian_filter, mode="constant", truncate=2.5, axes=(1, 2))


def _behaviour_gain(population: Population, behaviour: np.ndarray) -> np.ndarray:
    """Multiplicative gain of running and pupil, (time, N)."""
    running = np.tanh(np.maximum(behaviour[:, 1:2], 0) / 10.0)
    pupil = np.clip((behaviour[:, :1] - DILATION_MEAN) / DILATION_STD, -3, 3)
    return np.exp(running * population.running_gain + pupil * population.pupil_gain).astype(np.float32)
