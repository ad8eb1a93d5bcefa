"""The gallery of a work folder's studies, and the guides in docs."""

import re
from pathlib import Path

import pytest

from experiments.gallery import MOST_BYTES, gallery
from neurorecon.errors import NeuroreconError
from neurorecon.reporting.studies import study_folder
from tests.test_report_page import add_study

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def test_gallery_has_the_findings_and_a_picture_of_each_study(tmp_path):
    add_study(tmp_path, "ensemble", 3)
    add_study(tmp_path, "ablation", 3)
    page = gallery(str(tmp_path), tmp_path / "docs").read_text()
    assert page.index("## Study <ablation>") < page.index("## Study <ensemble>")
    assert page.count("- It does: 0.12 [0.10, 0.14].") == 2
    for name in ("ensemble", "ablation"):
        picture = tmp_path / "docs" / "pictures" / f"{name}.svg"
        assert picture.read_bytes() == (study_folder(tmp_path, name) / "curve.svg").read_bytes()
        assert f"![Score against models.](pictures/{name}.svg)" in page and f"[{name}]({name}.md)" in page


def test_no_gallery_of_nothing_or_of_a_figure_too_large(tmp_path):
    with pytest.raises(NeuroreconError, match="finished studies"):
        gallery(str(tmp_path), tmp_path / "docs")
    add_study(tmp_path, "ensemble", 3)
    figure = study_folder(tmp_path, "ensemble") / "curve.svg"
    figure.write_text(figure.read_text() + " " * MOST_BYTES)
    with pytest.raises(NeuroreconError, match="100,000 bytes"):
        gallery(str(tmp_path), tmp_path / "docs")
    assert not (tmp_path / "docs").exists()


def test_every_study_has_a_guide_with_its_command():
    studies = [p.stem for p in (ROOT / "experiments").glob("*.py") if re.search(r"\bfinish\(", p.read_text())]
    studies = [name for name in studies if name != "studies"]
    assert len(studies) >= 9
    index = (DOCS / "README.md").read_text()
    for name in studies:
        guide = (DOCS / f"{name}.md").read_text()
        assert f"python -m experiments.{name} " in guide and f"[{name}]({name}.md)" in index


def test_links_and_settings_of_the_guides_exist():
    from experiments.configs.base import get_config

    keys = get_config()
    made = (DOCS / "gallery.md").is_file()  # by experiments.gallery; then with a picture for every guide
    for path in [*DOCS.glob("*.md"), ROOT / "README.md"]:
        text = path.read_text()
        for link in re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r'src="([^":]+)"', text):
            from_studies = "pictures/" in link or link.endswith("gallery.md")
            assert (path.parent / link).is_file() or (from_studies and not made), f"{path.name}: {link}"
        for key in re.findall(r"^\| ((?:`[\w.]+`(?:, )?)+) \|", text, flags=re.MULTILINE):
            for name in re.findall(r"`(\w+\.\w+|\w+_max_clips)`", key):
                node = keys
                for part in name.split("."):
                    assert part in node, f"{path.name}: {name}"
                    node = node[part]
