"""Load a recipe of any kind, with overrides from the command line; and let errors speak of it."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparse_trainer.errors import ArgumentError, RecipeError, SparseTrainerError, shown
from sparse_trainer.run.plugins import load_plugins
from sparse_trainer.run.recipes.fine_pruning import FinePruningRecipe, parse_fine_pruning
from sparse_trainer.run.recipes.one_shot import PRUNE, STAGES, OneShotRecipe, parse_one_shot
from sparse_trainer.run.recipes.reading import Sections, find_recipe, read_sections
from sparse_trainer.run.recipes.recipe import Recipe
from sparse_trainer.run.recipes.sections import PLUGINS, blamed, override, spelling_of


def is_one_shot(sections: Mapping[str, Any]) -> bool:
    """Tell a recipe that prunes in one shot from one that trains."""
    return PRUNE in sections or STAGES in sections


def load_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Load a shipped recipe by name, or a file, and apply overrides like `training.num_train_epochs=1`.

    One with a section `prune` or `stages` prunes in one shot; any other trains. The files under `plugins` are imported
    before the sections are read, unless the recipe lies in a model's folder, whose files name no code.

    Raises:
        RecipeError: Unknown recipe, section or key; a missing or ill-typed value; the place is named.
    """
    path, overrides = find_recipe(str(name_or_path)), tuple(overrides)
    sections = read_sections(path)
    one_shot = is_one_shot(sections)
    for text in overrides:
        override(sections, text, tuple((OneShotRecipe if one_shot else FinePruningRecipe).SECTIONS))
    _import_plugins(sections, path)
    try:
        parse = parse_one_shot if one_shot else parse_fine_pruning
        return dataclasses.replace(parse(sections, path.stem, str(path)), overrides=overrides)
    except RecipeError as error:
        raise blamed(error, str(path), overrides) from error


def _import_plugins(sections: Sections, path: Path) -> None:
    """Import what the recipe names under `plugins`, and note where it lies: a saved recipe lies elsewhere."""
    asked = sections.get(PLUGINS)
    if asked is None:
        return
    if not isinstance(asked, list):
        raise RecipeError(
            f"{path}: {PLUGINS}", f"{shown(asked)} is no list.", "Name Python files, e.g. [my_file.py]."
        )
    if (path.parent / "config.json").exists():
        raise RecipeError(
            f"{path}: {PLUGINS}",
            "no file in a model's folder names code that is run.",
            "Read those files, and copy the recipe out of the folder.",
        )
    try:
        sections[PLUGINS] = load_plugins(asked, path.parent)
    except ArgumentError as error:
        raise RecipeError(f"{path}: {error.where}", error.what, error.remedy) from error


@contextmanager
def speaking_of(recipe: Recipe) -> Iterator[None]:
    """Let errors of a run name options as the recipe writes them, and the override that is at fault."""
    try:
        yield
    except SparseTrainerError as error:
        said = error.respelled(spelling_of(recipe.classes))
        raise blamed(said, recipe.origin, recipe.overrides) from error
