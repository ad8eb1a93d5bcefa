"""Strengths chosen on validation clips."""

import jax
import numpy as np
import pytest

from experiments.tune import tune_recordings
from neurorecon.errors import NeuroreconError
from neurorecon.files import read_json
from neurorecon.reconstruction import loop, priors
from neurorecon.reconstruction.tuning import Clip, clip_scorer, tune
from tests.tiny_run import ORACLE, random_encoders, simulated, tiny_config, with_noise_instead_of
from tests.toy_encoders import NUM_FRAMES, SCREEN, toy, toy_clips

CLIPS = np.array([0.0, 0.1, -0.1, 0.05])
START = {"likelihood": "a", "likelihood_weight": 0.1, "num_steps": 20}
GRIDS = {"likelihood": ["a", "b", "c"], "likelihood_weight": [0.1, 0.2, 0.4, 0.8], "num_steps": [10, 20]}


def known_best(settings):
    """Best at b, 0.4; b at a's weight is worse than a."""
    at = {"a": (0.2, 0.5), "b": (0.4, 0.7), "c": (0.1, 0.3)}[settings["likelihood"]]
    return list(at[1] - np.log2(settings["likelihood_weight"] / at[0]) ** 2 * 0.15 + CLIPS)


def test_finds_the_best_settings_and_judges_a_likelihood_at_its_own_weight():
    asked = []
    found = tune(lambda s: asked.append(dict(s)) or known_best(s), START, GRIDS)
    assert known_best({**START, "likelihood": "b"}) < known_best(START)
    assert found.best.settings == {"likelihood": "b", "likelihood_weight": 0.4, "num_steps": 20}
    assert found.tried[0].settings == START
    names = [tuple(sorted(s.items())) for s in asked]
    assert len(names) == len(set(names)) == len(found.tried) < 3 * 4 * 2
    with pytest.raises(NeuroreconError, match="start"):
        tune(known_best, {}, GRIDS)


def test_a_gain_that_the_clips_do_not_show_is_not_taken():
    rng = np.random.default_rng(0)
    found = tune(lambda s: list(0.5 + 0.002 * (s["likelihood"] == "b") + 0.1 * rng.normal(size=6)), START, GRIDS)
    assert found.best.settings["likelihood"] == "a"


def clips_of(count):
    responses, behaviour = toy_clips(count)
    truth = np.random.default_rng(1).uniform(0, 255, (count, NUM_FRAMES, *SCREEN))
    return [
        Clip(r, b, 0.5 * r + 1, lambda movie, t=t: float(np.corrcoef(movie.ravel(), t.ravel())[0, 1]))
        for r, b, t in zip(responses, behaviour, truth)
    ]


@pytest.mark.parametrize("likelihood", ["autoregressive", "autoregressive_gain", "poisson"])
def test_numbers_compile_nothing(likelihood):
    spectra = {"natural": priors.natural_power, "flat": lambda shape: priors.flat_power(shape, std=40.0)}
    score = clip_scorer(
        [toy("linear_nonlinear")], clips_of(3), spectra=spectra, prior_mean=120.0, key=jax.random.key(0), skip_frames=2
    )
    settings = {
        "likelihood": likelihood, "likelihood_weight": 0.1, "learning_rate": 0.3, "num_steps": 2, "spectrum": "natural"
    }  # fmt: skip
    first = score(settings)
    compiled = loop.advance._cache_size()
    for changes in ({"likelihood_weight": 0.4}, {"learning_rate": 0.1}, {"spectrum": "flat"}):
        assert score({**settings, **changes}) != first, changes
    assert loop.advance._cache_size() == compiled
    assert score(settings) == first
    with pytest.raises(NeuroreconError, match="two or more"):
        clip_scorer(
            [toy("linear_nonlinear")],
            clips_of(1),
            spectra=spectra,
            prior_mean=0.0,
            key=jax.random.key(0),
            skip_frames=2,
        )


def test_a_decoders_movie_is_where_its_clip_starts():
    places = np.random.default_rng(3).uniform(60, 190, (2, NUM_FRAMES, *SCREEN))
    seen = []
    clips = [c._replace(baseline=b, score=lambda m: seen.append(m) or 0.0) for c, b in zip(clips_of(2), places)]
    score = clip_scorer(
        [toy("linear_nonlinear")],
        clips,
        spectra={"flat": lambda shape: priors.flat_power(shape, std=40.0)},
        prior_mean=0.0,
        key=jax.random.key(0),
        skip_frames=2,
    )
    settings = {"likelihood": "poisson", "learning_rate": 0.3, "num_steps": 2, "spectrum": "flat"}
    score({**settings, "likelihood_weight": 1e-25})
    np.testing.assert_allclose(seen, places, atol=1e-3)
    score({**settings, "likelihood_weight": 1.0})
    assert np.abs(seen[2] - places[0]).max() > 1


def tuning_config(tree, encoders, **changes):
    return tiny_config(
        recordings=str(tree),
        encoders=str(encoders),
        **{
            "tune__clips": 2,
            "tune__likelihoods": "autoregressive,negative_binomial",
            "tune__likelihood_weights": "0.15,0.5",
            "tune__learning_rates": "0.4",
            "tune__num_steps": "2,4",
            "default_recipe__num_steps": 2,
            **changes,
        },
    )


def test_from_a_recording_to_flags_resumed_and_blind_to_the_reported_tier(tmp_path):
    tree = simulated(tmp_path / "animal")
    encoders = random_encoders(tmp_path / "encoders")
    result = tune_recordings(tuning_config(tree, encoders), str(tmp_path / "a"))
    assert result == read_json(tmp_path / "a" / "tuned.json")
    assert result["clips"] == 2 and len(result["tried"]) >= 4
    assert all(len(row["scores"]) == 2 and np.isfinite(row["scores"]).all() for row in result["tried"])
    changed = {name for name in result["best"] if result["best"][name] != result["start"][name]}
    assert len(result["flags"]) == len(changed)
    written = (tmp_path / "a" / "tune_scores.json").stat().st_mtime_ns
    assert tune_recordings(tuning_config(tree, encoders), str(tmp_path / "a")) == result
    assert (tmp_path / "a" / "tune_scores.json").stat().st_mtime_ns == written
    noisy = with_noise_instead_of(tree, ORACLE, tmp_path / "noisy" / tree.name)
    again = tune_recordings(tuning_config(noisy, encoders), str(tmp_path / "b"))
    assert again["tried"] == result["tried"]


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"tune__likelihoods": "laplace"}, "likelihood"),
        ({"tune__learning_rates": "quick"}, "numbers for learning_rate"),
        ({"tune__num_steps": "0"}, "above 0"),
        ({"recipe": "published"}, "expected default"),
        ({"tune__clips": 1}, "two validation trials"),
    ],
)
def test_faults_are_one_line(tmp_path, changes, match):
    tree = simulated(tmp_path / "animal")
    config = tuning_config(tree, random_encoders(tmp_path / "encoders"), **changes)
    with pytest.raises(NeuroreconError, match=match) as error:
        tune_recordings(config, str(tmp_path / "a"))
    assert "\n" not in str(error.value)
