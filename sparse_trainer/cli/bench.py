"""The command `bench`: models and runtimes side by side."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from sparse_trainer.cli.bench_tables import bench_lines
from sparse_trainer.cli.console import print_result, tell
from sparse_trainer.cli.options import Json
from sparse_trainer.errors import ArgumentError, CheckpointError
from sparse_trainer.files.writing import check_file
from sparse_trainer.run.bench import BenchOptions, run_bench
from sparse_trainer.run.bench_picture import draw_bench
from sparse_trainer.run.latency import find_device, find_dtype
from sparse_trainer.run.pictures import check_drawing
from sparse_trainer.run.runtimes import RUNTIMES


def bench_command(
    model: Annotated[str, typer.Argument(help="Folder, hub id, or GGUF file.")],
    against: Annotated[
        str | None, typer.Option(help="A second model, timed side by side: the baseline.")
    ] = None,
    batch_size: Annotated[
        str, typer.Option("--batch", "--batch-size", help="Sequences per pass, parted by commas.")
    ] = "1,16",
    sequence_length: Annotated[
        str, typer.Option(help="Tokens per sequence, parted by commas; each with every batch size.")
    ] = "128",
    rounds: Annotated[int, typer.Option(help="Timed calls per model, batch size and length.")] = 20,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: as torch is set.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    runtimes: Annotated[
        str | None,
        typer.Option(help=f"Parted by commas, of {', '.join(RUNTIMES)}; default: eager, of GGUF files gguf."),
    ] = None,
    generate: Annotated[
        int | None,
        typer.Option(help="Also time prompts of --sequence-length, and so many new tokens after them."),
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Also measure peak memory, each model in a process of its own.")
    ] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw all times into a new PNG file.")] = None,
    as_json: Json = False,
) -> None:
    """Measure size, load time, latency, throughput, generation and memory, models and runtimes in turn."""
    if picture is not None:
        _check_picture(picture)
    options = BenchOptions(
        model=model,
        against=against,
        batch_sizes=_counts("batch_size", batch_size),
        lengths=_counts("sequence_length", sequence_length),
        rounds=rounds,
        threads=threads,
        device=find_device(device),
        dtype=find_dtype(dtype),
        runtimes=runtimes,
        generate=generate,
        memory=memory,
    )
    with redirect_stdout(sys.stderr):
        result = run_bench(options, tell)
    shown = bench_lines(result)
    if picture is not None:
        draw_bench(result, picture, against)
        shown.append(f"picture: {picture}")
    print_result(as_json, result.to_json(), shown)


def _counts(where: str, text: str) -> tuple[int, ...]:
    """Return the numbers of a list with commas, each once."""
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise ArgumentError(
            where, f"{text!r} is no list of whole numbers.", "Write them with commas: 1,16."
        ) from error


def _check_picture(path: Path) -> None:
    check_drawing("leave out --picture")
    if path.exists():
        raise CheckpointError(str(path), "is there already.", "Name another file, or move it away.")
    check_file(path)
