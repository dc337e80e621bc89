"""Recipes of one-shot pruning: which model, which text, how it is pruned (once or in stages), what is measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from sparse_trainer.cut.share import SharingOptions
from sparse_trainer.data.splits import DataOptions
from sparse_trainer.errors import DataError, RecipeError, shown
from sparse_trainer.one_shot.kv_merge import KvMergeOptions
from sparse_trainer.run.options import (
    CalibrationOptions,
    PruneSection,
    SourceOptions,
    VocabularyOptions,
    check_calibration,
)
from sparse_trainer.run.recipes.reading import Sections
from sparse_trainer.run.recipes.recipe import Recipe
from sparse_trainer.run.recipes.sections import ExportOptions, parsed, parsed_or_none, section
from sparse_trainer.run.recipes.tasks import task_of
from sparse_trainer.run.recovery_options import RecoveryOptions
from sparse_trainer.tasks.base import Task
from sparse_trainer.tasks.language.measure import EvaluationOptions
from sparse_trainer.tasks.registry import DEFAULT_TASK, TASKS

TASK: Final = "task"
DATA: Final = "data"
_OF_ROWS: Final = ("samples", "seed", "batch_size")
"""Options of calibration that rows of a training set have, too."""
PRUNE: Final = "prune"
STAGES: Final = "stages"
"""Sections of a recipe that prunes in one shot: one pruning, or a list of them that follow each other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureOptions(EvaluationOptions):
    """What is measured of the dense and of the pruned model, and how much of it."""

    tasks: tuple[str, ...] = ("wikitext2",)
    """Corpora, or local files of text: perplexity on running text, accuracy on questions."""
    files: dict[str, str] = field(default_factory=dict)
    """Corpus -> local file that stands in for the hub."""


@dataclass(frozen=True, kw_only=True)
class OneShotRecipe(Recipe):
    """A run that prunes without training, and may train briefly afterwards."""

    SECTIONS: ClassVar[Mapping[str, type]] = {
        TASK: TASKS[DEFAULT_TASK],
        "model": SourceOptions,
        DATA: DataOptions,
        "vocabulary": VocabularyOptions,
        "calibration": CalibrationOptions,
        PRUNE: PruneSection,
        STAGES: PruneSection,
        "kv_merge": KvMergeOptions,
        "sharing": SharingOptions,
        "recovery": RecoveryOptions,
        "evaluation": MeasureOptions,
        "export": ExportOptions,
    }

    task: Task | None
    """What the model was fine-tuned for: its training set is what criteria and repair look at, without labels, and
    its validation set is measured. None = the text of `calibration`, and `evaluation`."""
    data: DataOptions | None
    """The data of the task."""
    model: SourceOptions
    vocabulary: VocabularyOptions | None
    """Which tokens stay; None = all."""
    calibration: CalibrationOptions | None
    """None where criterion and repair look at weights only."""
    prunings: tuple[PruneSection, ...]
    """What `prune`, or each entry of `stages`, asks for, in order: each starts from what the one before it left."""
    kv_merge: KvMergeOptions | None
    """How many KV heads stay in the layers that are left; None = all."""
    sharing: SharingOptions | None
    """Which of the layers that are left share their linears; None = each has its own."""
    recovery: RecoveryOptions | None
    """None = nothing is trained."""
    evaluation: MeasureOptions | None
    """None = nothing is measured but sizes and latency."""

    @property
    def classes(self) -> Mapping[str, type]:
        """Section -> the dataclass of its options, in this recipe; `stages.1` is the second entry of `stages`."""
        others = {key: cls for key, cls in self.SECTIONS.items() if key not in (PRUNE, STAGES)}
        own = {} if self.task is None else {TASK: type(self.task)}
        return dict.fromkeys(_places(self.sections), PruneSection) | others | own


def parse_one_shot(sections: Sections, name: str, origin: str) -> OneShotRecipe:
    """Check the sections of a recipe and parse each into its dataclass.

    Raises:
        RecipeError: An unknown section or key; a missing or ill-typed value; the place is named.
    """
    header = OneShotRecipe.header(sections, name, origin)
    task, data = _task_and_data(sections, origin)
    recipe = OneShotRecipe(
        task=task,
        data=data,
        model=parsed(SourceOptions, sections, "model", origin),
        vocabulary=parsed_or_none(VocabularyOptions, sections, "vocabulary", origin),
        calibration=parsed_or_none(CalibrationOptions, sections, "calibration", origin),
        prunings=_prunings(sections, origin),
        kv_merge=parsed_or_none(KvMergeOptions, sections, "kv_merge", origin),
        sharing=parsed_or_none(SharingOptions, sections, "sharing", origin),
        recovery=parsed_or_none(RecoveryOptions, sections, "recovery", origin),
        evaluation=parsed_or_none(MeasureOptions, sections, "evaluation", origin),
        **header,
    )
    try:
        for pruning in recipe.prunings:
            check_calibration(pruning, recipe.calibration)
    except DataError as error:
        raise RecipeError(f"{origin}: {error.where}", error.what, error.remedy) from error
    return recipe


def _task_and_data(sections: Sections, origin: str) -> tuple[Task | None, DataOptions | None]:
    """Return the task and its data, where there are some.

    Raises:
        RecipeError: One without the other, or calibration on something else.
    """
    if sections.get(TASK) is None:
        if sections.get(DATA) is not None:
            raise RecipeError(f"{origin}: {DATA}", "there is no task.", f"Add a section {TASK}, or drop it.")
        return None, None
    if sections.get("evaluation") is not None:
        raise RecipeError(
            f"{origin}: evaluation", f"the {TASK} says what is measured.", f"Drop it, or the section {TASK}."
        )
    if sections.get("calibration") is None:
        raise RecipeError(
            f"{origin}: calibration", "missing.", "Say how many rows are looked at: `samples: 2048` under it."
        )
    for name in section(sections, "calibration", origin):
        if name not in _OF_ROWS:
            raise RecipeError(
                f"{origin}: calibration.{name}",
                f"the training set in {DATA} is what is read.",
                f"Drop it, or the section {TASK}.",
            )
    return task_of(sections, origin, TASKS, DEFAULT_TASK), parsed(DataOptions, sections, DATA, origin)


def _prunings(sections: Sections, origin: str) -> tuple[PruneSection, ...]:
    """Return what `prune`, or each entry of `stages`, asks for.

    Raises:
        RecipeError: Both sections, no list, an empty one, or an entry that cannot be meant.
    """
    stages = sections.get(STAGES)
    if stages is None:
        return (parsed(PruneSection, sections, PRUNE, origin),)
    if sections.get(PRUNE) is not None:
        raise RecipeError(
            f"{origin}: {STAGES}", f"there is a section {PRUNE}, too.", "Make it the first of the stages."
        )
    if not isinstance(stages, list) or not stages:
        raise RecipeError(
            f"{origin}: {STAGES}",
            f"{shown(stages)} is no list of prunings.",
            "Write `- criterion: NAME` and the other options of prune under it, once for each stage.",
        )
    empty = next((place for place, asked in _places(sections).items() if not asked), None)
    if empty is not None:
        raise RecipeError(
            f"{origin}: {empty}", "says nothing.", "Give its criterion and density, or drop it."
        )
    return tuple(parsed(PruneSection, _places(sections), place, origin) for place in _places(sections))


def _places(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a recipe that ask for a pruning, by the name of each: `prune`, or `stages.0`, `stages.1`."""
    stages = sections.get(STAGES)
    if stages is None:
        return {PRUNE: sections.get(PRUNE)}
    return {f"{STAGES}.{number}": asked for number, asked in enumerate(stages)}
