"""Makes docs/gallery.md and the guides' pictures from the studies of a work folder.

    python -m experiments.gallery --workdir runs/demo

For each finished study: title, question, findings, and its first figure that is small enough, in docs/pictures.
"""

import shutil
from pathlib import Path

from experiments import cli
from neurorecon.errors import NeuroreconError
from neurorecon.files import atomic_path
from neurorecon.reporting.studies import Study, read_studies, study_folder

DOCS = Path(__file__).resolve().parents[1] / "docs"
MOST_BYTES = 100_000  # of a picture in the repository
HEAD = """# What the demo's animal shows

A simulated mouse, single trials, clips that no training saw; made by `make demo`, the commands of the
[guides](README.md) and `python -m experiments.gallery`. Brackets hold 95 %
intervals over clips; one animal, so they say nothing of others.
"""


def gallery(workdir: str, docs: Path = DOCS) -> Path:
    """Writes DOCS/gallery.md and DOCS/pictures/NAME.svg; returns the former's path.

    Raises:
      NeuroreconError: no finished study is there, or one has no figure of at most `MOST_BYTES`.
    """
    studies = read_studies(workdir)
    if not studies:
        raise NeuroreconError(f"{workdir}: expected finished studies, found none; run one, such as experiments.match")
    chosen = {study.name: _picture(workdir, study) for study in studies}
    parts = [HEAD]
    for study in studies:
        name, caption = chosen[study.name]
        with atomic_path(docs / "pictures" / f"{study.name}.svg") as path:
            shutil.copyfile(study_folder(workdir, study.name) / f"{name}.svg", path)
        parts += [
            f"## {study.title}\n",
            f"{study.question}\n",
            "".join(f"- {finding}\n" for finding in study.findings),
            f"![{caption}](pictures/{study.name}.svg)\n",
            f"*{caption}* Guide: [{study.name}]({study.name}.md).\n",
        ]
    with atomic_path(docs / "gallery.md") as path:
        path.write_text("\n".join(parts), encoding="utf-8")
    return docs / "gallery.md"


def _picture(workdir: str, study: Study) -> tuple[str, str]:
    """Name and caption of the first figure that is small enough."""
    folder = study_folder(workdir, study.name)
    for name, caption in study.captions.items():
        path = folder / f"{name}.svg"
        if path.is_file() and path.stat().st_size <= MOST_BYTES:
            return name, caption
    raise NeuroreconError(
        f"{folder}: expected a figure of at most {MOST_BYTES:,} bytes, found none; run the study again"
    )


def main(config: None, workdir: str) -> None:
    del config
    print(gallery(workdir))


if __name__ == "__main__":
    cli.run(main, __doc__, config=None)
