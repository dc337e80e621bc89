"""The command `run`: a recipe from one end to the other."""

import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from sparse_trainer.cli.console import print_result, tell
from sparse_trainer.cli.options import Json
from sparse_trainer.cli.plugins import Plugins


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
    # Seconds, which `run --help` does not need.
    from sparse_trainer.cli import show
    from sparse_trainer.run.pipeline import makes_family, run, run_family
    from sparse_trainer.run.recipes.load import load_recipe
    from sparse_trainer.run.together import is_first

    loaded = load_recipe(recipe, overrides or [])
    if makes_family(loaded):
        with redirect_stdout(sys.stderr):
            family = run_family(loaded, tell, overwrite=overwrite, resume=resume)
        print_result(as_json, family.to_json(), show.family_lines(family))
        return
    with redirect_stdout(sys.stderr):
        result = run(loaded, tell, overwrite=overwrite, resume=resume)
    if is_first():
        print_result(as_json, result.to_json(), show.run_lines(result))
