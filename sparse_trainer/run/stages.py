"""The stages of a run that load and train: data, dense fine-tune, fine-prune."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from patchers.patching.blends import unblend
from patchers.patching.patch import unpatch
from sparse_trainer.cut.fill import fill, rewind
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import CheckpointError, RecipeError, SparseTrainerError
from sparse_trainer.files.writing import write_text
from sparse_trainer.folders.configs import read_config, resolve
from sparse_trainer.folders.replace import new_folder
from sparse_trainer.folders.tokenizers import load_tokenizer
from sparse_trainer.inputs.limits import check_positions, positions_of
from sparse_trainer.plan.document import PLAN_FILE
from sparse_trainer.plan.record import plan_of
from sparse_trainer.run.outcome import RECIPE_FILE
from sparse_trainer.run.recipes.fine_pruning import DENSE, Recipe
from sparse_trainer.run.resume import RunFolder
from sparse_trainer.tasks.base import Prepared, Task
from sparse_trainer.tasks.registry import find_task
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.checkpoint import check_resumed, is_over
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.distillation.comparable import check_distillation, check_teacher
from sparse_trainer.training.trainer import PruningTrainer

Tell = Callable[[str], None]
"""Takes one line about what is being done."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every stage of a run needs."""

    recipe: Recipe
    task: Task
    tokenizer: PreTrainedTokenizerBase
    data: Prepared
    source: str
    folder: RunFolder

    def load_model(self) -> PreTrainedModel:
        """Load the model that the recipe starts from; its fresh head follows from the seed."""
        set_seed(self.recipe.training.seed)
        return self.task.load_model(self.source, self.recipe.model.revision, self.data.labels)

    def rewound(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return the model in the shapes of the plan that the recipe names, or the model itself."""
        plan = self.recipe.model.rewind
        return model if plan is None else rewind(model, plan)

    def start(self, model: PreTrainedModel, tell: Tell) -> PreTrainedModel:
        """Return the model to train: rewound, and filled in place, where the recipe says so."""
        model = self.rewound(model)
        if self.recipe.model.fill:
            tell(f"{fill(model):,} zeros filled")
        return model

    def checkpoint(self, training: TrainingArguments) -> str | None:
        """Return the checkpoint from which a stage goes on, as Trainer takes it."""
        found = self.folder.checkpoint(training.output_dir)
        return None if found is None else str(found)

    def trainer_options(self) -> dict[str, Any]:
        """Return the arguments that every Trainer of the run shares."""
        return {
            "train_dataset": self.data.train,
            "eval_dataset": self.data.validation,
            "processing_class": self.tokenizer,
            "data_collator": self.data.collator,
            "compute_metrics": self.data.compute_metrics,
        }


def prepare(recipe: Recipe, folder: RunFolder) -> Setting:
    """Load tokenizer and data."""
    task = find_task(recipe.task.name)
    try:
        source = resolve(recipe.model.name_or_path)
        config = read_config(source, recipe.model.revision)
        tokenizer = load_tokenizer(recipe.model.name_or_path, recipe.model.revision)
    except CheckpointError as error:
        raise RecipeError(f"model.name_or_path: {error.where}", error.what, error.remedy) from error
    positions, timed = positions_of(config), recipe.export.latency_sequence_length
    check_positions("export.latency_sequence_length", timed, positions)
    if recipe.data.max_length > tokenizer.model_max_length:
        raise RecipeError(
            "data.max_length",
            f"{recipe.data.max_length}, and the model reads {tokenizer.model_max_length} tokens at most.",
            "Give a smaller number.",
        )
    data = task.prepare(recipe.task, recipe.data, tokenizer)
    return Setting(recipe=recipe, task=task, tokenizer=tokenizer, data=data, source=source, folder=folder)


def load_teacher(setting: Setting, pruning: SparseTrainingArguments) -> PreTrainedModel | None:
    """Load a teacher given by name; the coordinator makes its own copy for 'self'."""
    name = pruning.distil_teacher_name_or_path
    if name is None or name in (DENSE, "self"):
        return None
    try:
        return setting.task.load_model(resolve(name), "main", setting.data.labels)
    except SparseTrainerError as error:
        where = f"pruning.distil_teacher_name_or_path: {error.where}"
        raise type(error)(where, error.what, error.remedy) from error


def check_goes_on(
    setting: Setting,
    model: PreTrainedModel,
    pruning: SparseTrainingArguments,
    teacher: PreTrainedModel | None,
) -> None:
    """Refuse, before the dense fine-tune, a checkpoint of other pruning arguments to go on from."""
    checkpoint = setting.folder.checkpoint(setting.recipe.training.output_dir)
    if checkpoint is not None:
        is_given = teacher is not None or pruning.distil_teacher_name_or_path == DENSE
        check_resumed(checkpoint, model, _of_coordinator(pruning, has_teacher=is_given))


def rehearse(
    model: PreTrainedModel, pruning: SparseTrainingArguments, teacher: PreTrainedModel | None
) -> None:
    """Patch and unpatch: a model, budget or teacher that cannot work is refused before the dense fine-tune."""
    check_distillation(model, pruning.distillation, None)
    if teacher is not None:
        check_teacher(model, teacher, pruning.distillation)
    unpatch(ModelPatchingCoordinator(pruning).restore(model))
    unblend(model)


def starting_points(
    setting: Setting, model: PreTrainedModel, tell: Tell
) -> tuple[PreTrainedModel, Mapping[str, float] | None, PreTrainedModel]:
    """Return the dense baseline, its metrics (None: it is not fine-tuned) and the model to prune."""
    training = setting.recipe.dense_training()
    if training is None:
        return model, None, setting.start(copy.deepcopy(model), tell)
    dense = _dense_model(setting, model, training, tell)
    metrics = evaluate(setting, dense, training)
    from_dense = setting.recipe.model.prune_from == DENSE
    student = copy.deepcopy(dense) if from_dense else setting.load_model()
    return dense, metrics, setting.start(student, tell)


def _dense_model(
    setting: Setting, model: PreTrainedModel, training: TrainingArguments, tell: Tell
) -> PreTrainedModel:
    """Return the fine-tuned dense model: of the earlier run that goes on, or trained now and kept for the next."""
    kept = setting.folder.dense_model()
    if kept is not None:
        tell(f"taking the dense model from {kept}")
        dense = setting.task.load_model(str(kept), "main", setting.data.labels)
        dense.config.name_or_path = model.config.name_or_path
        return dense
    tell("fine-tuning the dense model")
    dense = train(setting, model, training)
    save_dense(setting, dense, setting.folder.dense)
    return dense


def save_dense(setting: Setting, model: PreTrainedModel, folder: Path) -> None:
    """Write a model that was fine-tuned, all or nothing; with the plan of one that was pruned before."""
    with new_folder(folder, overwrite=True, ours=RECIPE_FILE) as draft:
        model.save_pretrained(draft)
        setting.tokenizer.save_pretrained(draft)
        write_text(draft / RECIPE_FILE, setting.recipe.dump())
        plan = plan_of(model)
        if plan is not None:
            plan.save(draft / PLAN_FILE)


class _DenseTrainer(Trainer):
    """`Trainer` that takes no step too many where it resumes."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Return the batches of the next step: none where all steps are taken."""
        return ([], None) if is_over(self.state) else super().get_batch_samples(*args, **kwargs)


def train(setting: Setting, model: PreTrainedModel, training: TrainingArguments) -> PreTrainedModel:
    """Fine-tune without pruning."""
    trainer = _DenseTrainer(model=model, args=training, **setting.trainer_options())
    trainer.train(resume_from_checkpoint=setting.checkpoint(training))
    return _bare(trainer, model)


def _of_coordinator(pruning: SparseTrainingArguments, *, has_teacher: bool) -> SparseTrainingArguments:
    """Return the arguments as the coordinator gets them: a teacher that was loaded is handed over, not named."""
    return dataclasses.replace(pruning, distil_teacher_name_or_path=None) if has_teacher else pruning


def fine_prune(
    setting: Setting,
    student: PreTrainedModel,
    pruning: SparseTrainingArguments,
    teacher: PreTrainedModel | None,
) -> PreTrainedModel:
    """Fine-tune under the budget, and cut."""
    pruning = _of_coordinator(pruning, has_teacher=teacher is not None)
    training = setting.recipe.training
    trainer = PruningTrainer(
        model=student, args=training, sparse_args=pruning, teacher=teacher, **setting.trainer_options()
    )
    trainer.train(resume_from_checkpoint=setting.checkpoint(training))
    try:
        return optimize_model(student)
    except SparseTrainerError as error:
        uncut = setting.folder.path / "uncut"
        trainer.save_model(str(uncut))
        remedy = f"{error.remedy} The trained model, with its gates, is in {uncut}."
        raise type(error)(error.where, error.what, remedy) from error


def evaluate(setting: Setting, model: PreTrainedModel, training: TrainingArguments) -> dict[str, float]:
    """Return the metrics of the recipe on the validation set."""
    trainer = Trainer(model=model, args=training, **setting.trainer_options())
    logged = trainer.evaluate()
    _bare(trainer, model)
    return {name: logged[f"eval_{name}"] for name in setting.recipe.task.metrics}


def _bare(trainer: Trainer, model: PreTrainedModel) -> PreTrainedModel:
    """Take off the mixed-precision wrapper that accelerate leaves on the model: it would be timed and compared, too."""
    bare: PreTrainedModel = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    return bare
