"""The look of all pictures: colours, panels one below the other, written as PNG or as SVG inside a page."""

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sparse_trainer.files.writing import new_file

INK: Final = "#414a57"
"""Text and axes; in a page, the colour of its text."""
KEPT: Final = "#3a76c4"
GONE: Final = "#d1495b"
BEFORE: Final = "#c3c9d2"
"""What there was before; seen on white and on black."""
MORE: Final = ("#2a9d8f", "#e09f3e", "#8e6bbf", "#7a8594")
"""Further lines of a panel."""
LABEL: Final = 8
"""Size of text at axes, in points; a title has 2 more."""
_WIDTH = 8.0
_TITLE = 88
"""Letters of a line of a title."""
_MOST_TICKS = 20
"""Names below an axis at most: of 80 layers every fifth has one."""
_STYLE: Final[dict[Any, Any]] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": LABEL,
    "axes.prop_cycle": f"cycler('color', {[KEPT, GONE, *MORE]})",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": LABEL + 1,
    "legend.fontsize": LABEL,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "sparse-trainer",
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": LABEL,
    "ytick.color": INK,
    "ytick.labelsize": LABEL,
}


@contextmanager
def look() -> Iterator[None]:
    """Draw in the look of the project: a decorator of functions that make figures."""
    # Slow to import, and few runs draw.
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def panels(heights: Sequence[float], title: str = "") -> tuple[Any, list[Any]]:
    """Return a figure of matplotlib, and its panels one below the other; to be called under `look`.

    Args:
        heights: Of each panel, in inches.
        title: What stands above all: model, method, density.
    """
    from matplotlib.figure import Figure

    heights = list(heights) or [1.0]
    figure = Figure(figsize=(_WIDTH, 0.6 + sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    if title:
        lines = textwrap.wrap(title, _TITLE)
        figure.set_figheight(figure.get_figheight() + 0.2 * (len(lines) - 1))
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=LABEL + 3)
    return figure, list(axes)


def numbered(axis: Any, names: Sequence[str]) -> None:
    """Name the places 0, 1, … of an axis, as many of them as there is room for."""
    from matplotlib.ticker import MaxNLocator

    def name(place: float, position: object) -> str:
        return names[int(place)] if 0 <= place < len(names) else ""

    axis.set_major_locator(MaxNLocator(nbins=_MOST_TICKS, integer=True, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(name)


def save_picture(figure: Any, path: Path) -> None:
    """Write a figure as PNG, all or nothing."""
    with new_file(path) as draft:
        figure.savefig(draft, format="png", dpi=150)


def svg_of(figure: Any) -> str:
    """Return a figure as an `<svg>` element for a page, whose text and axes have the colour of the page's text."""
    drawn = io.StringIO()
    with look():
        nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
        figure.savefig(drawn, format="svg", transparent=True, metadata=nothing)
    element = drawn.getvalue()[drawn.getvalue().index("<svg") :].strip()
    # The page says how large it is, and in which colour.
    element = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", element, count=1)
    return element.replace("xlink:href", "href").replace(INK, "currentColor")
