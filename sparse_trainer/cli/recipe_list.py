"""The list of recipes that come with the project."""

from sparse_trainer.cli.console import print_json, print_text
from sparse_trainer.cli.two_columns import two_columns
from sparse_trainer.run.recipes.shipped import describe, shipped


def list_recipes(as_json: bool) -> None:
    """Print the names of recipes with their descriptions."""
    found = {name: describe(path) for name, path in shipped().items()}
    if as_json:
        print_json({"recipes": found})
        return
    print_text("\n".join(two_columns(list(found.items()))))
