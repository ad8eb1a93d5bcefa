"""What a simulated animal does during a trial: pupil and running.

Head-fixed mice run in bouts of seconds to tens of seconds, and the pupil widens with running and arousal
(Niell & Stryker 2010; Reimer et al. 2014; McGinley et al. 2015). Units: pupil dilation (diameter) in mm,
running speed in cm/s, pupil position in degrees from its usual place.
"""

import numpy as np
from scipy.signal import lfilter

from neurorecon.stimuli.random_walks import ornstein_uhlenbeck

RUNNING_SHARE = 0.35  # of the time
BOUT_SECONDS = 6.0  # mean length of a running bout
CRUISE = 15.0  # cm/s, median speed within bouts
DILATION_MEAN, DILATION_STD = 1.0, 0.2  # mm


def simulate_behaviour(rng: np.random.Generator, num_frames: int, frame_rate: float) -> np.ndarray:
    """One trial's behaviour, (time, 4) float32: pupil_dilation, running_speed, pupil_x, pupil_y."""
    speed = _running(rng, num_frames, frame_rate)
    arousal = ornstein_uhlenbeck(rng, num_frames, 1, seconds=5.0, frame_rate=frame_rate)[:, 0]
    # The pupil follows running with about a second of delay.
    keep = np.exp(-1.0 / frame_rate)
    follow, _ = lfilter([1 - keep], [1, -keep], np.tanh(speed / 10.0), zi=[keep * np.tanh(speed[0] / 10.0)])
    dilation = DILATION_MEAN + DILATION_STD * (0.8 * arousal + 1.4 * (follow - RUNNING_SHARE))
    slow = ornstein_uhlenbeck(rng, num_frames, 2, seconds=4.0, frame_rate=frame_rate)
    saccades = _saccades(rng, num_frames, frame_rate)
    position = slow * (1.5, 0.8) + saccades
    tracker = 0.02 * rng.standard_normal((num_frames, 4)) * (DILATION_STD, 0.0, 1.0, 1.0)
    traces = np.concatenate([np.maximum(dilation, 0.3)[:, None], speed[:, None], position], axis=1)
    return (traces + tracker).astype(np.float32)


def _running(rng: np.random.Generator, num_frames: int, frame_rate: float) -> np.ndarray:
    """Running speed, cm/s: a two-state Markov chain with a speed for each bout, smoothed over 0.4 s."""
    stop = 1.0 / (BOUT_SECONDS * frame_rate)
    start = stop * RUNNING_SHARE / (1.0 - RUNNING_SHARE)
    lead = round(2 * frame_rate)  # lets the smoothing settle before the trial
    target = np.zeros(lead + num_frames)
    running = rng.random() < RUNNING_SHARE
    t = 0
    while t < target.size:
        length = int(rng.geometric(stop if running else start))
        if running:
            target[t : t + length] = rng.lognormal(np.log(CRUISE), 0.4)
        t += length
        running = not running
    stride = ornstein_uhlenbeck(rng, target.size, 1, seconds=0.5, frame_rate=frame_rate)[:, 0]
    keep = np.exp(-1.0 / (0.4 * frame_rate))
    smooth = lfilter([1 - keep], [1, -keep], target * np.maximum(1 + 0.2 * stride, 0))
    return smooth[lead:]


def _saccades(rng: np.random.Generator, num_frames: int, frame_rate: float) -> np.ndarray:
    """Steps of the eye, (time, 2) degrees, mostly horizontal, decaying back over 2 s; one every 4 s or so."""
    steps = (rng.random((num_frames, 1)) < 0.25 / frame_rate) * rng.normal(0.0, (3.0, 1.0), (num_frames, 2))
    return lfilter([1.0], [1.0, -np.exp(-1.0 / (2.0 * frame_rate))], steps, axis=0)
