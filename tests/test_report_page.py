"""The report page: as text, and in a real browser where one is installed."""

import base64
import dataclasses
import html
import json
import re

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from neurorecon.errors import NeuroreconError
from neurorecon.reporting import ReportClip, load_clip, scores_figure, write_report
from tests.browser import CHROMIUM, Browser

TIME, HEIGHT, WIDTH = 24, 9, 15
EVIL = 'mouse <b>"1" & 2</b>'


def make_clip(trial: str, seed: int, **changes) -> ReportClip:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 255, (TIME, HEIGHT, WIDTH)).astype(np.float32)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[2:7, 3:11] = True
    clip = ReportClip(
        animal=EVIL,
        trial=trial,
        truth=truth,
        movie=0.5 * truth + 60,
        mask=mask,
        linear_decoder=truth[::-1].copy(),
        movie_std=np.full_like(truth, 12),
        trace={"loss": np.linspace(2, 1, 20), "window_loss": np.ones((20, 2, 3))},
        frame_rate=30.0,
        scores={
            "animal": EVIL,
            "trial": trial,
            "movie_correlation": 0.4321 + seed / 10,
            "ssim": float("nan"),
        },
    )
    return dataclasses.replace(clip, **changes)


def make_metrics(clips) -> dict:
    return {
        "clips": [dict(clip.scores) for clip in clips],
        "summary": {"movie_correlation": {"mean": 0.4567, "ci95": [0.4011, 0.5022]}},
        "controls": {
            "grey": {"mean": float("nan"), "ci95": None},
            "linear_decoder": {"mean": 0.2345, "ci95": [0.2, 0.26]},
            "ceiling": {"mean": 0.789, "ci95": [0.7, 0.85]},
        },
        "differences": {"linear_decoder": {"mean": 0.2222, "ci95": [0.15, 0.3]}},
        "cost": {"encoder_windows": 1234567, "seconds": 252.0},
        "versions": {"jax": "0.10.2"},
    }


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    clips = [make_clip("7", 0), make_clip("12", 1), make_clip("9", 2, movie_std=None, linear_decoder=None)]
    records = [{"step": s, "loss": [1.0 / s, 2.0 / s]} for s in range(1, 9)]
    (folder / "training").mkdir()
    lines = "\n".join(json.dumps(r) for r in records) + '\n{"step": 9, "lo'
    (folder / "training" / "metrics.jsonl").write_text(lines)
    path = write_report(folder, clips, make_metrics(clips), {"recipe": "default", "skip_frames": 4})
    return path, path.read_text(), clips


def test_scores_figure_takes_undefined_scores(tmp_path):
    scores_figure(make_metrics([make_clip("1", 0)]), tmp_path / "scores.png")
    assert Image.open(tmp_path / "scores.png").width > 500


def test_load_clip_reads_what_the_contract_writes(tmp_path):
    clip = make_clip("3", 0)
    np.savez(tmp_path / "3.npz", movie=clip.movie, mask=clip.mask, animal="m", trial="3", trace_loss=np.ones(4))
    loaded = load_clip(tmp_path / "3.npz", clip.truth, frame_rate=20.0, scores={"ssim": 0.1})
    assert (loaded.animal, loaded.trial, loaded.frame_rate, loaded.movie_std) == ("m", "3", 20.0, None)
    np.testing.assert_array_equal(loaded.movie, clip.movie)
    assert list(loaded.trace) == ["loss"]
    np.savez(tmp_path / "4.npz", movie=clip.movie)
    with pytest.raises(NeuroreconError, match="mask, animal, trial"):
        load_clip(tmp_path / "4.npz", clip.truth, frame_rate=20.0, scores={})


def test_page_loads_nothing_from_elsewhere(report):
    _, page, _ = report
    assert not re.search(r"https?:", page)
    assert "@import" not in page and "url(" not in page
    sources = re.findall(r'\b(?:src|href)="([^"]*)"', page)
    assert sources and all(s.startswith(("data:", "#clip-")) for s in sources)


def test_page_shows_all_clips_and_the_values_of_metrics(report):
    _, page, clips = report
    assert page.count("<video") == len(clips)
    assert page.count("<canvas") == 5 + 5 + 3
    for clip in clips:
        assert f"trial {clip.trial}</span>" in page
        score = clip.scores["movie_correlation"]
        assert f'data-key="{score!r}" class="num">{score:.3f}<' in page
    for text in (
        "0.457",
        "[0.401, 0.502]",
        "0.234",
        "[0.200, 0.260]",
        "0.222",
        "1,234,567",
        "4 min 12 s",
        "0.10.2",
    ):
        assert text in page, text
    assert page.count("n/a") >= 4  # grey, and the SSIM of three clips
    assert "nan" not in re.sub(r'base64,[^"]*', "", page).lower().replace("animal", "")
    assert "&#34;recipe&#34;: &#34;default&#34;" in page
    assert "Loss" in page and "Window loss" not in page and "model 1" in page


def test_page_escapes_names(report):
    _, page, _ = report
    assert EVIL not in page and "<b>" not in page
    assert str(html.escape(EVIL)).replace("&quot;", "&#34;") in page


def test_films_of_the_page_hold_every_frame(report, tmp_path):
    _, page, clips = report
    films = re.findall(r'<video[^>]*src="data:video/mp4;base64,([^"]*)"', page)
    for film, clip, panels in zip(films, clips, (5, 5, 3), strict=True):
        (tmp_path / "film.mp4").write_bytes(base64.b64decode(film))
        movie = iio.imread(tmp_path / "film.mp4")
        scale = round(128 / WIDTH)
        width = WIDTH * scale + WIDTH * scale % 2
        assert movie.shape == (TIME, HEIGHT * scale + HEIGHT * scale % 2, panels * width, 3)
        centres = slice(scale // 2, None, scale)
        for index, expected in enumerate((clip.truth, clip.movie)):
            cells = movie[:, centres, index * width : (index + 1) * width][:, :HEIGHT, centres][:, :, :WIDTH]
            assert np.abs(cells.mean(axis=-1) - expected).mean() < 4


def test_page_without_controls_curves_and_costs(tmp_path):
    clip = make_clip("1", 0, movie_std=None, linear_decoder=None, trace={}, scores={})
    clip = dataclasses.replace(clip, truth=np.full_like(clip.truth, 9))  # no contrast: no correlation is defined
    metrics = {"clips": [], "summary": {"movie_correlation": {"mean": None, "ci95": None}}}
    page = write_report(tmp_path, [clip], metrics, {}).read_text()
    assert "n/a" in page and 'class="plot"' not in page and "How it was learned" not in page


def test_a_failing_report_leaves_the_old_one(tmp_path, report):
    _, _, clips = report
    (tmp_path / "report.html").write_text("old")
    wrong = dataclasses.replace(clips[0], truth=clips[0].truth[1:])
    with pytest.raises(NeuroreconError, match="shape"):
        write_report(tmp_path, [clips[0], wrong], make_metrics(clips), {})
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "old"


def test_what_can_not_be_reported_is_one_line(tmp_path):
    clip = make_clip("1", 0)
    for call in (
        lambda: write_report(tmp_path, [], make_metrics([]), {}),
        lambda: write_report(tmp_path, [clip], {}, {}),
        lambda: write_report(tmp_path, [clip], {"summary": {"movie_correlation": 0.5}}, {}),
        lambda: write_report(tmp_path, [dataclasses.replace(clip, mask=clip.mask.T)], make_metrics([clip]), {}),
        lambda: load_clip(tmp_path / "none.npz", clip.truth, frame_rate=30.0, scores={}),
    ):
        with pytest.raises(NeuroreconError) as error:
            call()
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_page_works_in_a_browser(report, tmp_path):
    path, _, clips = report
    browser = Browser(tmp_path)
    try:
        browser.call("Emulation.setDeviceMetricsOverride", width=390, height=6000, deviceScaleFactor=1, mobile=True)
        browser.open(path.as_uri())
        films = browser.run(
            """new Promise((resolve) => {
              const videos = [...document.querySelectorAll("video")];
              const start = performance.now();
              const look = () => {
                const ready = videos.every((v) => v.played.length);
                if (!ready && performance.now() - start < 30000) return setTimeout(look, 50);
                resolve(videos.map((v) => [v.duration, v.played.length > 0, !v.error]));
              };
              look();
            })"""
        )
        assert len(films) == len(clips)
        for length, played, intact in films:
            assert length == pytest.approx(TIME / 30.0, abs=0.01)
            assert played and intact
        # Stopped at frame 5, the canvases hold that frame of the true and of the reconstructed movie.
        pixels = browser.run(
            """(async () => {
              const film = document.querySelector(".film"), video = film.querySelector("video");
              const scrub = film.querySelector(".scrub");
              const done = new Promise((resolve) => { video.onseeked = resolve; });
              scrub.value = 5;
              scrub.dispatchEvent(new Event("input"));
              await done;
              await new Promise((resolve) => setTimeout(resolve, 200));
              const grey = [...film.querySelectorAll("canvas")].slice(0, 2).map((canvas) => {
                const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
                return [...data].filter((_, i) => i % 4 === 1);
              });
              return [video.paused, film.querySelector(".now").textContent, grey];
            })()"""
        )
        assert pixels[0] and "frame 5" in pixels[1]
        for shown, movie in zip(pixels[2], (clips[0].truth, clips[0].movie), strict=True):
            assert np.abs(np.reshape(shown, (HEIGHT, WIDTH)) - movie[5]).mean() < 6
        order = """(name) => {
          document.querySelector(`#clip-table th[data-name=${name}] button`).click();
          const rows = [...document.querySelectorAll("#clip-table tbody tr")];
          return rows.map((row) => row.cells[1].textContent);
        }"""
        assert browser.run(f"({order})('movie_correlation')") == ["9", "12", "7"]
        assert browser.run(f"({order})('movie_correlation')") == ["7", "12", "9"]
        assert browser.run(f"({order})('trial')") == ["7", "9", "12"]
        assert browser.run("document.documentElement.scrollWidth") <= 390
        assert not browser.seen("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        asked = {event["request"]["url"].split(":")[0] for event in browser.seen("Network.requestWillBeSent")}
        assert asked <= {"file", "data", "about"}
    finally:
        browser.close()
