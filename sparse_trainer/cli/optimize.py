"""The command `optimize`: the cut of a checkpoint."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from sparse_trainer.cli import show
from sparse_trainer.cli.console import print_result
from sparse_trainer.cli.options import Json
from sparse_trainer.cli.plugins import Plugins
from sparse_trainer.cli.shared import Export, Overwrite
from sparse_trainer.run.card_commands import add_commands
from sparse_trainer.run.cut_folder import compact_folder


def optimize_command(
    checkpoint: Annotated[
        str, typer.Argument(help="Checkpoint with gates, or a model with zeros or a plan.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the compact model.")],
    plan: Annotated[
        Path | None, typer.Option(help="Cut a model by this plan; a folder is cut without loading it whole.")
    ] = None,
    export: Export = "auto",
    base_model: Annotated[
        str | None, typer.Option(help="Folder or hub id of the model below an adapter; default: as it says.")
    ] = None,
    overwrite: Overwrite = False,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Cut a checkpoint: a smaller dense model with the same outputs."""
    bar = file_progress()
    with redirect_stdout(sys.stderr), bar:
        task = bar.add_task("cutting", total=None, visible=plan is not None)
        folder, done = compact_folder(
            checkpoint, out, plan=plan, export=export, overwrite=overwrite, base_model=base_model,
            progress=lambda written, total: bar.update(task, completed=written, total=total),
        )  # fmt: skip
        add_commands(folder)
    print_result(
        as_json,
        {"folder": str(folder), "params": done.params, "macs": done.macs},
        show.cut_lines(folder, done),
    )


def file_progress() -> Progress:
    """Return a bar on stderr for bytes written to files; it goes when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
