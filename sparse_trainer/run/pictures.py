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
from sparse_trainer.files.writing import new_file, write_text
from sparse_trainer.plan.document import GroupPlan, Plan
from sparse_trainer.plan.widths import panels, widths_figure

# Shape legend: U = units of a group, N = units of all groups of a kind.

WIDTH_FILES = {"map": "kept.png", "widths": "widths.png", "widths table": "widths.csv"}
SCORE_FILES = {"scores": "scores.png", "scores table": "scores.csv"}
FILES = WIDTH_FILES | SCORE_FILES
"""What a file shows -> its name in the folder of the plan."""
ZERO_FILES = {"zeros table": "zeros.csv"}
"""The same, of weights that became zero."""
BINS = 60


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
        write_scores(decisions, folder)


def write_widths(plan: Plan, folder: Path) -> None:
    """Write which units of every layer are kept, how many, and how many weights are zero, as far as there are some."""
    if plan.zeros:
        counts = [[name, size, zero] for name, (zero, size) in plan.zeros.items()]
        write_csv(folder / ZERO_FILES["zeros table"], ["weight", "size", "zeros"], counts)
        if not plan.is_cut:
            return
    write_map(plan, folder / WIDTH_FILES["map"])
    save_picture(widths_figure(plan.by_kind()), folder / WIDTH_FILES["widths"])
    rows = [[name, g["kind"], g["layer"], g["size"], len(g["keep"])] for name, g in plan.groups.items()]
    write_csv(folder / WIDTH_FILES["widths table"], ["group", "kind", "layer", "units", "kept"], rows)


def write_scores(decisions: Sequence[Decision], folder: Path) -> None:
    """Write the score of every unit, and a histogram of them: `SCORE_FILES`. The picture shows the last round."""
    rows = (
        [number, group.name, group.kind, group.layer, unit, score, int(keep)]
        for number, decision in enumerate(decisions, start=1)
        for group in decision.groups
        for unit, (score, keep) in enumerate(
            zip(decision.scores[group.name].tolist(), decision.keep[group.name].tolist(), strict=True)
        )
    )
    header = ["round", "group", "kind", "layer", "unit", "score", "kept"]
    write_csv(folder / SCORE_FILES["scores table"], header, rows)
    _write_scores_picture(decisions[-1] if decisions else None, folder / SCORE_FILES["scores"])


def write_map(plan: Plan, path: str | Path) -> None:
    """Draw which units of every layer are kept, one panel per kind, and write it as PNG."""
    kinds = plan.by_kind()
    figure, axes = panels(len(kinds))
    for axis, (kind, groups) in zip(axes, kinds.items(), strict=False):
        kept, total = sum(len(group["keep"]) for group in groups), sum(group["size"] for group in groups)
        axis.imshow(_grid(groups), aspect="auto", interpolation="nearest", cmap="Blues", vmin=-0.25, vmax=1.0)
        axis.set_title(f"{kind}: {kept} of {total} kept", loc="left", fontsize=10)
        axis.set_yticks(range(len(groups)), [f"{g['layer']} ({len(g['keep'])})" for g in groups], fontsize=7)
        axis.set_ylabel("layer (kept)", fontsize=8)
    figure.supxlabel("unit (dark = kept)", fontsize=8)
    save_picture(figure, Path(path))


def _write_scores_picture(decision: Decision | None, path: Path) -> None:
    """Draw a histogram of the scores of each kind, kept and removed units apart."""
    kinds = {} if decision is None else scores_by_kind(decision)
    figure, axes = panels(len(kinds))
    for axis, (kind, (score_N, keep_N)) in zip(axes, kinds.items(), strict=False):
        is_log = bool((score_N > 0).all())
        edges = bin_edges(score_N, is_log=is_log)
        parts = [score_N[keep_N].tolist(), score_N[~keep_N].tolist()]
        labels = [f"kept ({len(parts[0])})", f"removed ({len(parts[1])})"]
        style: dict[str, Any] = {"histtype": "stepfilled", "color": ["tab:blue", "tab:red"], "label": labels}
        axis.hist(parts, bins=edges, stacked=True, **style)
        axis.set_xscale("log" if is_log else "linear")
        axis.set_title(kind, loc="left", fontsize=10)
        axis.set_ylabel("units", fontsize=8)
        axis.legend(fontsize=7)
    figure.supxlabel("score, as the criterion gives it", fontsize=8)
    save_picture(figure, path)


def scores_by_kind(decision: Decision) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Return the scores and the kept flags of all units of each kind, both of shape [N]."""
    groups: dict[str, list[str]] = {}
    for group in decision.groups:
        groups.setdefault(group.kind, []).append(group.name)
    return {
        kind: (
            torch.cat([decision.scores[name].double().cpu() for name in names]),
            torch.cat([decision.keep[name].cpu() for name in names]),
        )
        for kind, names in groups.items()
    }


def bin_edges(score_N: Tensor, *, is_log: bool) -> list[float]:
    """Return edges of equal bins over all scores; of equal ratios where the axis is logarithmic.

    >>> bin_edges(torch.tensor([1.0, 100.0]), is_log=True)[0::30]
    [1.0, 10.0, 100.0]
    """
    low, high = float(score_N.min()), float(score_N.max())
    if low == high:
        low, high = (low / 2, high * 2) if is_log else (low - 0.5, high + 0.5)
    if is_log:
        return [low * (high / low) ** (i / BINS) for i in range(BINS + 1)]
    return [low + (high - low) * i / BINS for i in range(BINS + 1)]


def save_picture(figure: Any, path: Path) -> None:
    """Write a figure as PNG, all or nothing."""
    with new_file(path) as draft:
        figure.savefig(draft, format="png", dpi=120)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table as CSV, all or nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _grid(groups: Sequence[GroupPlan]) -> list[list[float]]:
    """Return 1 = kept, 0 = gone for each unit, one row per layer; short rows end in blanks."""
    longest = max(group["size"] for group in groups)
    rows = []
    for group in groups:
        keep = set(group["keep"])
        row = [1.0 if unit in keep else 0.0 for unit in range(group["size"])]
        rows.append(row + [float("nan")] * (longest - group["size"]))
    return rows
