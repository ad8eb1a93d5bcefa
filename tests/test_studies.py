"""Studies on disk, and the work folders that they ask."""

import json

import pytest

from experiments import studies
from neurorecon.errors import NeuroreconError
from neurorecon.reporting.studies import Study, figure_svg, read_studies, study_folder, write_study
from neurorecon.reporting.study_figures import new_figure
from tests.tiny_run import random_encoders, tiny_config


def study(**changes):
    values = {
        "name": "masks",
        "title": "Masks",
        "question": "Where?",
        "findings": ["Here."],
        "columns": {"mask": "which", "correlation": "movie correlation"},
        "rows": [{"mask": "standard", "correlation": 0.5}, {"mask": "strict", "correlation": None}],
        "captions": {"sweep": "A sweep."},
        "seconds": 1.5,
        "config": {"seed": 1},
        "versions": {"jax": "0"},
    }
    return Study(**{**values, **changes})


def figure():
    found, axes = new_figure()
    axes[0, 0].plot([0, 1], [0, 1])
    axes[0, 0].set_xlabel("threshold")
    return found


def test_what_is_written_is_read(tmp_path):
    folder = study_folder(tmp_path, "masks")
    assert read_studies(tmp_path) == []
    write_study(folder, study(), {"sweep": figure()})
    assert read_studies(tmp_path) == [study()]
    assert (folder / "table.csv").read_text().splitlines() == ["mask,correlation", "standard,0.5", "strict,"]
    (folder / "study.json").write_text(json.dumps({"name": "masks"}))
    with pytest.raises(NeuroreconError, match="run the study again"):
        read_studies(tmp_path)


def test_figures_share_a_page_without_clashing(tmp_path):
    folder = study_folder(tmp_path, "masks")
    write_study(folder, study(), {"sweep": figure()})
    svg = figure_svg(folder, "sweep")
    assert svg.startswith("<svg") and "threshold</text>" in svg
    assert 'id="masks-sweep-' in svg and 'href="#masks-sweep-' in svg and "url(#masks-sweep-" in svg
    with pytest.raises(NeuroreconError, match="found none"):
        figure_svg(folder, "other")


@pytest.mark.parametrize(
    "changes, message",
    [({"rows": [{"mask": "standard"}]}, "columns"), ({"captions": {}}, "captions")],
)
def test_a_table_without_its_columns_is_refused(tmp_path, changes, message):
    with pytest.raises(NeuroreconError, match=message):
        write_study(tmp_path, study(**changes), {"sweep": figure()})
    assert not (tmp_path / "study.json").exists()


def test_a_study_takes_recordings_and_encoders_from_the_folder(tmp_path):
    with pytest.raises(NeuroreconError, match="found none"):
        studies.begin(tiny_config(), str(tmp_path / "empty"), "masks", ("masks",))
    work = random_encoders(tmp_path / "work")
    (work / "jobs.json").write_text(json.dumps({"train": {"recordings": "somewhere/mouse1"}}))
    config, folder = studies.begin(tiny_config(), str(work), "masks", ("masks",))
    assert (config.recordings, config.encoders) == ("somewhere/mouse1", str(work))
    assert folder == work / "studies" / "masks"
    for changes in ({"masks__strict": 0.8}, {"max_clips": 1}):
        with pytest.raises(NeuroreconError, match="begun with"):
            studies.begin(tiny_config(**changes), str(work), "masks", ("masks",))


@pytest.mark.parametrize("asked, cap, expected", [(0, 4, 4), (2, 4, 2), (6, 4, 4), (3, 0, 3), (0, 0, 0)])
def test_the_fewer_clips_count(asked, cap, expected):
    config = tiny_config(max_clips=asked)
    assert studies.capped(config, cap).max_clips == expected and config.max_clips == asked
