"""The command `bench`: latencies side by side."""

import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from sparse_trainer.cli import show
from sparse_trainer.cli.console import Json, print_result
from sparse_trainer.folders.configs import read_config
from sparse_trainer.folders.load import load_model
from sparse_trainer.inputs.limits import check_positions, positions_of
from sparse_trainer.run.latency import bench, check_bench, find_device, find_dtype


def bench_command(
    model: Annotated[str, typer.Argument(help="Folder or hub id.")],
    against: Annotated[
        str | None, typer.Option(help="A second model, timed side by side: the baseline.")
    ] = None,
    batch_size: Annotated[list[int] | None, typer.Option(help="May be repeated; default: 1 and 16.")] = None,
    sequence_length: Annotated[int, typer.Option(help="Tokens per sequence.")] = 128,
    rounds: Annotated[int, typer.Option(help="Timed calls per model and batch size.")] = 20,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: as torch is set.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    as_json: Json = False,
) -> None:
    """Measure latency: median and interquartile range, models in turn."""
    place, kind, sizes = find_device(device), find_dtype(dtype), batch_size or (1, 16)
    check_bench(batch_sizes=sizes, sequence_length=sequence_length, rounds=rounds, threads=threads)
    names = [name for name in (against, model) if name is not None]
    with redirect_stdout(sys.stderr):
        for name in names:
            check_positions("sequence_length", sequence_length, positions_of(read_config(name)))
        models = {name: load_model(name, device=place, dtype=kind) for name in names}
        result = bench(
            models,
            batch_sizes=sizes,
            sequence_length=sequence_length,
            rounds=rounds,
            threads=threads,
        )
    print_result(as_json, result.to_json(), show.bench_table(result, baseline=against))
