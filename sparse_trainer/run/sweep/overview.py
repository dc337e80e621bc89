"""`report.html` of several models: their table, quality over speed, and where the page of each is."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sparse_trainer.files.writing import write_text
from sparse_trainer.run.page import PAGE_FILE
from sparse_trainer.run.sweep.figures import Figures
from sparse_trainer.run.sweep.picture import speed_figure
from sparse_trainer.run.templates import filled, svg_pictures

_TEMPLATE = "overview.html.jinja"


def write_overview(
    folder: Path,
    rows: Sequence[Sequence[str]],
    models: Mapping[str, Figures],
    pages: Mapping[str, Path],
    *,
    name: str,
    title: str,
) -> Path:
    """Write `report.html` into the folder of the models, and return where it is.

    Args:
        rows: The table; the first row is the header.
        models: What was measured of each.
        pages: Folders inside `folder` that hold a page of their own.
        name: What stands above all.
        title: In a line, what the models are.
    """
    figure = speed_figure(models, title)
    text = filled(
        _TEMPLATE,
        name=name,
        title=title,
        rows=rows,
        figures=svg_pictures({} if figure is None else {"Quality over speed": figure}),
        links={said: (place.relative_to(folder) / PAGE_FILE).as_posix() for said, place in pages.items()},
    )
    write_text(folder / PAGE_FILE, text)
    return folder / PAGE_FILE
