"""The report page: as text, and in a real browser where one is installed."""

import base64
import csv
import dataclasses
import html
import json
import re
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

import experiments.report
from experiments.configs.demo import get_config as demo_config
from experiments.report import study_command
from neurorecon.errors import NeuroreconError
from neurorecon.files import save_json, save_npz
from neurorecon.reporting import ReportClip, load_clip, scores_figure, write_report
from neurorecon.reporting.panels import NEUTRAL, deviation_panel
from neurorecon.reporting.studies import Study, study_folder, write_study
from neurorecon.reporting.study_figures import COLOURS, TEXT, new_figure, study_style
from neurorecon.reporting.study_sections import MOST_ROWS, inline_figure
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


def add_study(folder: Path, name: str, rows: int) -> None:
    """A finished study with a line and a picture, whose ids clash with those of another study's figures."""
    with study_style():
        figure, axes = new_figure()
        axes[0, 0].plot([1, 2, 4], [0.1, 0.3, 0.4], color=COLOURS[0], label="line")
        axes[0, 0].imshow(np.eye(3), extent=(1, 2, 0.1, 0.2), aspect="auto")
        axes[0, 0].set(xlabel="models < 5", ylabel="correlation")
    study = Study(
        name=name,
        title=f"Study <{name}>",
        question="Does it?",
        findings=["It does: 0.12 [0.10, 0.14].", "More & more."],
        columns={"models": "number of models", "score": "correlation"},
        rows=[{"models": k, "score": None if k == 1 else (k * 7 % 13) / 13} for k in range(rows)],
        captions={"curve": "Score against models."},
        seconds=61.0,
        config=demo_config().to_dict(),
        versions={"jax": "1"},
    )
    write_study(study_folder(folder, name), study, {"curve": figure})


def add_encoder_metrics(folder: Path) -> None:
    """What experiments.evaluate leaves of a training with two animals and two models."""

    def scores(mean: float) -> dict:
        names = ("encoders", "encoders/0", "encoders/1", "mean_response", "behaviour_only", "expected_response")
        return {name: {"mean": mean / (k + 1), "ci95": [0.9 * mean / (k + 1), mean]} for k, name in enumerate(names)}

    animals = {
        name: {"neurons": 30, "clips": 4, "repeated_clips": 2, "single_trial_correlation": scores(mean)}
        for name, mean in (("fly", 0.31), ("bee", 0.52))
    }
    save_json(
        folder / "encoder_metrics.json",
        {
            "tier": "oracle",
            "chose_the_best_moment": True,
            "scores": {"single_trial_correlation": scores(0.4142), "correlation_to_average": scores(0.6)},
            "animals": animals,
            "models": ["encoders/0", "encoders/1"],
            "differences": {
                name: {"mean": 0.125, "ci95": [0.1, 0.15]} for name in ("linear_nonlinear", "expected_response")
            },
            "ensembles": [{"models": 2, "subsets": 1, "mean": 0.4, "over_one": {"mean": 0.0123, "ci95": [0.01, 0.02]}}],
            "share_of_ceiling": {"mean": 0.777, "ci95": [0.7, 0.8]},
            "versions": {"jax": "9.8.7"},
        },
    )
    values = np.random.default_rng(0).normal(0.3, 0.1, (3, 30))
    values[0, 3] = np.nan  # a neuron that never answers
    predictors = np.array(["encoders", "encoders/0", "behaviour_only"])
    save_npz(folder / "encoder_metrics" / "fly.npz", predictors=predictors, single_trial_correlation=values)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    deviation = np.random.default_rng(3).normal(0, 2, (TIME, HEIGHT, WIDTH)).astype(np.float32)
    deviation[:, :2] = np.nan
    clips = [
        make_clip("7", 0, deviation=deviation),
        make_clip("12", 1),
        make_clip("9", 2, movie_std=None, linear_decoder=None),
    ]
    records = [{"step": s, "loss": [1.0 / s, 2.0 / s]} for s in range(1, 9)]
    (folder / "training").mkdir()
    lines = "\n".join(json.dumps(r) for r in records) + '\n{"step": 9, "lo'
    (folder / "training" / "metrics.jsonl").write_text(lines)
    add_study(folder, "ensemble", 12)
    add_study(folder, "ablation", MOST_ROWS + 5)
    add_encoder_metrics(folder)
    commands = {"ensemble": "python -m experiments.ensemble --workdir here"}
    config = {"recipe": "default", "skip_frames": 4}
    path = write_report(folder, clips, make_metrics(clips), config, commands=commands)
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
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    sources = re.findall(r'\b(?:src|href)="([^"]*)"', page)
    assert sources and all(s.startswith(("data:", "#")) for s in sources)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    inner = [s[1:] for s in sources if s.startswith("#")] + re.findall(r"url\(#([^)]*)\)", page)
    assert set(inner) <= set(ids)


def test_page_shows_all_clips_and_the_values_of_metrics(report):
    _, page, clips = report
    assert page.count("<video") == len(clips)
    assert page.count("<canvas") == 6 + 5 + 3
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
    for film, clip, panels in zip(films, clips, (6, 5, 3), strict=True):
        (tmp_path / "film.mp4").write_bytes(base64.b64decode(film))
        movie = iio.imread(tmp_path / "film.mp4")
        scale = round(128 / WIDTH)
        width = WIDTH * scale + WIDTH * scale % 2
        assert movie.shape == (TIME, HEIGHT * scale + HEIGHT * scale % 2, panels * width, 3)
        centres = slice(scale // 2, None, scale)
        for index, expected in enumerate((clip.truth, clip.movie)):
            cells = movie[:, centres, index * width : (index + 1) * width][:, :HEIGHT, centres][:, :, :WIDTH]
            assert np.abs(cells.mean(axis=-1) - expected).mean() < 4


def test_page_shows_every_study_with_its_numbers(report):
    path, page, _ = report
    for name, rows in (("ensemble", 12), ("ablation", MOST_ROWS + 5)):
        assert f'id="study-{name}"' in page and f"Study &lt;{name}&gt;" in page
        csv_uri = re.search(rf'download="{name}.csv" href="data:text/csv;base64,([^"]*)"', page)
        assert csv_uri
        table = base64.b64decode(csv_uri[1])
        assert table == (path.parent / "studies" / name / "table.csv").read_bytes()
        assert len(list(csv.reader(table.decode().splitlines()))) == rows + 1
    assert page.count("It does: 0.12 [0.10, 0.14].") == page.count("Score against models.</figcaption>") == 2
    assert "5 further rows are in the CSV" in page and "1 min 1 s" in page
    assert "python -m experiments.ensemble --workdir here" in page
    assert f"python -m experiments.ablation --workdir {path.parent}" in page


def test_figures_take_the_pages_colours_and_keep_to_themselves(report):
    path, _, _ = report
    figure = inline_figure(path.parent / "studies" / "ensemble", "curve", 'a "caption"')
    assert figure.svg.startswith("<svg") and 'aria-label="a &quot;caption&quot;"' in figure.svg
    assert abs(figure.width - 95 / 25.4 * 96) < 20  # cut to what is drawn
    assert not re.search(r"<metadata|<style|<!--|xmlns|http", figure.svg)
    assert "stroke: var(--blue)" in figure.svg and "fill: var(--soft)" in figure.svg
    assert COLOURS[0] not in figure.svg and TEXT not in figure.svg
    assert "models &lt; 5" in figure.svg and "data:image/png" in figure.svg


def test_encoders_are_on_the_page_of_their_clips(report):
    _, page, _ = report
    assert "The mean of 2 encoders predicts" in page and "0.414 (95 % interval 0.373 to 0.414)" in page
    assert "60 neurons, 8 clips; 78 % of what the noise-free response reaches" in page
    assert "also fitted the encoders" in page
    assert "Correlation above linear-nonlinear: 0.125 [0.100, 0.150]" in page and "above ceiling" not in page
    assert "Averaging 2 encoders adds 0.012 [0.010, 0.020] to one." in page
    assert "30 neurons, 4 clips" in page and ">0.310" in page and ">0.520" in page
    histogram = re.search(r'download="neurons_fly.csv" href="data:text/csv;base64,([^"]*)"', page)
    assert histogram and "neurons_bee.csv" not in page
    rows = list(csv.reader(base64.b64decode(histogram[1]).decode().splitlines()))
    assert len(rows[0]) == 4 and rows[0][2].startswith("encoders, median")
    assert sum(int(row[2]) for row in rows[1:]) == 29 and sum(int(row[3]) for row in rows[1:]) == 30


def test_page_of_a_training_alone(tmp_path, monkeypatch):
    save_json(tmp_path / "config.json", demo_config().to_dict())
    save_json(tmp_path / "jobs.json", {"train": {"recordings": "r"}})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": [3, 4]}\n{"step": 2, "loss": [2, 3]}\n')
    add_study(tmp_path, "ensemble", 3)
    scored = []

    def evaluate_encoders(workdir, config):
        scored.append((workdir, config.seed))
        add_encoder_metrics(tmp_path)
        return {"versions": {"jax": "9.8.7"}}

    monkeypatch.setattr(experiments.report, "evaluate_encoders", evaluate_encoders)
    for _ in range(2):
        page = experiments.report.report(str(tmp_path)).read_text()
        assert "How well they predict" in page and "9.8.7" in page and "bee, fly" in page
        assert "training_loss.csv" in page and 'id="study-ensemble"' in page
        assert "<video" not in page and "How close it comes" not in page and "Every clip" not in page
    assert scored == [(str(tmp_path), 2)]  # once: what is there is not made again


def test_command_of_a_study_names_what_differs():
    config = demo_config()
    assert study_command("masks", config.to_dict(), "runs/my demo") == (
        "python -m experiments.masks --config experiments/configs/demo.py --workdir 'runs/my demo'"
    )
    config.seed, config.encoders, config.factorized.features = 101, "a,b c", (1, 2)
    flags = study_command("masks", json.loads(json.dumps(config.to_dict())), "w").split(" --")
    assert "config.seed=101" in flags and "config.encoders='a,b c'" in flags
    assert "config.factorized.features='(1, 2)'" in flags and len(flags) == 6
    config.encoders = "w"  # as the study takes it from the folder
    assert "encoders" not in study_command("masks", config.to_dict(), "w")


def test_a_study_without_its_figure_or_table_is_one_line(tmp_path):
    add_encoder_metrics(tmp_path)
    for missing in ("curve.svg", "table.csv"):
        add_study(tmp_path, "ensemble", 3)
        (study_folder(tmp_path, "ensemble") / missing).unlink()
        with pytest.raises(NeuroreconError, match="run the study again") as error:
            write_report(tmp_path, [], {}, {})
        assert "\n" not in str(error.value)
    (tmp_path / "encoder_metrics.json").write_text("{}")
    with pytest.raises(NeuroreconError, match="evaluate again"):
        write_report(tmp_path, [], {}, {})


def test_deviation_is_coloured_by_sign_and_grey_where_unknown():
    colours = deviation_panel(np.array([[[-4.0, 0.0, 4.0, np.nan]]])).astype(int)[0, 0]
    assert colours[0, 2] > colours[0, 1] and colours[2, 0] > colours[2, 2]  # purple, orange
    assert colours[1].min() > 240 and (colours[3] == NEUTRAL).all()


def test_page_without_controls_curves_and_costs(tmp_path):
    clip = make_clip("1", 0, movie_std=None, linear_decoder=None, trace={}, scores={})
    clip = dataclasses.replace(clip, truth=np.full_like(clip.truth, 9))  # no contrast: no correlation is defined
    metrics = {"clips": [], "summary": {"movie_correlation": {"mean": None, "ci95": None}}}
    page = write_report(tmp_path, [clip], metrics, {}).read_text()
    assert "n/a" in page and 'class="plot"' not in page
    for absent in ("The descent", "The encoders", "Studies"):
        assert absent not in page


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
        lambda: write_report(
            tmp_path, [dataclasses.replace(clip, deviation=np.full_like(clip.truth, np.inf))], make_metrics([clip]), {}
        ),
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
        # The numbers of a study unfold, sort, and what is not defined stays last.
        scores = browser.run(
            """(() => {
              const study = document.getElementById("study-ensemble");
              study.querySelector("summary").click();
              const column = () => [...study.querySelectorAll("tbody tr")].map((row) => row.cells[1].dataset.key);
              study.querySelector("th[data-name=score] button").click();
              return [study.querySelector("details").open, column()];
            })()"""
        )
        assert scores[0] and scores[1][-1] == "" and len(scores[1]) == 12
        numbers = [float(score) for score in scores[1][:-1]]
        assert numbers == sorted(numbers, reverse=True) and numbers[0] > 0.8
        # Figures are drawn as wide as the phone, their text in the theme's colour.
        for theme in ("light", "dark"):
            scheme = {"name": "prefers-color-scheme", "value": theme}
            browser.call("Emulation.setEmulatedMedia", features=[scheme])
            drawn = browser.run(
                """[...document.querySelectorAll(".study svg")].map((svg) => {
                  const text = svg.querySelector("text"), colour = getComputedStyle(text).fill;
                  const soft = getComputedStyle(document.querySelector(".soft")).color;
                  return [svg.getBoundingClientRect().width, svg.getBoundingClientRect().height, colour === soft];
                })"""
            )
            assert len(drawn) == 2 and all(300 < width < 390 and height > 150 and same for width, height, same in drawn)
        browser.call("Emulation.setEmulatedMedia", media="", features=[])
        assert browser.run("document.documentElement.scrollWidth") <= 390
        folded = "document.querySelectorAll('details.print-open:not([open])').length"
        before = browser.run(folded)
        browser.call("Page.printToPDF")
        assert browser.run(folded) == before > 0  # unfolded for print, then as it was
        assert not browser.seen("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        asked = {event["request"]["url"].split(":")[0] for event in browser.seen("Network.requestWillBeSent")}
        assert asked <= {"file", "data", "about"}
    finally:
        browser.close()
