"""A study as a section of the page: its figures inline, in the page's own colours, and its table with the numbers."""

import dataclasses
import html
import re
from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup

from neurorecon.errors import NeuroreconError
from neurorecon.reporting.charts import data_uri
from neurorecon.reporting.scores import duration
from neurorecon.reporting.studies import Study, figure_svg, read_studies, study_folder
from neurorecon.reporting.study_figures import COLOURS, FAINT, TEXT
from neurorecon.reporting.tables import Table, data_table

MOST_ROWS = 100  # of a table on the page; its CSV has all
PRINTED_ROWS = 24  # a longer table stays closed in print
PIXELS_PER_POINT = 4 / 3
COLUMN = 480  # CSS pixels that one of two figures side by side has
# The figures' colours -> the page's, which has a tone of each for light and for dark.
_TONES = dict(zip(COLOURS, ("--blue", "--orange", "--green", "--purple", "--vermillion", "--violet"), strict=True))
_TONES |= {TEXT: "--soft", FAINT: "--grey"}


@dataclasses.dataclass(frozen=True)
class StudyFigure:
    """An <svg> element, its caption, and its width at full size in CSS pixels."""

    svg: Markup
    caption: str
    width: int

    @property
    def wide(self) -> bool:
        """Whether it needs the page's whole width."""
        return self.width > COLUMN


@dataclasses.dataclass(frozen=True)
class StudySection:
    """What page_studies.html.jinja needs of one study."""

    study: Study
    figures: list[StudyFigure]
    table: Table
    csv: str
    command: str

    @property
    def anchor(self) -> str:
        """Its place on the page."""
        return f"study-{self.study.name}"

    @property
    def time(self) -> str:
        """How long it took."""
        return duration(self.study.seconds)

    @property
    def printed(self) -> bool:
        """Whether its table is opened in print."""
        return len(self.table.rows) <= PRINTED_ROWS


def study_sections(workdir: Path, commands: Mapping[str, str]) -> list[StudySection]:
    """The finished studies of a work folder, by name.

    Args:
      workdir: holds studies/NAME/.
      commands: name -> what makes the study again; where there is none, that with default settings is shown.

    Raises:
      NeuroreconError: a study can't be read, or lacks a figure or its table.
    """
    sections = []
    for study in read_studies(workdir):
        folder = study_folder(workdir, study.name)
        try:
            csv = (folder / "table.csv").read_bytes()
        except OSError:
            raise NeuroreconError(
                f"{folder / 'table.csv'}: expected a table, found none; run the study again"
            ) from None
        sections.append(
            StudySection(
                study=study,
                figures=[inline_figure(folder, name, caption) for name, caption in study.captions.items()],
                table=data_table(study.columns, study.rows, MOST_ROWS),
                csv=data_uri("text/csv", csv),
                command=commands.get(study.name, f"python -m experiments.{study.name} --workdir {workdir}"),
            )
        )
    return sections


def inline_figure(folder: Path, name: str, caption: str) -> StudyFigure:
    """A figure as matplotlib wrote it, without what concerns the whole page, in the page's colours and font.

    Raises:
      NeuroreconError: the file is missing or no SVG.
    """
    svg = figure_svg(folder, name)
    found = re.search(r'<svg[^>]*\bwidth="([\d.]+)pt"', svg)
    if found is None:
        raise NeuroreconError(f"{folder / name}.svg: expected a width in points, found none; run the study again")
    width = round(float(found[1]) * PIXELS_PER_POINT)
    # Its style sheet would hold for every drawing of the page; names of namespaces mean nothing within HTML.
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->|<\?.*?\?>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(?::\w+)?="[^"]*"', "", svg)
    head, body = svg.split(">", 1)
    head = re.sub(r'\s(?:width|height|version)="[^"]*"', "", head)
    head += f' role="img" aria-label="{html.escape(caption)}"'
    for colour, tone in _TONES.items():
        body = re.sub(rf"(?<=: ){colour}\b", f"var({tone})", body, flags=re.IGNORECASE)
    return StudyFigure(Markup(f"{head}>{body}"), caption, width)
