"""Films, gif, tiff, film strip, charts and training curves."""

import base64
import csv
import re

import imageio.v3 as iio
import numpy as np
import pytest
import tifffile
from PIL import Image

from neurorecon.errors import NeuroreconError
from neurorecon.reporting import (
    difference_panel,
    film_strip,
    spread_frames,
    write_gif,
    write_movie,
    write_tiff,
)
from neurorecon.reporting.charts import histogram, line_chart, ticks
from neurorecon.reporting.films import mask_outline
from neurorecon.reporting.training_logs import training_curves

TIME = 24


def test_mp4_reads_back_with_its_frames_rate_and_even_size(tmp_path):
    truth = np.repeat(np.linspace(10, 240, TIME, dtype=np.float32), 9 * 15).reshape(TIME, 9, 15)
    mask = np.ones((9, 15), bool)
    path = tmp_path / "a.mp4"
    panels = {"True": truth, "A label far too long for its panel": difference_panel(truth, truth)}
    write_movie(path, panels, 12.5, mask, scale=3)
    movie = iio.imread(path)
    assert len(movie) == TIME
    assert iio.immeta(path)["fps"] == 12.5
    assert movie.shape[1] % 2 == 0 and movie.shape[2] % 2 == 0
    assert movie.shape[2] >= 2 * 3 * 15 and movie.shape[1] >= 3 * 9
    middle = movie[:, -20, 20].astype(float).mean(axis=1)  # inside the first panel: the ramp of grey values
    np.testing.assert_allclose(middle, truth[:, 0, 0], atol=4)
    white = movie[:, -20, -20].astype(float)  # the second panel: no difference is nearly white
    assert white.min() > 235


def test_mp4_dims_outside_the_mask_only(tmp_path):
    truth = np.full((3, 20, 20), 200.0, np.float32)
    mask = np.zeros((20, 20), bool)
    mask[:, 10:] = True
    write_movie(tmp_path / "a.mp4", {"True": truth}, 30.0, mask, scale=4)
    frame = iio.imread(tmp_path / "a.mp4")[1].astype(float).mean(axis=-1)
    assert frame[60, 20] < 110 and abs(frame[60, 70] - 200) < 4


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_movie_with_pixels_that_are_not_finite(tmp_path, value):
    movie = np.zeros((5, 4, 4), np.float32)
    movie[3, 0, 0] = value
    for write in (
        lambda: write_movie(tmp_path / "a.mp4", {"True": movie}, 30.0),
        lambda: write_tiff(tmp_path / "a.tiff", movie),
    ):
        with pytest.raises(NeuroreconError, match="frame 3"):
            write()
    assert list(tmp_path.iterdir()) == []


def test_wrong_input_is_one_line(tmp_path):
    movie = np.zeros((5, 4, 6), np.float32)
    for call in (
        lambda: write_movie(tmp_path / "a.avi", {"a": movie}, 30.0),
        lambda: write_movie(tmp_path / "a.mp4", {"a": movie, "b": movie[1:]}, 30.0),
        lambda: write_movie(tmp_path / "a.mp4", {"a": movie}, 0.0),
        lambda: write_movie(tmp_path / "a.mp4", {}, 30.0),
        lambda: write_movie(tmp_path / "a.mp4", {"a": movie}, 30.0, np.ones((6, 4), bool)),
        lambda: film_strip(movie, movie, None, tmp_path / "a.png", frames=[5]),
    ):
        with pytest.raises(NeuroreconError) as error:
            call()
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_fails_leaves_the_old_film(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\necho first line >&2\necho No space left on device >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", lambda: str(broken))
    with pytest.raises(NeuroreconError, match="No space left on device") as error:
        write_movie(path, {"a": np.zeros((200, 40, 40), np.float32)}, 30.0)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "ffmpeg"]


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.uint16])
def test_tiff_round_trip_is_exact(tmp_path, dtype):
    movie = np.random.default_rng(0).uniform(0, 255, (7, 5, 6)).astype(dtype)
    write_tiff(tmp_path / "a.tiff", movie, 30.0)
    with tifffile.TiffFile(tmp_path / "a.tiff") as file:
        assert len(file.pages) == 7
        assert file.asarray().dtype == dtype
        np.testing.assert_array_equal(file.asarray(), movie)


def test_tiff_does_not_round_quietly(tmp_path):
    with pytest.raises(NeuroreconError, match="float32 would"):
        write_tiff(tmp_path / "a.tiff", np.full((2, 3, 3), 0.1, np.float64))


def test_gif_has_every_second_frame(tmp_path):
    movie = np.random.default_rng(0).uniform(0, 255, (10, 8, 8)).astype(np.float32)
    write_gif(tmp_path / "a.gif", {"True": movie}, 30.0, scale=2, every=2)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 5 and image.info["duration"] == 70


def test_film_strip_shows_the_chosen_frames(tmp_path):
    truth = np.stack([np.full((6, 8), 25.0 * k, np.float32) for k in range(8)])
    film_strip(truth, 255 - truth, None, tmp_path / "s.png", frames=[1, 6], linear_decoder=truth, scale=10)
    shown = np.asarray(Image.open(tmp_path / "s.png").convert("RGBA"))
    rows = {tuple(c) for c in shown.reshape(-1, 4) if c[3] == 255}
    assert {(25, 25, 25, 255), (150, 150, 150, 255), (230, 230, 230, 255), (105, 105, 105, 255)} <= rows
    assert spread_frames(300, 3, skip=30) == [75, 165, 255]


def test_mask_outline_separates_inside_from_outside():
    mask = np.zeros((3, 4), bool)
    mask[1, 1:3] = True
    outline = mask_outline(mask)
    assert outline.outside == "M0 0h4v1h-4zM0 1h1v1h-1zM3 1h1v1h-1zM0 2h4v1h-4z"
    assert sorted(re.findall(r"M\d \dv1|M\d \dh1", outline.edge)) == sorted(
        ["M1 1v1", "M3 1v1", "M1 1h1", "M2 1h1", "M1 2h1", "M2 2h1"]
    )
    assert (outline.num_pixels, outline.num_all) == (2, 12)


def test_chart_leaves_gaps_and_keeps_all_numbers():
    x, y = np.arange(2000.0), np.sin(np.arange(2000) / 100)
    y[500:700] = np.nan
    chart = line_chart("a", [x], [y], ["one"], x_label="t", y_label="r", file="a.csv")
    assert chart.lines[0].path.count("M") == 2
    rows = base64.b64decode(chart.csv.split(",")[1]).decode().splitlines()
    assert rows[0] == "t,one" and len(rows) == 2001
    assert rows[600] == "599," and rows[1] == "0,0"
    assert line_chart("a", [x], [y * np.nan], ["one"], x_label="t", y_label="r", file="a.csv") is None
    assert [t.text for t in ticks(0, 1, 4)] == ["0.00", "0.25", "0.50", "0.75", "1.00"]
    assert [t.text for t in ticks(0, 1e5, 4)] == ["0", "25k", "50k", "75k", "100k"]
    assert [t.text for t in ticks(-2e6, 1e6, 3)] == ["-2M", "-1M", "0", "1M"]


def test_histogram_counts_every_value_once():
    values = np.array([0.0, 0.1, 0.1, 0.95, np.nan, np.inf])
    chart = histogram("a", [values, values[:1]], ["x", "y"], x_label="r", y_label="n", file="a.csv", bins=5)
    rows = list(csv.reader(base64.b64decode(chart.csv.split(",")[1]).decode().splitlines()))
    assert rows[0] == ["r, from", "to", "x", "y"]
    assert [row[-2] for row in rows[1:]] == ["3", "0", "0", "0", "1"] and sum(int(row[-1]) for row in rows[1:]) == 1
    assert (rows[1][0], rows[-1][1]) == ("0", "1")
    top = min(float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", chart.lines[0].path))
    assert top == pytest.approx(1000 * (1 - 1 / 1.04), abs=0.1)  # the highest bar, just below the frame
    assert histogram("a", [values[4:]], ["x"], x_label="r", y_label="n", file="a.csv") is None


def test_training_curves_of_lists_and_of_model_indices(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "metrics.jsonl").write_text(
        '{"step": 1, "loss": [3, 4]}\n{"step": 2, "loss": [9, 9]}\n{"step": 2, "loss": [1, 2]}\n{"step'
    )
    (tmp_path / "b" / "metrics.jsonl").write_text('{"step": 1, "model": 5, "loss": 7, "seconds": 3}\n')
    curves = training_curves([tmp_path, tmp_path / "a", tmp_path / "b"])
    assert list(curves) == ["loss"]
    assert {k: v[1].tolist() for k, v in curves["loss"].items()} == {
        "a, model 0": [3, 1],
        "a, model 1": [4, 2],
        "b, model 5": [7],
    }
    (tmp_path / "a" / "metrics.jsonl").write_text('{"step\n{"step": 1}\n')
    with pytest.raises(NeuroreconError, match="line 1"):
        training_curves([tmp_path / "a"])
