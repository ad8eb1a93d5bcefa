"""From firing rates to responses as two-photon recordings give them, with and without noise.

Spikes -> calcium with exponential decay -> fluorescence at about 8 Hz, each imaging plane at its own moment,
with noise -> exponential deconvolution, thresholded and kept non-negative -> linear interpolation to the
movie's frames. Interpolation lets a response precede its scan by up to one scan interval, as in the
recordings.

Noise has four sources, and the variance of each is proportional to `noise_level`: spike counts (Poisson, with
quanta of `noise_level` spikes), a private gamma gain per scan (together: negative binomial counts), slow
shared gains (a few Ornstein-Uhlenbeck factors, log-normal; Goris, Movshon & Simoncelli 2014), and noise of
the fluorescence.
"""

import dataclasses
import functools
import math

import numpy as np
from scipy.signal import lfilter
from scipy.special import gammaln, ndtr

from neurorecon.stimuli.random_walks import ornstein_uhlenbeck

DECAY_SECONDS = 0.6  # GCaMP6s in vivo, half-decay near 0.5 s for one spike (Chen et al. 2013)
SCAN_RATE = 8.0  # Hz
NUM_PLANES = 5
FLUORESCENCE_NOISE = 0.35  # standard deviation per scan, in units of one spike's amplitude
THRESHOLD = 0.5  # of deconvolution, in standard deviations of its noise
PRIVATE_DISPERSION = 0.5  # variance of the private gain
SHARED_LOG_STD = 0.5  # of the shared gain's logarithm, for every neuron
SHARED_SECONDS = (10.0, 40.0, 150.0)  # correlation times of the shared factors
AMPLITUDE_MEDIAN, AMPLITUDE_LOG_STD = 8.0, 0.5  # response per spike within a scan interval, log-normal


@dataclasses.dataclass(frozen=True)
class Imaging:
    """How the neurons are recorded; N neurons.

    Attributes:
      frame_rate: Hz, of rates and responses.
      plane: (N,) imaging plane, 0..NUM_PLANES-1.
      amplitude: (N,) response to one spike.
      shared_loading: (N, factor) of the log gain, each row of norm SHARED_LOG_STD.
    """

    frame_rate: float
    plane: np.ndarray
    amplitude: np.ndarray
    shared_loading: np.ndarray


def make_imaging(seed: int, *, num_neurons: int, frame_rate: float) -> Imaging:
    """Draws planes, amplitudes and loadings on the shared gains (mostly of one sign on the first factor)."""
    rng = np.random.default_rng([0x63A0, seed])
    loading = rng.normal((0.8, 0.3, 0.3), 0.6, (num_neurons, len(SHARED_SECONDS)))
    loading *= SHARED_LOG_STD / np.linalg.norm(loading, axis=1, keepdims=True)
    return Imaging(
        frame_rate=frame_rate,
        plane=rng.integers(NUM_PLANES, size=num_neurons),
        amplitude=rng.lognormal(np.log(AMPLITUDE_MEDIAN), AMPLITUDE_LOG_STD, num_neurons),
        shared_loading=loading,
    )


def expected_responses(imaging: Imaging, rate: np.ndarray, *, noise_level: float = 1.0) -> np.ndarray:
    """Mean of `sample_responses` over all its noise, (time, neuron) float32.

    The threshold makes the mean depend on the noise: it is integrated over the distribution of spike counts
    (negative binomial, mixed over the shared gain by Gauss-Hermite quadrature) once, as a function of the
    mean count.

    Args:
      rate: (time, neuron) spikes/s.
      noise_level: 0 or more.
    """
    out = np.empty_like(rate)
    for members, scans in _planes(imaging, len(rate)):
        weights = scans.weights()
        count = weights @ _padded(rate[:, members], scans.lead) / imaging.frame_rate
        quantum = float(weights.sum(axis=1).mean() / np.diff(scans.frames).mean())
        mean = _rectified_mean(count, quantum, noise_level)
        out[:, members] = scans.to_frames(mean) * imaging.amplitude[members]
    return out


def sample_responses(
    imaging: Imaging, rate: np.ndarray, rng: np.random.Generator, *, noise_level: float = 1.0
) -> np.ndarray:
    """One noisy recording of the given rates, (time, neuron) float32, at least 0.

    Args:
      rate: (time, neuron) spikes/s.
      noise_level: 0 or more; 0 gives the rates' own course through scanning and interpolation.
    """
    if noise_level == 0:
        return expected_responses(imaging, rate, noise_level=0.0)
    num_frames = len(rate)
    factors = [
        ornstein_uhlenbeck(rng, num_frames, 1, seconds=seconds, frame_rate=imaging.frame_rate)
        for seconds in SHARED_SECONDS
    ]
    log_gain = np.sqrt(noise_level) * np.concatenate(factors, axis=1) @ imaging.shared_loading.T
    gained = rate * np.exp(log_gain - 0.5 * noise_level * SHARED_LOG_STD**2)
    out = np.empty_like(rate)
    for members, scans in _planes(imaging, num_frames):
        steps = np.diff(scans.frames)
        dispersion = PRIVATE_DISPERSION * noise_level
        private = rng.gamma(1 / dispersion, dispersion, (len(steps), members.size))
        scanned = _padded(gained[:, members], scans.lead)[scans.frames[0] : scans.frames[-1]]
        mean = scanned * np.repeat(private, steps, axis=0)
        spikes = noise_level * rng.poisson(mean / (imaging.frame_rate * noise_level))
        calcium = lfilter([1.0], [1.0, -scans.keep], spikes, axis=0)
        bright = np.concatenate([np.zeros((1, members.size)), calcium[np.cumsum(steps) - 1]])
        bright += np.sqrt(noise_level) * FLUORESCENCE_NOISE * rng.standard_normal(bright.shape)
        events = bright[1:] - (scans.keep**steps)[:, None] * bright[:-1]
        events = np.maximum(events - THRESHOLD * _event_noise(noise_level), 0)
        out[:, members] = scans.to_frames(events) * imaging.amplitude[members]
    return out


@dataclasses.dataclass(frozen=True)
class _Scans:
    """When one plane is scanned: before frame `frames[k]`, counting from `lead` frames before the trial.

    Scan 0 only gives the calcium that the first event starts from.
    """

    frames: np.ndarray
    lead: int
    num_frames: int
    keep: float

    def weights(self) -> np.ndarray:
        """(scan - 1, frame): what is left at each scan of a spike in each frame since the scan before."""
        frame = np.arange(self.num_frames + self.lead)
        age = self.frames[1:, None] - 1 - frame
        inside = (age >= 0) & (frame >= self.frames[:-1, None])
        return np.where(inside, self.keep ** np.maximum(age, 0), 0.0)

    def to_frames(self, events: np.ndarray) -> np.ndarray:
        """Linear interpolation of (scan - 1, neuron) to (time, neuron), constant beyond the ends."""
        time = self.frames[1:] - 1 - self.lead
        frame = np.arange(self.num_frames)
        right = np.clip(np.searchsorted(time, frame), 1, max(len(time) - 1, 1))
        if len(time) == 1:
            return np.repeat(events, self.num_frames, axis=0)
        share = np.clip((frame - time[right - 1]) / (time[right] - time[right - 1]), 0, 1)[:, None]
        return (1 - share) * events[right - 1] + share * events[right]


def _planes(imaging: Imaging, num_frames: int):
    """Each plane's neurons and scans."""
    step = max(imaging.frame_rate / SCAN_RATE, 1.0)
    lead = math.ceil(2 * step)
    for plane in range(NUM_PLANES):
        members = np.flatnonzero(imaging.plane == plane)
        if members.size:
            start = step * plane / NUM_PLANES
            frames = np.floor(np.arange(start, num_frames + lead + 1e-6, step)).astype(int)
            yield members, _Scans(frames, lead, num_frames, _keep(imaging.frame_rate))


def _keep(frame_rate: float) -> float:
    return float(np.exp(-1.0 / (DECAY_SECONDS * frame_rate)))


def _padded(rate: np.ndarray, lead: int) -> np.ndarray:
    """The rate led by `lead` copies of its first frame."""
    return np.concatenate([np.repeat(rate[:1], lead, axis=0), rate])


def _event_noise(noise_level: float) -> float:
    """Standard deviation of a deconvolved sample of a silent neuron."""
    keep = np.exp(-1.0 / (DECAY_SECONDS * SCAN_RATE))
    return float(np.sqrt(noise_level * (1 + keep**2)) * FLUORESCENCE_NOISE)


def _rectified_mean(count: np.ndarray, quantum: float, noise_level: float) -> np.ndarray:
    """E[max(x - threshold, 0)] for mean decayed counts `count`, any shape; x counts with all noise, one spike
    = quantum.
    """
    if noise_level == 0:
        return count
    grid, excess = _excess_table(round(quantum, 6), noise_level)
    return count - THRESHOLD * _event_noise(noise_level) + np.interp(count, grid, excess)


@functools.lru_cache(maxsize=16)
def _excess_table(quantum: float, noise_level: float) -> tuple[np.ndarray, np.ndarray]:
    """E[max(threshold - x, 0)] against the mean of x; only small counts contribute, so the sum over them is
    short.
    """
    noise = _event_noise(noise_level)
    threshold = THRESHOLD * noise
    size = quantum * noise_level
    n = np.arange(math.ceil((threshold + 6 * noise) / size) + 1)
    z = (threshold - size * n) / noise
    shortfall = noise * (z * ndtr(z) + np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi))
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(15)
    log_std = np.sqrt(noise_level) * SHARED_LOG_STD
    gains = np.exp(log_std * nodes - 0.5 * log_std**2)
    grid = np.concatenate([[0.0], np.geomspace(1e-4, 100.0, 400)])
    mean = np.maximum(grid[:, None, None] * gains[:, None] / size, 1e-300)
    shape = 1 / (PRIVATE_DISPERSION * noise_level)
    log_pmf = gammaln(n + shape) - gammaln(shape) - gammaln(n + 1)
    log_pmf = log_pmf - shape * np.log1p(mean / shape) + n * (np.log(mean) - np.log(mean + shape))
    excess = np.einsum("gkn,k,n->g", np.exp(log_pmf), node_weights / node_weights.sum(), shortfall)
    return grid, excess
