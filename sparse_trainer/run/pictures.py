"""Pictures and tables of what was kept and why: widths of the layers, scores of the units; PNG and CSV."""

import csv
import importlib.util
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_trainer.cut.decision import Decision
from sparse_trainer.errors import ArgumentError
from sparse_trainer.files.figures import BEFORE, GONE, INK, KEPT, look, numbered, panels, save_picture
from sparse_trainer.files.writing import write_text
from sparse_trainer.plan.document import Plan
from sparse_trainer.plan.parts import GroupPlan
from sparse_trainer.plan.widths import (
    draw_strip,
    is_strip,
    number_layers,
    share_kept,
    title_of,
    widths_figure,
)
from sparse_trainer.run.score_scales import bin_edges, scale_of

# Shape legend: U = units of a group, N = units of all groups of a kind.

WIDTH_FILES = {"map": "kept.png", "widths": "widths.png", "widths table": "widths.csv"}
SCORE_FILES = {"scores": "scores.png", "scores table": "scores.csv"}
FILES = WIDTH_FILES | SCORE_FILES
"""What a file shows -> its name in the folder of the plan."""
ZERO_FILES = {"zeros table": "zeros.csv"}
"""The same, of weights that became zero."""
_MOST_LINED = 40
"""Layers whose cells a line parts that can be seen: of more, lines would hide the cells."""
MOST_CELLS = 64
"""Units of a layer that a map shows one by one."""


def check_drawing(without: str = "") -> None:
    """Raise `ArgumentError` where matplotlib is missing: before a long run, not after it.

    `without` says how the command at hand does without pictures: "give --no-pictures".
    """
    if importlib.util.find_spec("matplotlib") is None:
        remedy = "Run `pip install matplotlib`" + (f", or {without}." if without else ".")
        raise ArgumentError("pictures", "matplotlib is not installed.", remedy)


def picture_files(plan: Plan, decisions: Sequence[Decision]) -> dict[str, str]:
    """Return which of `FILES` and `ZERO_FILES` have something to show."""
    files = WIDTH_FILES if plan.is_cut or not plan.zeros else {}
    return files | (ZERO_FILES if plan.zeros else {}) | (SCORE_FILES if decisions else {})


def write_pictures(plan: Plan, decisions: Sequence[Decision], folder: Path) -> None:
    """Write `picture_files` of a plan into a folder."""
    write_widths(plan, folder)
    if decisions:
        write_scores(decisions, folder, title_of(plan))


def write_widths(plan: Plan, folder: Path) -> None:
    """Write which units of every layer are kept, how many, and how many weights are zero, as far as there are some."""
    if plan.zeros:
        counts = [[name, size, zero] for name, (zero, size) in plan.zeros.items()]
        write_csv(folder / ZERO_FILES["zeros table"], ["weight", "size", "zeros"], counts)
        if not plan.is_cut:
            return
    save_picture(map_figure(plan), folder / WIDTH_FILES["map"])
    save_picture(widths_figure(plan.by_name(), title_of(plan)), folder / WIDTH_FILES["widths"])
    rows = [[name, g["kind"], g["layer"], g["size"], len(g["keep"])] for name, g in plan.groups.items()]
    write_csv(folder / WIDTH_FILES["widths table"], ["group", "kind", "layer", "units", "kept"], rows)


def write_scores(decisions: Sequence[Decision], folder: Path, title: str = "") -> None:
    """Write the score of every unit, and a histogram of them: `SCORE_FILES`. The picture shows the last round.

    Args:
        title: What stands above the picture: `title_of` the plan.
    """
    rows = (
        [number, group.name, group.kind, group.layer, unit, score, int(keep)]
        for number, decision in enumerate(decisions, start=1)
        for group in decision.scored
        for unit, (score, keep) in enumerate(
            zip(decision.scores[group.name].tolist(), decision.keep[group.name].tolist(), strict=True)
        )
    )
    header = ["round", "group", "kind", "layer", "unit", "score", "kept"]
    write_csv(folder / SCORE_FILES["scores table"], header, rows)
    save_picture(scores_figure(decisions[-1] if decisions else None, title), folder / SCORE_FILES["scores"])


@look()
def map_figure(plan: Plan) -> Any:
    """Return a figure of which units of every layer are kept, one panel per kind of unit.

    Few units a layer are cells, one by one; of many, such as channels, each layer shows the share that is kept.
    """
    kinds = plan.by_name()
    figure, axes = panels([_map_height(groups) for groups in kinds.values()], title_of(plan))
    for axis, (kind, groups) in zip(axes, kinds.items(), strict=False):
        size = max(group["size"] for group in groups)
        axis.set_title(share_kept(kind, sum(len(g["keep"]) for g in groups), sum(g["size"] for g in groups)))
        axis.margins(x=0.01, y=0.01)
        if is_strip(groups):
            draw_strip(axis, groups)
            number_layers(axis.xaxis, groups)
            axis.set_xlabel("layer")
            continue
        (_draw_shares if size > MOST_CELLS else _draw_cells)(axis, groups)
        number_layers(axis.yaxis, groups)
        axis.set_ylabel("layer")
        axis.invert_yaxis()
    return figure


def _draw_cells(axis: Any, groups: Sequence[GroupPlan]) -> None:
    from matplotlib.colors import ListedColormap

    grid = _grid(groups)
    edges = ([unit - 0.5 for unit in range(len(row) + 1)] for row in (grid[0], grid))
    style: dict[str, Any] = {"cmap": ListedColormap([BEFORE, KEPT]), "vmin": 0, "vmax": 1}
    line = 0.5 if len(grid) <= _MOST_LINED else 0.1
    axis.pcolormesh(*edges, grid, edgecolors="white", linewidth=line, **style)
    numbered(axis.xaxis, [str(unit) for unit in range(len(grid[0]))])
    axis.set_xlabel("unit (blue = kept)")


def _draw_shares(axis: Any, groups: Sequence[GroupPlan]) -> None:
    places = range(len(groups))
    axis.barh(places, [100.0] * len(groups), color=BEFORE, height=0.9)
    axis.barh(places, [100 * len(g["keep"]) / g["size"] for g in groups], color=KEPT, height=0.9)
    axis.set_xlabel("kept of each layer, in per cent")


@look()
def scores_figure(decision: Decision | None, title: str = "") -> Any:
    """Return a figure of the scores of each kind as they were compared, kept and removed units apart.

    Where one threshold parts them, a line shows it; under equal widths, or with floors, every layer has its own.
    """
    kinds = {} if decision is None else scores_by_kind(decision)
    figure, axes = panels([1.9] * len(kinds), title)
    for axis, (kind, (score_N, keep_N)) in zip(axes, kinds.items(), strict=False):
        scale = scale_of(score_N)
        parts = [score_N[keep_N].tolist(), score_N[~keep_N].tolist()]
        labels = [f"kept ({len(parts[0]):,})", f"removed ({len(parts[1]):,})"]
        style: dict[str, Any] = {"histtype": "stepfilled", "color": [KEPT, GONE], "label": labels}
        axis.hist(parts, bins=bin_edges(score_N, scale), stacked=True, **style)
        axis.set_xscale(scale.name, **scale.options)
        axis.set_title(share_kept(kind, len(parts[0]), len(score_N)))
        axis.set_ylabel("units")
        bar = threshold(score_N, keep_N)
        if bar is not None:
            axis.axvline(bar, color=INK, linewidth=1, linestyle="--", label=f"threshold {bar:.3g}")
        axis.legend(ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderpad=0)
    if kinds and decision is not None:
        is_same = not decision.compared or decision.standardize == "none"
        told = "as the criterion gives it" if is_same else f"made comparable by {decision.standardize}"
        axes[-1].set_xlabel(f"score, {told}")
    return figure


def threshold(score_N: Tensor, keep_N: Tensor) -> float | None:
    """Return the middle between the scores that stay and those that go; None where no one number parts them.

    >>> threshold(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([False, False, True]))
    3.0
    """
    kept, gone = score_N[keep_N], score_N[~keep_N]
    if not len(kept) or not len(gone) or gone.max() > kept.min():
        return None
    return float(gone.max() + kept.min()) / 2


def scores_by_kind(decision: Decision) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Return the scores, as they were compared, and the kept flags of all units of each kind, both of shape [N]."""
    scores = decision.compared or decision.scores
    groups: dict[str, list[str]] = {}
    for group in decision.scored:
        groups.setdefault(group.unit_name, []).append(group.name)
    return {
        kind: (
            torch.cat([scores[name].double().cpu() for name in names]),
            torch.cat([decision.keep[name].cpu() for name in names]),
        )
        for kind, names in groups.items()
    }


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table as CSV, all or nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _map_height(groups: Sequence[GroupPlan]) -> float:
    if is_strip(groups):
        return 0.9
    return 0.7 + min(max(0.09 * len(groups), 0.5), 4.0)


def _grid(groups: Sequence[GroupPlan]) -> list[list[float]]:
    """Return 1 = kept, 0 = gone for each unit, one row per layer; short rows end in blanks."""
    longest = max(group["size"] for group in groups)
    rows = []
    for group in groups:
        keep = set(group["keep"])
        row = [1.0 if unit in keep else 0.0 for unit in range(group["size"])]
        rows.append(row + [float("nan")] * (longest - group["size"]))
    return rows
