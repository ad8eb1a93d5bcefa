"""The whole path on a tiny simulated animal: simulate, train, reconstruct, evaluate, report."""

import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tifffile

import experiments.descent_groups
import experiments.train
from experiments.evaluate import evaluate
from experiments.reconstruct import reconstruct_recordings
from experiments.report import report
from experiments.simulate import simulate
from experiments.train import train_encoders
from neurorecon.encoders import DwiseNeuro, load_encoder
from neurorecon.recordings import open_recording
from neurorecon.runs import read_metrics
from tests.shared_data import SHARED, needs_shared
from tests.tiny_run import (
    NUM_FRAMES,
    NUM_NEURONS,
    ORACLE,
    SHAPE,
    files_and_times,
    movie,
    random_encoders,
    simulated,
    tiny_config,
    weights,
    with_noise_instead_of,
)

ROOT = Path(__file__).resolve().parents[1]
CONTROLS = {"grey", "prior_alone", "shuffled_neurons", "linear_decoder", "ceiling"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Everything done once: one clip first, then all of them."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config()
    (tree,) = simulate(config, str(folder))
    config.recordings = str(tree)
    config.max_clips = 1
    reconstruct_recordings(config, str(folder))
    first = files_and_times(folder / "reconstructions", folder / "encoders")
    config.max_clips = 0
    metrics = reconstruct_recordings(config, str(folder))
    return types.SimpleNamespace(folder=folder, tree=tree, config=config, metrics=metrics, first=first)


def test_reconstructions_as_in_the_contract(run):
    assert sorted(p.stem for p in (run.folder / "reconstructions/mouse1").glob("*.npz")) == list(ORACLE)
    for trial_id in ORACLE:
        with np.load(run.folder / f"reconstructions/mouse1/{trial_id}.npz", allow_pickle=False) as stored:
            found, mask = stored["movie"], stored["mask"]
            assert found.shape == (NUM_FRAMES, *SHAPE) and found.dtype == np.float32
            assert found.min() >= 0 and found.max() <= 255 and found.std() > 0.1
            assert mask.shape == SHAPE and mask.dtype == bool and mask.any()
            assert str(stored["animal"]) == "mouse1" and str(stored["trial"]) == trial_id
            loss = stored["trace_loss"]
            assert loss.shape == (6,) and np.isfinite(loss).all() and loss[-1] != loss[0]


def test_films_and_page(run):
    import imageio.v3

    for trial_id in ORACLE:
        path = run.folder / f"movies/mouse1_{trial_id}"
        stack = tifffile.imread(path.with_suffix(".tiff"))
        assert stack.shape == (NUM_FRAMES, *SHAPE)
        frames = [frame for frame in imageio.v3.imiter(path.with_suffix(".mp4"), plugin="FFMPEG")]
        assert len(frames) == NUM_FRAMES
    page = (run.folder / "report.html").read_text()
    assert "mouse1" in page and "linear decoder" in page and len(page) > 20_000
    assert (run.folder / "film_strip.png").read_bytes()[1:4] == b"PNG"


def test_encoders_and_logs(run):
    for model in range(2):
        encoder, _ = load_encoder(run.folder / f"encoders/{model}")
        assert encoder.num_neurons == (NUM_NEURONS,) and encoder.screen == SHAPE
    a, b = weights(run.folder)[: len(weights(run.folder)) // 2], weights(run.folder)[len(weights(run.folder)) // 2 :]
    assert any(not np.array_equal(x, y) for x, y in zip(a, b))  # members differ
    records = read_metrics(run.folder / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert [len(r["validation_correlation"]) for r in records if "validation_correlation" in r] == [2, 2]
    config = json.loads((run.folder / "config.json").read_text())
    assert config["training"]["num_steps"] == 6 and config["tier"] == "oracle"
    assert not (run.folder / "checkpoints").exists() and not list((run.folder / "progress").glob("*"))


def test_scores_as_in_the_contract(run):
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert [(c["animal"], c["trial"]) for c in metrics["clips"]] == [("mouse1", t) for t in ORACLE]
    recording = open_recording(run.tree)
    for clip in metrics["clips"]:
        assert {"movie_correlation", "frame_correlation", "rmse", "psnr", "ssim"} <= clip.keys()
        with np.load(run.folder / f"reconstructions/mouse1/{clip['trial']}.npz") as stored:
            truth = recording.trial(clip["trial"]).stimulus
            x, y = (a[10:][:, stored["mask"]].ravel().astype(float) for a in (truth, stored["movie"]))
        assert clip["movie_correlation"] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-5)
        assert clip["rmse"] == pytest.approx(np.sqrt(((x - y) ** 2).mean()), rel=1e-4)
    assert metrics["controls"].keys() == CONTROLS
    assert metrics["controls"]["grey"]["mean"] == 0.0
    for summary in (*metrics["summary"].values(), *metrics["controls"].values()):
        low, high = summary["ci95"]
        assert low <= summary["mean"] <= high
    mean = np.mean([c["movie_correlation"] for c in metrics["clips"]])
    assert metrics["summary"]["movie_correlation"]["mean"] == pytest.approx(mean)
    assert metrics["cost"]["encoder_windows"] > 0 and metrics["cost"]["seconds"] > 0
    assert {"jax", "numpy", "neurorecon", "device"} <= metrics["versions"].keys()


def test_responses_move_every_pixel_unless_they_are_kept_inside_the_mask(run, monkeypatch, tmp_path):
    masks = []

    def watched(*args, **kwargs):
        masks.append(kwargs["update_mask"])
        return descend(*args, **kwargs)

    descend = experiments.descent_groups.reconstruct_clips
    monkeypatch.setattr(experiments.descent_groups, "reconstruct_clips", watched)
    config = run.config.copy_and_resolve_references()
    config.encoders, config.max_clips, config.controls, config.num_steps = str(run.folder), 1, "", 1
    config.calibration_clips = 0
    reconstruct_recordings(config, str(tmp_path / "everywhere"), films=False)
    config.mask.restrict = True
    reconstruct_recordings(config, str(tmp_path / "inside"), films=False)
    everywhere, inside = masks
    assert everywhere is None
    assert inside.shape == SHAPE and inside.any() and not inside.all()


def test_controls_differ_from_the_reconstruction(run):
    for kind in ("prior_alone", "shuffled_neurons", "linear_decoder", "ceiling"):
        with np.load(run.folder / f"controls/{kind}/mouse1/{ORACLE[0]}.npz") as stored:
            assert stored["movie"].shape == (NUM_FRAMES, *SHAPE)
            assert not np.allclose(stored["movie"], movie(run.folder, ORACLE[0]), atol=0.5)


def test_again_changes_nothing_and_asks_no_encoder(run, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("was done already")

    for module, name in ((experiments.descent_groups, "reconstruct_clips"), (experiments.train, "train")):
        monkeypatch.setattr(module, name, never)
    folders = [
        run.folder / name for name in ("recordings", "encoders", "reconstructions", "controls", "movies", "masks")
    ]
    before, log = files_and_times(*folders), (run.folder / "metrics.jsonl").read_bytes()
    simulate(run.config, str(run.folder))
    train_encoders(run.config, str(run.folder))
    assert reconstruct_recordings(run.config, str(run.folder)) == run.metrics
    assert files_and_times(*folders) == before and len(before) > 20
    assert (run.folder / "metrics.jsonl").read_bytes() == log


def test_more_clips_asked_for_later_leave_the_first_as_it_is(run):
    now = files_and_times(run.folder / "reconstructions", run.folder / "encoders")
    assert len([p for p in run.first if "reconstructions" in p]) == 1
    assert all(now[path] == time for path, time in run.first.items())


def test_evaluate_and_report_again_from_what_is_there(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.folder, copy, ignore=shutil.ignore_patterns("movies", "report.html", "metrics.json"))
    assert evaluate(str(copy)) == run.metrics
    (copy / "metrics.json").unlink()
    page = report(str(copy))  # evaluates first
    assert page == copy / "report.html" and page.stat().st_size > 20_000
    assert sorted(p.name for p in (copy / "movies").iterdir()) == sorted(
        f"mouse1_{t}.{kind}" for t in ORACLE for kind in ("mp4", "tiff")
    )


def test_commands_that_need_no_config(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.folder, copy, ignore=shutil.ignore_patterns("report.html", "metrics.json"))
    said = []
    for job in ("evaluate", "report"):
        command = [sys.executable, "-m", f"experiments.{job}", "--workdir", str(copy)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    found = json.loads((copy / "metrics.json").read_text())
    assert "linear decoder" in said[0] and all(found[k] == run.metrics[k] for k in ("clips", "summary", "controls"))
    assert str(copy / "report.html") in said[1] and (copy / "report.html").is_file()


def test_report_takes_in_a_clip_that_came_after_the_scores(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.folder, copy, ignore=shutil.ignore_patterns("movies", "report.html"))
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics["clips"].pop()
    (copy / "metrics.json").write_text(json.dumps(metrics))
    report(str(copy))
    assert len(json.loads((copy / "metrics.json").read_text())["clips"]) == 2


def test_the_true_movie_never_reaches_the_reconstruction(run, tmp_path):
    noisy = with_noise_instead_of(run.tree, ORACLE, tmp_path / "mouse1")
    config = tiny_config(recordings=str(noisy), encoders=str(run.folder), max_clips=1)
    reconstruct_recordings(config, str(tmp_path / "run"))
    np.testing.assert_array_equal(movie(tmp_path / "run", ORACLE[0]), movie(run.folder, ORACLE[0]))

    def control(folder, kind):
        with np.load(folder / f"controls/{kind}/mouse1/{ORACLE[0]}.npz") as stored:
            return stored["movie"]

    for kind in ("prior_alone", "shuffled_neurons", "linear_decoder"):
        np.testing.assert_array_equal(control(tmp_path / "run", kind), control(run.folder, kind))
    # The ceiling is the one that is about the true movie.
    assert not np.array_equal(control(tmp_path / "run", "ceiling"), control(run.folder, "ceiling"))


def test_training_never_looks_at_oracle_trials(run, tmp_path):
    noisy = with_noise_instead_of(run.tree, ORACLE, tmp_path / "mouse1")
    train_encoders(tiny_config(recordings=str(noisy)), str(tmp_path / "run"))
    for a, b in zip(weights(tmp_path / "run"), weights(run.folder), strict=True):
        np.testing.assert_array_equal(a, b)
    # A change of a training trial is seen.
    other = tmp_path / "other" / "mouse1"
    shutil.copytree(run.tree, other)
    path = other / "data" / "responses" / "0.npy"
    np.save(path, np.load(path)[:, ::-1])
    train_encoders(tiny_config(recordings=str(other)), str(tmp_path / "other_run"))
    assert not all(np.array_equal(a, b) for a, b in zip(weights(tmp_path / "other_run"), weights(run.folder)))


def test_another_seed_gives_other_encoders(run, tmp_path):
    train_encoders(tiny_config(recordings=str(run.tree), seed=1), str(tmp_path))
    assert not all(np.array_equal(a, b) for a, b in zip(weights(tmp_path), weights(run.folder)))


def test_published_recipe(run, tmp_path):
    encoder = DwiseNeuro(
        num_neurons=(NUM_NEURONS,),
        canvas=(16, 16),
        screen=SHAPE,
        core_features=(4,),
        spatial_strides=(2,),
        expansion_ratio=2,
        se_reduce_ratio=2,
        cortex_features=(8,),
    )
    random_encoders(tmp_path / "encoders", encoder)
    config = tiny_config(
        recordings=str(run.tree),
        encoders=str(tmp_path / "encoders"),
        recipe="published",
        num_steps=2,
        max_clips=1,
        controls="grey,prior_alone,linear_decoder",  # it has no prior
    )
    metrics = reconstruct_recordings(config, str(tmp_path / "run"))
    assert movie(tmp_path / "run", ORACLE[0]).shape == (NUM_FRAMES, *SHAPE)
    assert movie(tmp_path / "run", ORACLE[0]).std() > 0
    assert metrics["controls"].keys() == {"grey", "linear_decoder"}


@needs_shared("reference/dwiseneuro_tiny.pth")
def test_published_weights_stand_in_for_a_training(tmp_path):
    sizes = {"num_neurons": 13, "height": 36, "width": 64, "train": 3, "oracle": 1, "num_frames": 40}
    tree = simulated(tmp_path, **{f"simulation__{k}": v for k, v in sizes.items()})
    config = tiny_config(
        recordings=str(tree),
        encoders=str(SHARED / "reference/dwiseneuro_tiny.pth"),
        recipe="published",
        num_steps=2,
        controls="grey",
        training__validation_trials=1,
        mask__kind="none",
    )
    reconstruct_recordings(config, str(tmp_path / "run"))
    found = movie(tmp_path / "run", "3")
    assert found.shape == (40, 36, 64) and found.std() > 0
