"""Recipes that train: fine-tune dense, fine-prune, or both."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from sparse_trainer.data.splits import DataOptions
from sparse_trainer.errors import RecipeError
from sparse_trainer.fields import checked
from sparse_trainer.run.lora import LoraOptions
from sparse_trainer.run.options import VocabularyOptions
from sparse_trainer.run.recipes.distillation import TeacherOptions
from sparse_trainer.run.recipes.early_stopping import EarlyStoppingOptions, is_lower_better
from sparse_trainer.run.recipes.reading import Sections
from sparse_trainer.run.recipes.recipe import Recipe
from sparse_trainer.run.recipes.sections import ExportOptions, parsed, parsed_or_none, section
from sparse_trainer.run.recipes.tasks import task_of
from sparse_trainer.tasks.base import Task
from sparse_trainer.tasks.registry import DEFAULT_TASK, TASKS
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments

DENSE = "dense"
"""As `pruning.distil_teacher_name_or_path`: the dense model that the same run fine-tunes first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """Which model, and whether it is fine-tuned dense before it is pruned."""

    name_or_path: str
    """Folder, hub id, or `package:NAME/FOLDER` for weights inside an installed Python package."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    dense_training: dict[str, Any] | None = None
    """Fine-tune a dense model first, with these changes to `training`; null = do not. (Without pruning it is all.)"""
    prune_from: Literal["pretrained", "dense"] = "pretrained"
    """Where fine-pruning starts: at the pretrained model, or at the dense model that was fine-tuned first."""
    dense_folder: str | None = None
    """Folder where that dense model is kept, and taken from by other runs that would fine-tune the same one."""
    rewind: str | None = None
    """Folder or file with the plan of an earlier run: the model is cut by it, and then trained (or pruned further)."""
    fill: bool = False
    """Fill the zeros inside the layers of a pruned model with small noise, and then train it (or prune it further)."""


@dataclass(frozen=True, kw_only=True)
class FinePruningRecipe(Recipe):
    """A run that trains: what to train on, what to prune, what to write."""

    SECTIONS: ClassVar[Mapping[str, type]] = {
        "task": TASKS[DEFAULT_TASK],
        "model": ModelOptions,
        "vocabulary": VocabularyOptions,
        "data": DataOptions,
        "pruning": SparseTrainingArguments,
        "distillation": TeacherOptions,
        "lora": LoraOptions,
        "training": TrainingArguments,
        "early_stopping": EarlyStoppingOptions,
        "export": ExportOptions,
    }

    task: Task
    model: ModelOptions
    vocabulary: VocabularyOptions | None
    """Which tokens stay; None = all."""
    data: DataOptions
    pruning: SparseTrainingArguments | None
    """None = a dense run."""
    distillation: TeacherOptions | None
    """A teacher of a run without pruning."""
    lora: LoraOptions | None
    """None = all weights train."""
    training: TrainingArguments
    early_stopping: EarlyStoppingOptions | None
    """None = all steps are taken."""

    @property
    def classes(self) -> Mapping[str, type]:
        """Section -> the dataclass of its options: of the task, its own."""
        return {**self.SECTIONS, "task": type(self.task), "training": self.task.arguments}

    def callbacks(self, training: TrainingArguments) -> list[TrainerCallback]:
        """Return what the Trainer of one training of the run is given: early stopping, where it evaluates."""
        evaluates = training.eval_strategy != IntervalStrategy.NO
        return [self.early_stopping.callback()] if self.early_stopping and evaluates else []

    def dense_training(self) -> TrainingArguments | None:
        """Return the options of the dense fine-tune that comes first, or None."""
        changes = self.model.dense_training
        if changes is None:
            return None
        section = {**(self.sections.get("training") or {}), "output_dir": f"{self.training.output_dir}/dense"}
        # A checkpoint to go on from belongs to fine-pruning.
        section.pop("resume_from_checkpoint", None)
        where, early = f"{self.origin}: model.dense_training", self.early_stopping is not None
        return _training(self.task.arguments, section | changes, self.name, where, stops_early=early)


def parse_fine_pruning(sections: Sections, name: str, origin: str) -> FinePruningRecipe:
    """Check the sections of a recipe that trains, and parse each into its dataclass."""
    header = FinePruningRecipe.header(sections, name, origin)
    task = task_of(sections, origin, TASKS, DEFAULT_TASK)
    early = parsed_or_none(EarlyStoppingOptions, sections, "early_stopping", origin)
    given, where = section(sections, "training", origin), f"{origin}: training"
    recipe = FinePruningRecipe(
        task=task,
        model=parsed(ModelOptions, sections, "model", origin),
        vocabulary=parsed_or_none(VocabularyOptions, sections, "vocabulary", origin),
        data=parsed(DataOptions, sections, "data", origin),
        pruning=parsed_or_none(SparseTrainingArguments, sections, "pruning", origin),
        distillation=parsed_or_none(TeacherOptions, sections, "distillation", origin),
        lora=parsed_or_none(LoraOptions, sections, "lora", origin),
        training=_training(task.arguments, given, name, where, stops_early=early is not None),
        early_stopping=early,
        **header,
    )
    _check_dense(recipe)
    _check_family(recipe)
    if recipe.distillation is not None and recipe.pruning is not None:
        raise RecipeError(
            f"{origin}: distillation",
            "is for runs without pruning.",
            "Set pruning.distil_teacher_name_or_path instead, or pruning: null.",
        )
    if recipe.pruning is not None and recipe.pruning.prunes_nothing:
        raise RecipeError(
            f"{origin}: pruning.density",
            "1 keeps all: nothing would be pruned.",
            "Give less, e.g. 0.5; or train without pruning (pruning: null).",
        )
    return recipe


def _check_family(recipe: FinePruningRecipe) -> None:
    """Refuse what chooses one model of a training in which every stage ends with one."""
    if recipe.pruning is None or recipe.pruning.stages is None:
        return
    family = "speedups" if recipe.pruning.stages.speedups else "densities"
    chooses = {
        "early_stopping": recipe.early_stopping is not None,
        "training.load_best_model_at_end": recipe.training.load_best_model_at_end,
    }
    for key, is_set in chooses.items():
        if is_set:
            raise RecipeError(
                f"{recipe.origin}: {key}",
                f"chooses among the models of one budget, and pruning.{family} has each written as its stage ends.",
                "Leave it out.",
            )


def _training(
    arguments: type[TrainingArguments], section: dict[str, Any], name: str, where: str, *, stops_early: bool
) -> TrainingArguments:
    """Parse the options of the Trainer, whose own checks name fields but not files."""
    # Pinned memory without an accelerator only earns a warning from torch.
    defaults: dict[str, Any] = {
        "output_dir": f"runs/{name}",
        "dataloader_pin_memory": torch.accelerator.is_available(),
    }
    if stops_early:
        # Where a run goes on, patience goes on, too.
        defaults |= {"metric_for_best_model": "loss", "restore_callback_states_from_checkpoint": True}
    # Typed as text for the sake of command lines; transformers wants true. It also writes into the nested options.
    shared = {"fsdp": True} if section.get("fsdp") is True else {}
    given = copy.deepcopy({key: value for key, value in section.items() if key not in shared})
    values = defaults | checked(arguments, given, where) | shared
    if values.get("metric_for_best_model") is not None:
        values.setdefault("greater_is_better", not is_lower_better(values["metric_for_best_model"]))
    if not values["output_dir"]:
        raise RecipeError(f"{where}.output_dir", "is empty.", "Name a folder, or leave it out.")
    try:
        return arguments(**values)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise RecipeError(where, f"{error}", "Change the option that the message names.") from error


def _check_dense(recipe: FinePruningRecipe) -> None:
    """Refuse what needs a dense fine-tune when there is none, and a dense fine-tune with unknown options.

    Without pruning nothing starts from the dense model; filled or rewound, the model that is named is the start.
    """
    dense = recipe.dense_training()
    remedy = "Add model.dense_training (it may be {}: the options of `training`)."
    is_start = recipe.pruning is None or recipe.model.fill or recipe.model.rewind is not None
    if dense is None and recipe.model.prune_from == "dense" and not is_start:
        raise RecipeError(
            f"{recipe.origin}: model.prune_from", "'dense', but no dense model is trained.", remedy
        )
    if recipe.task.learns_itself and dense is not None:
        raise RecipeError(
            f"{recipe.origin}: model.dense_training",
            "has nothing to learn: the targets are what the model says as it is.",
            "Leave it out.",
        )
    if recipe.task.learns_itself and recipe.pruning is None:
        raise RecipeError(
            f"{recipe.origin}: pruning",
            "null leaves nothing to learn: the targets are what the model says as it is.",
            "Give a section `pruning`.",
        )
    if recipe.model.dense_folder is not None and (dense is None or recipe.pruning is None):
        raise RecipeError(
            f"{recipe.origin}: model.dense_folder",
            "is for the dense model that is fine-tuned before pruning, and there is none.",
            "Leave it out; or add model.dense_training to a recipe with a section `pruning`.",
        )
    teacher = recipe.pruning.distil_teacher_name_or_path if recipe.pruning else None
    if dense is None and teacher == DENSE:
        where = f"{recipe.origin}: pruning.distil_teacher_name_or_path"
        raise RecipeError(where, "'dense', but no dense model is trained.", remedy)
