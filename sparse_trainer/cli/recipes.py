"""The command `recipes`: what comes with the project."""

from collections.abc import Mapping

from rich.table import Table

from sparse_trainer.cli.console import Json, print_result
from sparse_trainer.cli.tables import table
from sparse_trainer.run.recipes.shipped import describe, shipped


def recipes_command(as_json: Json = False) -> None:
    """List the recipes that come with the project."""
    found = {name: describe(path) for name, path in shipped().items()}
    print_result(as_json, {"recipes": found}, [recipe_table(found)])


def recipe_table(recipes: Mapping[str, str]) -> Table:
    """Return the names of recipes with their descriptions."""
    return table([["recipe", "description"], *([name, text] for name, text in recipes.items())], None, "left")
