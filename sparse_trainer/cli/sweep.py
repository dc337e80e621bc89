"""The command `sweep`: a run of a recipe for every combination of some options."""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.markup import escape

from sparse_trainer.cli.console import print_result, tell
from sparse_trainer.cli.options import Json
from sparse_trainer.cli.plugins import Plugins
from sparse_trainer.cli.tables import table
from sparse_trainer.run.report import MISSING
from sparse_trainer.run.sweep.planned import PlannedRun
from sparse_trainer.run.sweep.planning import plan_runs
from sparse_trainer.run.sweep.sweep import Sweep, run_sweep

FAILED_RUNS = 1
"""Exit code where a run failed: all was begun, and the rest is finished."""


def sweep_command(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or a YAML file.")],
    overrides: Annotated[
        list[str],
        typer.Argument(
            help="As `run` takes them, with several values behind commas: pruning.density=0.25,0.5 "
            "training.seed=0,1 are four runs. Values are YAML; a comma in brackets or quotes belongs to a value, and "
            "the shell needs such an override in quotes: 'pruning.density=0.5,{heads: 0.75, channels: 0.5}', "
            "'data.config=\"a,b\",c'."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the sweep; default: runs/RECIPE-sweep.")] = None,
    jobs: Annotated[
        int, typer.Option(help="Runs at a time; they share the threads, and take GPUs in turn.")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all recipes, list the runs, and do nothing.")
    ] = False,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Run a recipe for every combination of some options; collect one table, and quality over speed in a picture.

    The same command again goes on: finished runs are not run again, a run that was stopped goes on, one that failed is
    tried again. To run one anew, remove its folder.
    """
    with redirect_stdout(sys.stderr):
        root = out if out is not None else Path("runs", f"{Path(recipe).stem}-sweep")
        runs = plan_runs(recipe, overrides, root)
        if not dry_run:
            done = run_sweep(runs, tell, jobs=jobs, plugins=plugin or ())
    if dry_run:
        print_result(
            as_json, {"folder": str(runs[0].root), "runs": _planned_json(runs)}, _planned_lines(runs)
        )
        return
    print_result(as_json, done.to_json(), _done_lines(done))
    if done.failed:
        raise typer.Exit(FAILED_RUNS)


def _planned_json(runs: Sequence[PlannedRun]) -> list[dict[str, object]]:
    return [
        {
            "run": run.name,
            "begun": run.begun,
            "folder": str(run.folder),
            "dense": None if run.dense is None else str(run.dense),
            "overrides": list(run.combination.overrides),
        }
        for run in runs
    ]


def _planned_lines(runs: Sequence[PlannedRun]) -> list[RenderableType]:
    """Return the runs, how far they are, and which dense model they share."""
    rows = [["run", "so far", "dense model"]]
    rows += [[escape(run.name), run.begun, MISSING if run.dense is None else run.dense.name] for run in runs]
    return [table(rows, None, "left"), f"{len(runs)} runs in {runs[0].root}"]


def _done_lines(done: Sweep) -> list[RenderableType]:
    """Return the table of the runs, and why some failed; what to look at comes last."""
    first, *others = done.shown_rows()
    rows = [first, *([escape(name), *cells] for name, *cells in others)]
    shown: list[RenderableType] = [table(rows, None)]
    shown += [f"{name} failed: {error}" for name, error in done.failed.items()]
    shown.append(f"table: {done.table}")
    if done.picture.is_file():
        shown.append(f"picture: {done.picture}")
    shown.append(f"report, all on one page: {done.page}")
    return shown
