"""Tables and pictures of layers side by side; PNG and CSV."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sparse_trainer.files.figures import GONE, KEPT, look, numbered, panels, save_picture
from sparse_trainer.run.layers import STUDY, LayerComparison, Numbers
from sparse_trainer.run.pictures import write_csv

TABLE: Final = "layers.csv"
"""By this file a folder is known."""
CRITERIA_FILES = {"scores of layers": "layers.png", "table": TABLE}
STUDY_FILES = {"study": "study.png", "study table": "study.csv"}


def write_layers(found: LayerComparison, directory: str | Path, *, draw: bool = True) -> dict[str, Path]:
    """Write scores, the layers that would go, and the study into a folder; return what each file shows -> its path.

    Files of an earlier comparison that this one does not write go.
    `layers.csv` has one row per layer, and two columns per criterion: its score, and 1 where it would take the layer
    (blank where it may take none).
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CRITERIA_FILES | STUDY_FILES).values():
        (folder / name).unlink(missing_ok=True)
    places = [[stack, number] for stack, number in zip(found.stacks, found.numbers, strict=True)]
    header, columns = ["stack", "layer"], list[Sequence[Any]]()
    for name, scores in found.scores.items():
        taken = found.taken[name]
        header += [name, f"{name} takes"]
        columns += [scores, [""] * len(places) if taken is None else [int(gone) for gone in taken]]
    write_csv(folder / TABLE, header, _rows(places, columns))
    if draw:
        draw_scores(found, folder / CRITERIA_FILES["scores of layers"])
    if found.study:
        write_csv(
            folder / STUDY_FILES["study table"],
            ["stack", "layer", *found.study],
            _rows(places, list(found.study.values())),
        )
        if draw:
            draw_study(found, folder / STUDY_FILES["study"])
    names = CRITERIA_FILES | (STUDY_FILES if found.study else {})
    return {what: folder / name for what, name in names.items() if draw or name.endswith(".csv")}


def draw_scores(found: LayerComparison, path: Path) -> None:
    """Draw the score of every layer, one panel per criterion, the layers that would go in red, and write it as PNG."""
    titles = {
        name: f"{name}: takes {found.goes(name) or 'none'}"
        if found.taken[name] is not None
        else f"{name}: no such run of layers may go"
        for name in found.scores
    }
    title = f"{found.model}, layers by criterion, density {found.density:.2f}"
    _draw(found, found.scores, titles, found.taken, path, title)


def draw_study(found: LayerComparison, path: Path) -> None:
    """Draw the columns of a study, one panel each, and write it as PNG."""
    _draw(found, found.study, STUDY, {}, path, f"{found.model}, a study of its layers")


@look()
def _draw(
    found: LayerComparison,
    columns: Mapping[str, Numbers],
    titles: Mapping[str, str],
    taken: Mapping[str, tuple[bool, ...] | None],
    path: Path,
    title: str,
) -> None:
    figure, axes = panels([1.7] * len(columns), title)
    places = range(len(found.numbers))
    for axis, (name, numbers) in zip(axes, columns.items(), strict=False):
        gone = taken.get(name) or [False] * len(places)
        heights = [float("nan") if number is None else number for number in numbers]
        axis.bar(places, heights, color=[GONE if one else KEPT for one in gone])
        if _is_wide(numbers):
            axis.set_yscale("log")
        axis.set_title(titles[name])
        numbered(axis.xaxis, [str(number) for number in found.numbers])
        axis.margins(x=0.01)
    axes[-1].set_xlabel("layer (red = would go)" if taken else "layer")
    save_picture(figure, path)


def _is_wide(numbers: Numbers) -> bool:
    """Tell whether bars on a linear axis would hide all but the largest.

    >>> _is_wide((1.0, 1.0, 20.0)), _is_wide((1.0, 5.0, 20.0)), _is_wide((0.0, 1.0, 20.0))
    (True, False, False)
    """
    known = sorted(number for number in numbers if number is not None)
    if not known or known[0] <= 0:
        return False
    return known[-1] > 100 * known[0] or known[-1] > 10 * known[len(known) // 2]


def _rows(places: Sequence[Sequence[object]], columns: Sequence[Sequence[Any]]) -> list[list[object]]:
    """Return rows of a table; what there is not is blank."""
    return [
        [*place, *("" if column[row] is None else column[row] for column in columns)]
        for row, place in enumerate(places)
    ]
