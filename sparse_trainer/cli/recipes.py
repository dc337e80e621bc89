"""The command `recipes`: what comes with the project."""

from sparse_trainer.cli.options import Json
from sparse_trainer.cli.recipe_list import list_recipes


def recipes_command(as_json: Json = False) -> None:
    """List the recipes that come with the project."""
    list_recipes(as_json)
