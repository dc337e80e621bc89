"""Recipes of one-shot pruning: which model, which text, how it is pruned, what is measured."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparse_trainer.errors import DataError, RecipeError
from sparse_trainer.run.prune_folder import CalibrationOptions, PruneOptions, SourceOptions, check_calibration
from sparse_trainer.run.recipes.sections import (
    DESCRIPTION,
    ExportOptions,
    Sections,
    as_yaml,
    check_names,
    parsed,
    parsed_or_none,
)
from sparse_trainer.tasks.language.measure import EvaluationOptions

ONE_SHOT_SECTIONS = ("model", "calibration", "prune", "evaluation", "export")


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureOptions(EvaluationOptions):
    """What is measured of the dense and of the pruned model, and how much of it."""

    tasks: tuple[str, ...] = ("wikitext2",)
    """Corpora, or local files of text: perplexity on running text, accuracy on questions."""
    files: dict[str, str] = field(default_factory=dict)
    """Corpus -> local file that stands in for the hub."""


@dataclass(frozen=True, kw_only=True)
class OneShotRecipe:
    """A whole run without training."""

    name: str
    """Name of the file, without its ending."""
    description: str
    model: SourceOptions
    calibration: CalibrationOptions | None
    """None where criterion and repair look at weights only."""
    prune: PruneOptions
    evaluation: MeasureOptions | None
    """None = nothing is measured but sizes and latency."""
    export: ExportOptions
    sections: Sections
    """The recipe as written, overrides included: what `dump` writes."""
    origin: str
    """Where it was read from, for messages."""
    overrides: tuple[str, ...] = field(default=(), compare=False)
    """What was changed of it on the command line, for messages."""

    def dump(self) -> str:
        """Return the recipe as YAML that loads to the same recipe."""
        return as_yaml(self.sections)


def is_one_shot(sections: Mapping[str, Any]) -> bool:
    """Tell a one-shot recipe from one that trains."""
    return "prune" in sections


def parse_one_shot(sections: Sections, name: str, origin: str) -> OneShotRecipe:
    """Check the sections of a recipe and parse each into its dataclass.

    Raises:
        RecipeError: An unknown section or key; a missing or ill-typed value; the place is named.
    """
    check_names(sections, ONE_SHOT_SECTIONS, origin)
    recipe = OneShotRecipe(
        name=name,
        description=str(sections.get(DESCRIPTION, "")),
        model=parsed(SourceOptions, sections, "model", origin),
        calibration=parsed_or_none(CalibrationOptions, sections, "calibration", origin),
        prune=parsed(PruneOptions, sections, "prune", origin),
        evaluation=parsed_or_none(MeasureOptions, sections, "evaluation", origin),
        export=parsed(ExportOptions, sections, "export", origin),
        sections=copy.deepcopy(sections),
        origin=origin,
    )
    try:
        check_calibration(recipe.prune, recipe.calibration)
    except DataError as error:
        raise RecipeError(f"{origin}: {error.where}", error.what, error.remedy) from error
    return recipe
