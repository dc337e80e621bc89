"""From a recipe and a grid to the runs of a sweep: all recipes checked, and what an earlier sweep left told apart."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_trainer.errors import CheckpointError, RecipeError, shown
from sparse_trainer.files.yaml_text import parse_yaml
from sparse_trainer.run.one_shot import check_one_shot
from sparse_trainer.run.outcome import RECIPE_FILE
from sparse_trainer.run.recipes.fine_pruning import FinePruningRecipe
from sparse_trainer.run.recipes.load import load_recipe, speaking_of
from sparse_trainer.run.recipes.one_shot import OneShotRecipe
from sparse_trainer.run.recipes.reading import DESCRIPTION, read_sections
from sparse_trainer.run.recipes.recipe import Recipe
from sparse_trainer.run.recipes.sections import RESUME, as_yaml
from sparse_trainer.run.rehearsal import check_options, find_model
from sparse_trainer.run.resume import RUN_FILE, dense_part, recipe_changes, say_changes
from sparse_trainer.run.sweep.grid import Combination, combinations
from sparse_trainer.run.sweep.planned import RECORD_FILE, Begun, PlannedRun, read_record

DENSE_FOLDER = "dense"
"""In the folder of a sweep: the dense models that its runs share."""
_PLACES = ("training.output_dir", "export.output_dir", "model.dense_folder")
"""Options that a sweep sets for each of its runs."""
_FREE = (DESCRIPTION, RESUME, *_PLACES)
"""What may be another in a finished run that is not run again: it changes nothing of what was measured."""


def plan_runs(source: str, overrides: Iterable[str], root: Path) -> list[PlannedRun]:
    """Return the runs of a sweep, all of their recipes checked as far as that takes neither weights nor data.

    Args:
        source: Name of a shipped recipe, or a file.
        overrides: As `sparse-trainer run` takes them, with comma lists.
        root: The folder of the sweep.

    Raises:
        SparseTrainerError: An override that is none, an option that is unknown or cannot be meant, two runs that are
            one, or a folder that holds something else.
    """
    grid = combinations(overrides)
    for combination in grid:
        _check_places(combination)
    recipes = [load_recipe(source, combination.overrides) for combination in grid]
    _check_distinct(grid, recipes)
    for recipe in recipes:
        _check(recipe)
    # A run goes on in a folder of the same name only.
    place = Path(os.path.abspath(root))
    return [_planned(source, *pair, place) for pair in zip(grid, recipes, strict=True)]


def _planned(source: str, combination: Combination, recipe: Recipe, root: Path) -> PlannedRun:
    """Return a run with its folders, and the arguments that start it or go on with it.

    Raises:
        CheckpointError: Its folder holds another run.
    """
    folder, dense = root / combination.name, _dense_folder(recipe, root)
    trains = isinstance(recipe, FinePruningRecipe)
    result = folder / ("pruned" if _prunes(recipe) else "model")
    begun = _begun(recipe, folder, result)
    places = {
        "export.output_dir": result,
        **({"training.output_dir": folder} if trains else {}),
        **({"model.dense_folder": dense} if dense is not None else {}),
    }
    goes_on = ["--resume" if trains else "--overwrite"] if begun == "stopped" else []
    # YAML reads what JSON quotes.
    given = [f"{key}={json.dumps(str(path), ensure_ascii=False)}" for key, path in places.items()]
    return PlannedRun(
        combination=combination,
        recipe=recipe.dump(),
        arguments=("--json", *goes_on, "--", source, *combination.overrides, *given),
        folder=folder,
        result=result,
        dense=dense,
        begun=begun,
    )


def _dense_folder(recipe: Recipe, root: Path) -> Path | None:
    """Return where a dense model goes that other runs can share: named by all that it depends on."""
    if not isinstance(recipe, FinePruningRecipe) or recipe.pruning is None:
        return None
    if recipe.model.dense_training is None:
        return None
    part = as_yaml(dense_part(recipe.sections))
    return root / DENSE_FOLDER / hashlib.sha256(part.encode()).hexdigest()[:8]


def _prunes(recipe: Recipe) -> bool:
    """Tell a run that prunes from one that only fine-tunes."""
    return not isinstance(recipe, FinePruningRecipe) or recipe.pruning is not None


def _begun(recipe: Recipe, folder: Path, result: Path) -> Begun:
    """Return what an earlier sweep has done of a run: finished runs have a record, others at most a copy of the recipe.

    Raises:
        CheckpointError: The folder holds another run.
    """
    if (folder / RECORD_FILE).is_file():
        then = parse_yaml(str(read_record(folder).get("recipe")), str(folder / RECORD_FILE))
        sections = then if isinstance(then, dict) else {}
        _check_same(folder, recipe_changes(sections, recipe.sections, _FREE))
        return "finished"
    for file in (folder / RUN_FILE, result / RECIPE_FILE):
        if file.is_file():
            _check_same(folder, recipe_changes(read_sections(file), recipe.sections))
            return "stopped"
    return "new"


def _check_same(folder: Path, changes: Mapping[str, tuple[Any, Any]]) -> None:
    if changes:
        raise CheckpointError(
            str(folder),
            f"holds a run of another recipe: {say_changes(changes)}.",
            "Name another folder for the sweep with --out, or remove this one.",
        )


def _check(recipe: Recipe) -> None:
    """Refuse options that need neither weights nor data to be refused: each run asks this, and more, by itself."""
    with speaking_of(recipe):
        if isinstance(recipe, FinePruningRecipe):
            check_options(recipe)
            find_model(recipe)
            if recipe.pruning is not None and recipe.pruning.stages is not None:
                raise RecipeError(
                    f"{recipe.origin}: pruning",
                    "asks for a family, and a sweep compares runs of one model.",
                    "Give one `speedup` or `density`; or call sparse-trainer family.",
                )
        else:
            assert isinstance(recipe, OneShotRecipe)
            check_one_shot(recipe)


def _check_places(combination: Combination) -> None:
    for text in combination.overrides:
        if text.partition("=")[0] in _PLACES:
            raise RecipeError(
                f"override {shown(text)}",
                "a sweep gives every run a folder of its own.",
                "Leave it out; name the folder of the sweep with --out.",
            )


def _check_distinct(grid: Sequence[Combination], recipes: Sequence[Recipe]) -> None:
    """Refuse runs that would do the same: values that stand twice, or mean the same."""
    seen: dict[str, str] = {}
    for combination, recipe in zip(grid, recipes, strict=True):
        what = json.dumps(recipe.sections, sort_keys=True, default=str)
        if what in seen:
            raise RecipeError(
                "sweep", f"{seen[what]} and {combination.name} are the same run.", "Give every value once."
            )
        seen[what] = combination.name
