"""The match in space and time as a study: what it writes, which controls it takes, what it says of known movies."""

import json

import numpy as np
import pytest

from experiments import match as module
from experiments.match import match
from experiments.match_clips import identify, matched_clips
from neurorecon.errors import NeuroreconError
from neurorecon.evaluation.movie_metrics import movie_metrics
from neurorecon.files import save_json, save_npz
from neurorecon.recordings import Trial, write_sensorium
from neurorecon.stimuli.natural import natural_movie
from tests.tiny_run import tiny_config

SHAPE, FRAMES, CLIPS = (12, 16), 80, ("4", "5", "6")
MASK = np.pad(np.ones((8, 12), bool), 2)


def shown(number):
    return natural_movie(100 + number, num_frames=FRAMES, height=SHAPE[0], width=SHAPE[1])


def reconstructed(truth, seed, level):
    noise = np.random.default_rng(seed).normal(0, level, truth.shape)
    return np.clip(0.5 * (truth - 127) + 127 + noise, 0, 255).astype(np.float32)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A work folder as experiments.reconstruct leaves it, with movies whose match is known."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    trials = [
        Trial(
            str(k), "mouse", "oracle" if str(k) in CLIPS else "train", shown(k), rng.gamma(1, 1, (FRAMES, 3)),
            rng.normal(0, 1, (FRAMES, 4)),
        )
        for k in range(7)
    ]  # fmt: skip
    write_sensorium(folder / "mouse", trials)
    for k in CLIPS:
        truth = shown(int(k))
        arrays = {"movie": reconstructed(truth, int(k), 5.0), "mask": MASK}
        save_npz(folder / "reconstructions" / "mouse" / f"{k}.npz", **arrays)
        decoded = reconstructed(truth, int(k) + 50, 40.0)
        save_npz(folder / "controls" / "linear_decoder" / "mouse" / f"{k}.npz", movie=decoded)
    # Of the shuffled neurons one clip is missing: left out.
    save_npz(folder / "controls" / "shuffled_neurons" / "mouse" / "4.npz", movie=shown(0))
    save_json(folder / "encoders" / "animals.json", ["mouse"])
    return folder


def config_of(folder, **changes):
    return tiny_config(
        recordings=str(folder / "mouse"), match__max_lag=4, match__segment_seconds=1.0, match__candidates=6, **changes
    )


def test_study(workdir, capsys):
    study = match(config_of(workdir), str(workdir))
    folder = workdir / "studies" / "match"
    assert json.loads((folder / "study.json").read_text())["rows"] == study.rows
    assert {r["condition"] for r in study.rows} == {"reconstruction", "linear_decoder"}
    value = {(r["measure"], r["condition"]): r for r in study.rows}
    for condition, level, offset in (("reconstruction", 5.0, 0), ("linear_decoder", 40.0, 50)):
        truths = [shown(int(k))[10:] for k in CLIPS]
        movies = [reconstructed(shown(int(k)), int(k) + offset, level)[10:] for k in CLIPS]
        scores = [movie_metrics(t, m, MASK) for t, m in zip(truths, movies)]
        row = value["structural similarity (SSIM)", condition]
        assert row["value"] == pytest.approx(np.mean([s["ssim"] for s in scores]))
        assert row["low"] <= row["value"] <= row["high"]
        at_no_lag = [
            r for r in study.rows
            if r["measure"] == "movie correlation" and r["condition"] == condition and r["time"] == 0
        ]  # fmt: skip
        expected = np.mean([movie_metrics(t[4:-4], m[4:-4], MASK)["movie_correlation"] for t, m in zip(truths, movies)])
        assert at_no_lag[0]["value"] == pytest.approx(expected)
    # The better reconstruction is better in every way that is compared.
    for measure in ("structural similarity (SSIM)", "correlation of motion energy", "correlation of image motion"):
        assert value[measure, "reconstruction"]["value"] > value[measure, "linear_decoder"]["value"]
    coherence = [r for r in study.rows if r["measure"] == "coherence" and r["condition"] == "reconstruction"]
    coarsest = min((r for r in coherence if r["temporal_frequency"] is None), key=lambda r: r["spatial_frequency"])
    assert coarsest["value"] > 0.9 > 0.7 > coarsest["chance"]
    assert abs(value["lag of the peak", "reconstruction"]["value"]) < 0.02
    found = [r for r in study.rows if r["measure"] == "identification of clips" and r["ways"] == 6]
    assert [r["value"] for r in found] == [1, 1] and found[0]["chance"] == pytest.approx(1 / 6)
    seconds = {r["ways"] for r in study.rows if r["measure"] == "identification of seconds"}
    assert max(seconds) == 12  # two whole seconds of each of six movies
    said = capsys.readouterr().out
    assert "identifies 100" in said and str(folder) in said
    assert all((folder / f"{name}.svg").is_file() for name in study.captions)


def test_identification_finds_what_stands_in_the_place_of_the_truth(workdir, tmp_path):
    """Reconstructions of other clips: each is taken for the clip that it is of, and its own is not found."""
    config = config_of(workdir)
    clips = matched_clips(config, workdir)
    swapped = [clip._replace(movies=other.movies) for clip, other in zip(clips, [*clips[1:], clips[0]])]
    ways, accuracy = identify(config, swapped, seconds=False)
    assert ways[-1] == 6 and (accuracy["reconstruction"]["mouse"][:, -1] == 0).all()
    ways, accuracy = identify(config, clips, seconds=True)
    assert accuracy["reconstruction"]["mouse"].shape == (3, len(ways))
    assert accuracy["reconstruction"]["mouse"][:, -1].mean() > accuracy["linear_decoder"]["mouse"][:, -1].mean() - 1e-9


def test_clips_are_reconstructed_first_where_there_are_none(workdir, tmp_path, monkeypatch):
    asked = []

    def stop(config, folder, *, films):
        asked.append((config.recordings, folder, films))
        raise KeyboardInterrupt

    save_json(tmp_path / "encoders" / "animals.json", ["mouse"])
    monkeypatch.setattr(module, "reconstruct_recordings", stop)
    with pytest.raises(KeyboardInterrupt):
        match(config_of(workdir), str(tmp_path))
    assert asked == [(str(workdir / "mouse"), str(tmp_path), False)]


def test_errors(workdir, tmp_path):
    def refused(match_text, call):
        with pytest.raises(NeuroreconError, match=match_text) as caught:
            call()
        assert "\n" not in str(caught.value)

    refused("expected the folder of a training", lambda: match(tiny_config(), str(tmp_path)))
    config = config_of(workdir, skip_frames=70)
    refused("frames at least after config.skip_frames", lambda: matched_clips(config, workdir))
