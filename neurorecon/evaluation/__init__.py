"""Scores of movies and responses, their confidence intervals, and the decoders to compare with."""

from neurorecon.evaluation.baselines import grey_movie, mean_frame_movie, shuffled_neurons
from neurorecon.evaluation.bootstrap import (
    Interval,
    bootstrap_difference,
    bootstrap_hierarchical,
    bootstrap_mean,
    bootstrap_ratio,
)
from neurorecon.evaluation.coverage import fit_spread_scale, interval_coverage
from neurorecon.evaluation.decodable import (
    decodable_mask,
    pixel_correlations,
    smoothed_correlation,
    smoothed_movie,
)
from neurorecon.evaluation.linear_decoder import LinearDecoder, fit_linear_decoder
from neurorecon.evaluation.local_gain import GainScale, fit_gain_null, gain_deviation, local_gain, score_gain
from neurorecon.evaluation.movie_metrics import (
    frame_correlations,
    luminance_contrast_match,
    motion_energy,
    movie_correlation,
    movie_metrics,
)
from neurorecon.evaluation.published_movie_metrics import average_movies
from neurorecon.evaluation.repeat_metrics import (
    correlation_to_average,
    correlation_to_average_by_movie,
    fraction_explainable_variance,
    fraction_explainable_variance_explained,
    group_repeats,
)
from neurorecon.evaluation.response_metrics import (
    competition_correlation,
    correlation,
    neuron_correlations,
    single_trial_correlation,
)

__all__ = [
    "GainScale",
    "Interval",
    "LinearDecoder",
    "average_movies",
    "bootstrap_difference",
    "bootstrap_hierarchical",
    "bootstrap_mean",
    "bootstrap_ratio",
    "competition_correlation",
    "correlation",
    "correlation_to_average",
    "correlation_to_average_by_movie",
    "decodable_mask",
    "fit_gain_null",
    "fit_linear_decoder",
    "fit_spread_scale",
    "fraction_explainable_variance",
    "fraction_explainable_variance_explained",
    "frame_correlations",
    "gain_deviation",
    "grey_movie",
    "group_repeats",
    "interval_coverage",
    "local_gain",
    "luminance_contrast_match",
    "mean_frame_movie",
    "motion_energy",
    "movie_correlation",
    "movie_metrics",
    "neuron_correlations",
    "pixel_correlations",
    "score_gain",
    "shuffled_neurons",
    "single_trial_correlation",
    "smoothed_correlation",
    "smoothed_movie",
]
