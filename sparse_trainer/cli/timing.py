"""The command `timing`: what the blocks of a model take at several widths, as a table to look at or to keep."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType

from sparse_trainer.budget.latency.calls import check_timed
from sparse_trainer.budget.latency.conditions import TimingConditions
from sparse_trainer.budget.latency.store import save_table, table_for
from sparse_trainer.budget.latency.table import LatencyTable
from sparse_trainer.budget.time_target import EAGER, PREFILL, TimeTarget
from sparse_trainer.cli.console import print_result
from sparse_trainer.cli.options import Fields, Json, Values, expanded, made
from sparse_trainer.cli.tables import table as shown_table
from sparse_trainer.cut.decide import found_in
from sparse_trainer.errors import CheckpointError
from sparse_trainer.files.writing import check_file
from sparse_trainer.run.options import SourceOptions

PLACE = Fields(
    SourceOptions,
    dtype="auto (as stored), float32, bfloat16, float16.",
    device="cpu, cuda, ...; default: an accelerator where there is one.",
)
"""As `prune` has them, so that it may read the table."""


@expanded
def timing_command(
    model: Annotated[str, typer.Argument(help="Folder or hub id.")],
    *,
    out: Annotated[
        Path | None, typer.Option(help="File for the table: `latency_table` of a pruning.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences per forward pass.")] = 1,
    sequence_length: Annotated[int, typer.Option(help="Tokens per sequence.")] = 128,
    phase: Annotated[str, typer.Option(help="prefill, or decode: one more token with a cache.")] = PREFILL,
    runtime: Annotated[str, typer.Option(help="eager or compile.")] = EAGER,
    place: Annotated[Values, PLACE],
    as_json: Json = False,
) -> None:
    """Measure what heads, channels, blocks and the rest of a model take: the table behind --speedup."""
    source = made(SourceOptions, name_or_path=model, **place)
    source.place()
    # Any speed-up will do: a table does not depend on it.
    target = TimeTarget(
        speedup=2.0, batch=batch, sequence_length=sequence_length, phase=phase, runtime=runtime
    )
    if out is not None and out.exists():
        raise CheckpointError(str(out), "is there already.", "Name another file, or move it away.")
    if out is not None:
        check_file(out)
    with redirect_stdout(sys.stderr):
        check_timed(source.shape(), target)
        loaded = source.load()
        found = table_for(loaded, found_in(loaded), target)
        conditions = str(TimingConditions.of(loaded, target))
    if out is not None:
        save_table(found, out)
    print_result(as_json, found.values(), _lines(found, conditions, out))


def _lines(found: LatencyTable, conditions: str, out: Path | None) -> list[RenderableType]:
    """Return the table as a reader sees it, in milliseconds."""
    rows = [["", "units", "ms in each block"]]
    for sort, seconds in found.blocks.items():
        rows.append([f"{sort.partition(' ')[0]} without units", "", f"{1e3 * seconds:.3f}"])
    for sort, curve in found.curves.items():
        named = sort.partition(":")[0]
        rows += [
            [named, str(w), f"{1e3 * s:.3f}"] for w, s in zip(curve.widths, curve.seconds, strict=True) if w
        ]
    rows.append(["embeddings, head and the call itself", "", f"{1e3 * found.rest:.3f} in all"])
    written = [] if out is None else [f"written to {out}"]
    return [
        shown_table(rows, None),
        f"{conditions}; uncertain by {100 * found.noise:.1f} % at most",
        *written,
    ]
