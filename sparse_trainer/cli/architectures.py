"""The command `architectures`: what of transformers can be pruned, as measured."""

from typing import Annotated

import typer
from rich.console import RenderableType
from rich.markup import escape

from sparse_trainer.architectures import verdicts
from sparse_trainer.architectures.matrix import Matrix
from sparse_trainer.cli.console import print_result
from sparse_trainer.cli.options import Json
from sparse_trainer.cli.tables import table


def architectures_command(
    types: Annotated[list[str] | None, typer.Argument(help="Model types; default: all.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="The same, as an option.")] = None,
    as_json: Json = False,
) -> None:
    """Show which model types of transformers can be pruned, as measured."""
    matrix = Matrix.load().only([*(types or ()), *(only or ())])
    print_result(as_json, matrix.to_json(), architecture_table(matrix))


def architecture_table(matrix: Matrix) -> list[RenderableType]:
    """Return a row per model type, and the counts."""
    rows = [["type", "prunable", "checks", "exports", "fails, left alone, or why not"]]
    for name, report in matrix.reports.items():
        if report.reason:
            verdict = "nothing to prune" if report.is_built else "not built here"
            rows.append([name, verdict, "", "", verdicts.one_line(report.reason)])
        else:
            said = filter(None, (verdicts.failures(report), verdicts.remarks(report)))
            cells = verdicts.units(report), verdicts.checks(report), verdicts.exports(report)
            rows.append([name, *cells, "; ".join(said)])
    return [table([[escape(cell) for cell in row] for row in rows], None, "left"), matrix.summary()]
