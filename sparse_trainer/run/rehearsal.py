"""What can be known of a training before it starts: what can fail here must not fail after the dense stage."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)
from transformers.trainer_utils import has_length
from transformers.utils.import_utils import is_liger_kernel_available

from patchers.patching.blends import unblend
from patchers.patching.patch import unpatch
from sparse_trainer.budget.schedule import Schedule
from sparse_trainer.budget.stages import StagedSchedule
from sparse_trainer.errors import (
    ArgumentError,
    CheckpointError,
    RecipeError,
    SparseTrainerError,
    first_line,
    one_of,
)
from sparse_trainer.fields import check_counts, check_seed
from sparse_trainer.folders.configs import read_config, resolve
from sparse_trainer.inputs.limits import check_positions, positions_of
from sparse_trainer.run.lora import check_not_quantized, check_peft
from sparse_trainer.run.recipes.early_stopping import check_best_metric
from sparse_trainer.run.recipes.fine_pruning import FinePruningRecipe
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.distillation.comparable import check_distillation, check_teacher
from sparse_trainer.training.sharding import check_sharing

_UNLISTED = ("flyte",)
"""Reports that Trainer knows and does not list as available."""


def check_options(recipe: FinePruningRecipe) -> None:
    """Refuse options of the training that need neither a model nor data to be refused.

    Raises:
        RecipeError: A count or seed that cannot be, a report that cannot be written, adapters without peft.
        DataError: A data file that is not there.
    """
    for where, training in _trainings(recipe).items():
        try:
            _check_numbers(training)
            _check_reports(training)
            check_best_metric(training, recipe.task.metrics)
        except ArgumentError as error:
            raise RecipeError(f"{where}.{error.where}", error.what, error.remedy) from error
    if recipe.lora is not None:
        check_peft()
    if recipe.early_stopping is not None and not any(map(recipe.callbacks, _trainings(recipe).values())):
        raise RecipeError(
            f"{recipe.origin}: early_stopping",
            "training.eval_strategy is 'no': no model would be compared with another.",
            "Set training.eval_strategy and training.save_strategy, e.g. to epoch.",
        )
    recipe.data.check_files()


def find_model(recipe: FinePruningRecipe) -> str:
    """Return where the model lies; its config is read, and no weights.

    Raises:
        RecipeError: There is none.
        ArgumentError: It has no positions for the sequences that are timed.
    """
    try:
        source = resolve(recipe.model.name_or_path)
        config = read_config(source, recipe.model.revision)
        check_not_quantized(config, recipe.model.name_or_path)
    except CheckpointError as error:
        raise RecipeError(f"model.name_or_path: {error.where}", error.what, error.remedy) from error
    timed = recipe.export.latency_sequence_length
    check_positions("export.latency_sequence_length", timed, positions_of(config))
    return source


def rehearse_training(
    recipe: FinePruningRecipe, model: PreTrainedModel, trainer_options: Mapping[str, Any]
) -> None:
    """Build each Trainer of the run with its loaders, optimizer and schedule, and let it go.

    Raises:
        ArgumentError: A training that is too short for its stages.
        RecipeError: One of them cannot be made.
    """
    for where, training in _trainings(recipe).items():
        try:
            trainer = recipe.task.trainer(model=model, args=training, **trainer_options)
            if where == "training" and recipe.pruning is not None:
                check_sharing(trainer.accelerator, model, recipe.pruning.driver_options)
            batches = trainer.get_train_dataloader()
            if where == "training" and recipe.pruning is not None:
                _check_stages(recipe.pruning.schedule, training, batches)
            trainer.get_eval_dataloader()
            trainer.create_optimizer_and_scheduler(num_training_steps=1)
        except SparseTrainerError:
            raise
        except (
            Exception
        ) as error:  # Trainer, torch and whatever they call refuse options in ways that nobody can list
            raise RecipeError(
                where, f"{first_line(error)}.", "Change the option that it is about."
            ) from error


def _check_stages(schedule: Schedule, training: TrainingArguments, batches: DataLoader[Any]) -> None:
    """Raise `ArgumentError` for a training that is too short for its stages, where its steps can be counted."""
    if not isinstance(schedule, StagedSchedule):
        return
    if training.max_steps > 0:
        schedule.check_steps(training.max_steps)
    elif has_length(batches):
        steps = max(1, math.ceil(len(batches) / training.gradient_accumulation_steps))
        schedule.check_steps(math.ceil(training.num_train_epochs * steps))


def _trainings(recipe: FinePruningRecipe) -> dict[str, TrainingArguments]:
    """Return the options of each training of a run, by where they stand."""
    dense = recipe.dense_training()
    found = {} if dense is None else {"model.dense_training": dense}
    return found if recipe.pruning is None and found else {**found, "training": recipe.training}


def _check_numbers(training: TrainingArguments) -> None:
    check_seed(training.seed)
    check_counts(
        per_device_train_batch_size=training.per_device_train_batch_size,
        per_device_eval_batch_size=training.per_device_eval_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
    )
    # Trainer looks for it when it trains, not when it is made.
    if training.use_liger_kernel and not is_liger_kernel_available():
        raise ArgumentError("use_liger_kernel", "liger-kernel is not installed.", "Install it, or drop this.")
    if not 0 <= training.label_smoothing_factor < 1:
        raise ArgumentError(
            "label_smoothing_factor", f"{training.label_smoothing_factor} is not in [0, 1).", "Give e.g. 0.1."
        )
    if training.label_names is not None and "labels" not in training.label_names:
        raise ArgumentError("label_names", f"{training.label_names} lacks 'labels'.", "Leave it out.")
    if training.max_steps <= 0 and training.num_train_epochs <= 0:
        raise ArgumentError(
            "num_train_epochs", f"{training.num_train_epochs} trains nothing.", "Give e.g. 3."
        )


def _check_reports(training: TrainingArguments) -> None:
    """Refuse reports that Trainer does not know, or whose package is not there."""
    asked = training.report_to or ()
    for name in [asked] if isinstance(asked, str) else asked:
        one_of("report_to", name, INTEGRATION_TO_CALLBACK)
        if name not in (*get_available_reporting_integrations(), *_UNLISTED):
            raise ArgumentError(
                "report_to", f"the package for {name} is not installed.", "Install it, or give none."
            )


def rehearse(model: nn.Module, pruning: SparseTrainingArguments, teacher: PreTrainedModel | None) -> None:
    """Patch and unpatch: a model, budget or teacher that cannot work is refused before the dense fine-tune."""
    check_distillation(model, pruning.distillation, None)
    if teacher is not None:
        check_teacher(model, teacher, pruning.distillation)
    trained = [p for p in model.parameters() if p.requires_grad]
    coordinator = ModelPatchingCoordinator(pruning)
    coordinator.follow_adapters(coordinator.restore(model))
    unpatch(model)
    unblend(model)
    # `freeze_weights` is for the stage that is rehearsed, not for the one before it.
    for parameter in trained:
        parameter.requires_grad_(True)
