"""The command `bench`: latencies side by side."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from sparse_trainer.cli import show
from sparse_trainer.cli.console import Json, print_result
from sparse_trainer.errors import ArgumentError
from sparse_trainer.folders.configs import read_config, resolve
from sparse_trainer.inputs.limits import check_positions, positions_of
from sparse_trainer.run.generation_speed import check_writes_tokens, time_generation
from sparse_trainer.run.latency import bench, check_bench, find_device, find_dtype
from sparse_trainer.run.runtimes import RUNTIMES, find_runtimes
from sparse_trainer.run.weights import load_weighed


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
    runtimes: Annotated[
        str | None, typer.Option(help=f"Parted by commas, of {', '.join(RUNTIMES)}; default: eager.")
    ] = None,
    generate: Annotated[
        int | None,
        typer.Option(help="Also time a prompt of --sequence-length, and so many new tokens after it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure latency: median and interquartile range, models in turn."""
    place, kind, sizes = find_device(device), find_dtype(dtype), batch_size or (1, 16)
    check_bench(batch_sizes=sizes, sequence_length=sequence_length, rounds=rounds, threads=threads)
    found = None if runtimes is None else find_runtimes(runtimes)
    if against is not None and Path(resolve(against)).resolve() == Path(resolve(model)).resolve():
        raise ArgumentError("against", f"{against} is the model itself.", "Name another one, or drop it.")
    names = [name for name in (against, model) if name is not None]
    with redirect_stdout(sys.stderr):
        for name in names:
            longest = sequence_length + (generate or 0)
            check_positions("sequence_length", longest, positions_of(read_config(name)))
        loaded = {
            name: load_weighed(name, device=place, dtype=kind, sequence_length=sequence_length)
            for name in names
        }
        models = {name: one for name, (one, _) in loaded.items()}
        weights = {name: weight for name, (_, weight) in loaded.items()}
        shared: dict[str, Any] = {"batch_sizes": sizes, "rounds": rounds, "threads": threads}
        spoken = None
        if generate is not None:
            check_writes_tokens(models, sequence_length + generate)
        result = bench(models, sequence_length=sequence_length, runtimes=found, **shared)
        if generate is not None:
            spoken = time_generation(models, new_tokens=generate, prompt_length=sequence_length, **shared)
    shown = [show.weight_table(weights), *show.bench_table(result, baseline=against)]
    if spoken is not None:
        shown.insert(2, show.generation_table(spoken, baseline=against))
    values = {**result.to_json(), "weights": {name: each.to_json() for name, each in weights.items()}}
    if spoken is not None:
        values["generation"] = {
            name: {str(rows): each.to_json() for rows, each in sizes.items()}
            for name, sizes in spoken.items()
        }
    print_result(as_json, values, shown)
