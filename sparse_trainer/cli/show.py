"""Results as a reader in a terminal sees them: rich tables and lines of text."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import RenderableType

from sparse_trainer.cli.tables import table
from sparse_trainer.folders.card import speed_text
from sparse_trainer.plan.document import Plan
from sparse_trainer.run.family import FAMILY_FILE, FamilyResult
from sparse_trainer.run.outcome import RunResult
from sparse_trainer.run.page import PAGE_FILE
from sparse_trainer.run.report import kept_lines, zero_lines

_OPENED = {"widths": "picture of what stayed", "page": "report, all on one page"}
"""Files of a run to look at first -> what they are."""


def run_lines(result: RunResult) -> list[RenderableType]:
    """Return everything a run has to show; how the result is loaded and what to look at come last."""
    shown: list[RenderableType] = []
    if result.plan is not None:
        kept = [*kept_lines(result.plan), *zero_lines(result.plan)]
        shown += ["", *kept, ""]
    shown.append(table(result.comparison.rows(), f"recipe {result.recipe}"))
    shown.append(str(result.comparison.conditions))
    if result.plan is not None:
        shown += _densities(result.plan)
    if result.reloaded is not None:
        shown.append(
            f"reloaded in a new process with transformers alone: {result.reloaded.same_predictions} of "
            f"{result.reloaded.samples} predictions equal, largest difference of logits "
            f"{result.reloaded.largest_difference:.1e}"
        )
    shown += _files(result.files)
    shown += [f"done in {result.seconds / 60:.1f} minutes", "", *result.load_lines]
    shown += to_open(result.files)
    return shown


def family_lines(result: FamilyResult) -> list[RenderableType]:
    """Return what a family has to show."""
    return [
        table(result.rows(), f"family by recipe {result.recipe}"),
        f"table: {result.folder / FAMILY_FILE}",
        f"done in {result.seconds / 60:.1f} minutes",
        *to_open({"page": result.folder / PAGE_FILE}),
    ]


def cut_lines(folder: Path, plan: Plan) -> list[RenderableType]:
    """Return what a cut changed."""
    return [
        f"parameters {plan.params['dense']:,} => {plan.params['compact']:,}",
        f"MACs per token {plan.macs['dense']:,} => {plan.macs['compact']:,}",
        f"written to {folder}",
    ]


def pruned_lines(folder: Path, plan: Plan, files: Mapping[str, Path]) -> list[RenderableType]:
    """Return what one-shot pruning changed, and what it wrote."""
    kept = [*kept_lines(plan), *zero_lines(plan)]
    return ["", *kept, "", *cut_lines(folder, plan), *_densities(plan), *_files(files), *to_open(files)]


def _densities(plan: Plan) -> list[str]:
    """Return what was asked and what was reached, where somebody asked."""
    speed = [] if plan.speed is None else [speed_text(plan.speed)]
    if plan.density_reached is None:
        return speed
    asked = "" if plan.density_asked is None else f"asked {plan.density_asked}, "
    return [f"density {asked}reached {plan.density_reached:.4f}", *speed]


def _files(files: Mapping[str, Path]) -> list[str]:
    return [f"{what}: {path}" for what, path in files.items() if what not in _OPENED]


def to_open(files: Mapping[str, Path]) -> list[str]:
    """Return the files that are worth a look, last of all; nothing where none was drawn."""
    lines = [f"{words}: {files[what]}" for what, words in _OPENED.items() if what in files]
    return ["", *lines] if lines else []
