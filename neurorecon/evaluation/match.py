"""How one reconstructed clip matches the truth in space and time, all measures at once."""

from typing import NamedTuple

import numpy as np

from neurorecon.evaluation.coherence import Spectra, movie_spectra
from neurorecon.evaluation.decodable import pixel_correlations
from neurorecon.evaluation.motion import lag_correlations, motion_match
from neurorecon.evaluation.movie_metrics import frame_correlations, movie_metrics


class ClipMatch(NamedTuple):
    """One clip.

    Attributes:
      scores: `movie_correlation`, `ssim` (standard) and what `motion_match` returns.
      frames: (time,) correlation of each frame inside the mask; NaN where constant.
      lags: (lag,) frames; above 0 the movie is late.
      lag_values: (lag,) correlation at each.
      pixels: (height, width) correlation over time of each pixel, also outside the mask; NaN where constant.
      spectra: for `coherence`.
    """

    scores: dict[str, float]
    frames: np.ndarray
    lags: np.ndarray
    lag_values: np.ndarray
    pixels: np.ndarray
    spectra: Spectra


def clip_match(
    truth: np.ndarray,
    movie: np.ndarray,
    mask: np.ndarray | None,
    *,
    pixels_per_degree: float,
    frame_rate: float,
    max_lag: int = 10,
    segment_seconds: float = 2.0,
) -> ClipMatch:
    """Match of one clip; frames to be left out are cut off by the caller.

    Args:
      truth, movie: (time, height, width), grey values.
      mask: (height, width), true inside; None is the whole screen.
      pixels_per_degree, segment_seconds: as in `movie_spectra`.
      frame_rate: Hz.
      max_lag: as in `lag_correlations`.

    Raises:
      NeuroreconError: as the functions that it calls.
    """
    metrics = movie_metrics(truth, movie, mask)
    lags, values = lag_correlations(truth, movie, mask, max_lag=max_lag)
    return ClipMatch(
        {name: metrics[name] for name in ("movie_correlation", "ssim")} | motion_match(truth, movie, mask),
        frame_correlations(truth, movie, mask),
        lags,
        values,
        pixel_correlations([truth], [movie]),
        movie_spectra(
            truth,
            movie,
            mask,
            pixels_per_degree=pixels_per_degree,
            frame_rate=frame_rate,
            segment_seconds=segment_seconds,
        ),
    )
