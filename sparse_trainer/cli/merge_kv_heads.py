"""The command `merge-kv-heads`: layers with fewer KV heads and all their query heads."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from sparse_trainer.cli.console import print_result, tell
from sparse_trainer.cli.options import Json, Values, expanded, made
from sparse_trainer.cli.shared import CALIBRATION, PLACE, calibration_text
from sparse_trainer.folders.exports import EXPORTS
from sparse_trainer.one_shot.kv_merge import KvMergeOptions
from sparse_trainer.one_shot.repairs.base import DAMPING
from sparse_trainer.run.card_commands import add_commands
from sparse_trainer.run.merge_kv import merge_folder
from sparse_trainer.run.options import SourceOptions


@expanded
def merge_kv_heads_command(
    model: Annotated[str, typer.Argument(help="Folder or hub id, dense or pruned.")],
    out: Annotated[Path, typer.Argument(help="Folder for the model with fewer KV heads.")],
    *,
    kv_heads: Annotated[int, typer.Option(help="KV heads that each layer keeps: a divisor of those it has.")],
    layer: Annotated[
        list[int] | None, typer.Option(help="Number of a layer; may be repeated; default: all.")
    ] = None,
    damping: Annotated[float, typer.Option(help="Of the refit of the output projections.")] = DAMPING,
    calibration: Annotated[Values, CALIBRATION],
    place: Annotated[Values, PLACE],
    export: Annotated[str, typer.Option(help=f"One of {', '.join(EXPORTS)}.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")] = False,
    as_json: Json = False,
) -> None:
    """Merge KV heads of layers and keep all query heads: a smaller cache, which stock engines serve."""
    source = made(SourceOptions, name_or_path=model, **place)
    options = KvMergeOptions(kv_heads=kv_heads, layers=tuple(layer) if layer else None, damping=damping)
    text = calibration_text(calibration)
    with redirect_stdout(sys.stderr):
        folder, plan = merge_folder(source, out, options, text, export=export, overwrite=overwrite, tell=tell)
        add_commands(folder)
    facts = {"folder": str(folder), "method": plan.method, "parameters": plan.params}
    dense, compact = plan.params["dense"], plan.params["compact"]
    print_result(
        as_json, facts, [plan.method, f"parameters {dense:,} => {compact:,}", f"written to {folder}"]
    )
