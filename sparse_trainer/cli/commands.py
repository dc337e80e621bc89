"""The command line: parse, call, show. Results go to stdout, everything else to stderr."""

import logging
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from patchers.units import BLOCK_KINDS, KINDS
from sparse_trainer.architectures.matrix import Matrix
from sparse_trainer.cli import show
from sparse_trainer.cli.boundary import run_app
from sparse_trainer.cli.console import Json, Plugins, print_result, tell
from sparse_trainer.cli.environment import describe_environment
from sparse_trainer.cli.evaluate import evaluate_command
from sparse_trainer.cli.inspection import inspect_model
from sparse_trainer.cli.prune import prune_command
from sparse_trainer.cli.sweep import sweep_command
from sparse_trainer.fields import check_counts
from sparse_trainer.folders.configs import read_config
from sparse_trainer.folders.exports import EXPORTS
from sparse_trainer.folders.load import load_model
from sparse_trainer.folders.load_shape import load_shape
from sparse_trainer.inputs.limits import check_positions, positions_of
from sparse_trainer.run.cut_folder import compact_folder
from sparse_trainer.run.latency import bench, check_bench, find_device, find_dtype
from sparse_trainer.run.pipeline import run
from sparse_trainer.run.recipes.load import load_recipe
from sparse_trainer.run.recipes.sections import describe, shipped
from sparse_trainer.run.together import is_first

app = typer.Typer(
    name="sparse-trainer",
    help="Structured fine-pruning for Hugging Face Transformers.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("prune")(prune_command)
app.command("evaluate")(evaluate_command)
app.command("sweep")(sweep_command)


@app.command("run")
def run_command(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="E.g. training.num_train_epochs=1.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier result; your own files beside it stay.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was stopped, from its last checkpoint.")
    ] = False,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Run a recipe: train where it says so, prune, cut, save, reload in a new process, measure."""
    loaded = load_recipe(recipe, overrides or [])
    with redirect_stdout(sys.stderr):
        result = run(loaded, tell, overwrite=overwrite, resume=resume)
    if is_first():
        print_result(as_json, result.to_json(), show.run_lines(result))


@app.command("recipes")
def recipes_command(as_json: Json = False) -> None:
    """List the recipes that come with the project."""
    found = {name: describe(path) for name, path in shipped().items()}
    print_result(as_json, {"recipes": found}, [show.recipe_table(found)])


@app.command("inspect")
def inspect_command(
    model: Annotated[str, typer.Argument(help="Folder or hub id; weights are not read.")],
    sequence_length: Annotated[
        int, typer.Option(help="Tokens per sequence, for the MACs of attention.")
    ] = 128,
    hidden: Annotated[
        bool, typer.Option("--hidden", help="Hidden features too, or the reason why they cannot go.")
    ] = False,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Show what of a model can be pruned, what it costs, and what stays untouched and why."""
    check_counts(sequence_length=sequence_length)
    with redirect_stdout(sys.stderr):
        kinds = KINDS if hidden else BLOCK_KINDS
        inspection = inspect_model(load_shape(model), kinds=kinds, sequence_length=sequence_length)
    print_result(as_json, inspection.to_json(), show.inspection_tables(inspection))


@app.command("optimize")
def optimize_command(
    checkpoint: Annotated[
        str, typer.Argument(help="Checkpoint with gates, or a model with zeros or a plan.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the compact model.")],
    plan: Annotated[
        Path | None, typer.Option(help="Cut a model by this plan; a folder is cut without loading it whole.")
    ] = None,
    export: Annotated[str, typer.Option(help=f"One of {', '.join(EXPORTS)}.")] = "auto",
    base_model: Annotated[
        str | None, typer.Option(help="Folder or hub id of the model below an adapter; default: as it says.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")] = False,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Cut a checkpoint: a smaller dense model with the same outputs."""
    bar = show.file_progress()
    with redirect_stdout(sys.stderr), bar:
        task = bar.add_task("cutting", total=None, visible=plan is not None)
        folder, done = compact_folder(
            checkpoint, out, plan=plan, export=export, overwrite=overwrite, base_model=base_model,
            progress=lambda written, total: bar.update(task, completed=written, total=total),
        )  # fmt: skip
    print_result(
        as_json,
        {"folder": str(folder), "params": done.params, "macs": done.macs},
        show.cut_lines(folder, done),
    )


@app.command("bench")
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


@app.command("architectures")
def architectures_command(
    types: Annotated[list[str] | None, typer.Argument(help="Model types; default: all.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="The same, as an option.")] = None,
    as_json: Json = False,
) -> None:
    """Show which model types of transformers can be pruned, as measured."""
    matrix = Matrix.load().only([*(types or ()), *(only or ())])
    print_result(as_json, matrix.to_json(), show.architecture_table(matrix))


@app.command("env")
def env_command(as_json: Json = False) -> None:
    """Print versions and hardware, for a bug report."""
    found = describe_environment()
    print_result(as_json, found, [show.environment_table(found)])


def main() -> None:
    """Run the command line on the arguments of the process, and leave with its exit code."""
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    run_app(app, sys.argv[1:])
