"""The command `family`: one training, a finished model for each speed-up or density."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from sparse_trainer.cli.console import print_result, tell
from sparse_trainer.cli.options import Json
from sparse_trainer.cli.plugins import Plugins
from sparse_trainer.errors import ArgumentError


def family_command(
    recipe: Annotated[
        str, typer.Argument(help="A recipe that trains: name of a shipped one, or a YAML file.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the models, one folder each.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="As `run` takes them, e.g. training.num_train_epochs=4.")
    ] = None,
    speedups: Annotated[
        str | None, typer.Option(help="How many times faster than dense, increasing: 1.5,2,3,4.")
    ] = None,
    densities: Annotated[
        str | None, typer.Option(help="Instead: what stays, decreasing: 0.75,0.5,0.25.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id of the model; default: the recipe's.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="File to train on; default: the recipe's.")] = None,
    validation: Annotated[str | None, typer.Option(help="File to measure on; default: the recipe's.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was stopped; models that are there stay.")
    ] = False,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Train once through several speed-ups or densities; write a finished model at each, and one table."""
    if speedups is not None and densities is not None:
        raise ArgumentError(
            "speedups", "is given beside `densities`: each is a family of its own.", "Give one of the two."
        )
    asked = {
        "export.output_dir": str(out),
        "training.output_dir": str(out / "training"),
        "pruning.speedups": None if speedups is None else f"[{speedups}]",
        "pruning.densities": None if densities is None else f"[{densities}]",
        "model.name_or_path": model,
        "data.train_file": data,
        "data.validation_file": validation,
    }
    said = [f"{key}={value}" for key, value in asked.items() if value is not None]
    # Seconds, which `family --help` does not need.
    from sparse_trainer.cli import show
    from sparse_trainer.run.pipeline import run_family
    from sparse_trainer.run.recipes.load import load_recipe

    loaded = load_recipe(recipe, [*said, *(overrides or [])])
    with redirect_stdout(sys.stderr):
        result = run_family(loaded, tell, resume=resume)
    print_result(as_json, result.to_json(), show.family_lines(result))
