"""Recipes of one-shot pruning: which model, which text, how it is pruned, what is measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from sparse_trainer.errors import DataError, RecipeError
from sparse_trainer.run.options import CalibrationOptions, PruneSection, SourceOptions, check_calibration
from sparse_trainer.run.recipes.recipe import Recipe
from sparse_trainer.run.recipes.sections import ExportOptions, Sections, parsed, parsed_or_none
from sparse_trainer.tasks.language.measure import EvaluationOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureOptions(EvaluationOptions):
    """What is measured of the dense and of the pruned model, and how much of it."""

    tasks: tuple[str, ...] = ("wikitext2",)
    """Corpora, or local files of text: perplexity on running text, accuracy on questions."""
    files: dict[str, str] = field(default_factory=dict)
    """Corpus -> local file that stands in for the hub."""


@dataclass(frozen=True, kw_only=True)
class OneShotRecipe(Recipe):
    """A run without training."""

    SECTIONS: ClassVar[Mapping[str, type]] = {
        "model": SourceOptions,
        "calibration": CalibrationOptions,
        "prune": PruneSection,
        "evaluation": MeasureOptions,
        "export": ExportOptions,
    }

    model: SourceOptions
    calibration: CalibrationOptions | None
    """None where criterion and repair look at weights only."""
    prune: PruneSection
    evaluation: MeasureOptions | None
    """None = nothing is measured but sizes and latency."""


def parse_one_shot(sections: Sections, name: str, origin: str) -> OneShotRecipe:
    """Check the sections of a recipe and parse each into its dataclass.

    Raises:
        RecipeError: An unknown section or key; a missing or ill-typed value; the place is named.
    """
    header = OneShotRecipe.header(sections, name, origin)
    recipe = OneShotRecipe(
        model=parsed(SourceOptions, sections, "model", origin),
        calibration=parsed_or_none(CalibrationOptions, sections, "calibration", origin),
        prune=parsed(PruneSection, sections, "prune", origin),
        evaluation=parsed_or_none(MeasureOptions, sections, "evaluation", origin),
        **header,
    )
    try:
        check_calibration(recipe.prune, recipe.calibration)
    except DataError as error:
        raise RecipeError(f"{origin}: {error.where}", error.what, error.remedy) from error
    return recipe
