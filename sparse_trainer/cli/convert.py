"""The command `convert`: a model folder for another runtime."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from sparse_trainer.cli.console import print_result
from sparse_trainer.cli.options import Json
from sparse_trainer.convert.folder import convert_folder
from sparse_trainer.convert.registry import CONVERSIONS

_FORMATS = "; ".join(f"{name}: {', '.join(form.formats)}" for name, form in CONVERSIONS.items())


def convert_command(
    model: Annotated[str, typer.Argument(help="Folder, dense or pruned, or hub id.")],
    out: Annotated[Path, typer.Argument(help="File or folder to write; it must not be there.")],
    to: Annotated[str, typer.Option(help=f"One of {', '.join(CONVERSIONS)}.")],
    quantize: Annotated[
        str | None, typer.Option(help=f"Format of the numbers, the first by default. {_FORMATS}.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model folder, dense or pruned, in the form of another runtime."""
    with redirect_stdout(sys.stderr):
        place, facts = convert_folder(model, out, to, quantize=quantize)
    lines = [f"{name.replace('_', ' ')}: {value}" for name, value in facts.items()]
    print_result(as_json, {"out": str(place), **facts}, [*lines, f"written to {place}"])
