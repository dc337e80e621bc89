"""Recipe files: which one a name means, and what is in it, unchecked."""

import os
from pathlib import Path
from typing import Any

from sparse_trainer.errors import RecipeError, nearest, shown
from sparse_trainer.files.yaml_text import read_yaml
from sparse_trainer.run.recipes.shipped import shipped

Sections = dict[str, Any]
DESCRIPTION = "description"


def find_recipe(name: str) -> Path:
    """Return the file of a recipe: a path, or the name of a shipped one.

    Raises:
        RecipeError: Neither; the nearest name is given.
    """
    if os.path.isfile(name):  # unlike Path.is_file, no error for a name that no file can have
        return Path(name)
    known = shipped()
    if name in known:
        return known[name]
    raise RecipeError(f"recipe {shown(name)}", "neither a file nor a shipped recipe.", nearest(name, known))


def read_sections(path: Path) -> Sections:
    """Return the sections of a file, unchecked.

    Raises:
        RecipeError: The file is no YAML mapping.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise RecipeError(str(path), "is not a mapping of sections.", "Write `section:` and keys under it.")
    return content
