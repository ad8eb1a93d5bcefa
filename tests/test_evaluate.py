"""Scores over all clips together."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from experiments.evaluate import Pooled


def test_pooled_is_the_correlation_of_everything_put_together():
    rng = np.random.default_rng(0)
    mask = rng.random((5, 6)) > 0.4
    truths = [rng.uniform(0, 255, (n, 5, 6)) for n in (20, 31)]
    movies = [0.3 * t + rng.uniform(0, 150, t.shape) for t in truths]
    pooled = Pooled()
    for truth, movie in zip(truths, movies):
        pooled.add("reconstruction", truth, movie, mask)
        pooled.add("grey", truth, np.full_like(truth, 127.5), mask)
    scores = pooled.scores()

    def together(clips):
        return np.concatenate([c[:, mask].ravel() for c in clips])

    expected = np.corrcoef(together(truths), together(movies))[0, 1]
    assert scores["reconstruction"]["plain"] == pytest.approx(expected, abs=1e-10)
    smooth = [[gaussian_filter1d(c, 2.0, axis=0) for c in clips] for clips in (truths, movies)]
    expected = np.corrcoef(*(together(clips) for clips in smooth))[0, 1]
    assert scores["reconstruction"]["smoothed"] == pytest.approx(expected, abs=1e-10)
    assert scores["grey"] == {"plain": 0.0, "smoothed": 0.0}
