"""What comes before a training: options, data and model of a recipe are loaded, checked and tried out."""

import dataclasses
from pathlib import Path

from transformers import PreTrainedModel

from sparse_trainer.errors import CheckpointError, RecipeError
from sparse_trainer.folders.load_shape import load_shape
from sparse_trainer.folders.processors import load_processor
from sparse_trainer.folders.save import least_bytes
from sparse_trainer.run.fine_pruning import FinePruningJob, of_coordinator
from sparse_trainer.run.options import Tell
from sparse_trainer.run.recipes.fine_pruning import DENSE, FinePruningRecipe
from sparse_trainer.run.rehearsal import check_options, find_model, rehearse, rehearse_training
from sparse_trainer.run.resume import RunFolder
from sparse_trainer.run.stages import State
from sparse_trainer.run.teachers import check_lesson, load_teacher
from sparse_trainer.run.together import check_alone, is_first, together
from sparse_trainer.run.vocabulary import trimmed_source
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.checkpoint import check_resumed
from sparse_trainer.training.timed import check_times


def prepare_fine_pruning(recipe: FinePruningRecipe, tell: Tell, *, overwrite: bool, resume: bool) -> State:
    """Check the options, load data and model, and try out what can be tried before any training.

    Raises:
        SparseTrainerError: Bad input.
    """
    folder = RunFolder(recipe=recipe, resume=resume)
    if recipe.pruning is not None and recipe.pruning.stages is not None:
        check_alone("speedups, densities")
    with together():
        if is_first():
            folder.check(overwrite=overwrite)
    check_options(recipe)
    recipe = _trimmed(recipe, tell)
    tell("loading data and model")
    job = prepare(recipe, folder)
    model = job.load_model()
    job = dataclasses.replace(job, teacher=load_teacher(recipe, job.data))
    if recipe.pruning is None:
        model = job.start(model, tell)
        check_lesson(recipe, model, job.teacher)
    else:
        _rehearse(job, model, recipe.pruning)
    with job.tried(model) as trained:
        rehearse_training(recipe, trained, job.trainer_options())
    if recipe.pruning is not None and is_first():
        folder.check_room(
            least_bytes(model, recipe.pruning.budget.density if recipe.pruning.budget.time is None else 0.0)
        )
    completed = recipe.task.complete(job.data, model, job.source, recipe.model.revision)
    job = dataclasses.replace(job, data=completed)
    if is_first():
        folder.start()
    return State(job=job, tell=tell, model=model, models={DENSE: model}, metrics={DENSE: None})


def _trimmed(recipe: FinePruningRecipe, tell: Tell) -> FinePruningRecipe:
    """Return the recipe with the model as it is without the tokens that the recipe's corpus does not use."""
    if recipe.vocabulary is None:
        return recipe
    model, folder = recipe.model, Path(str(recipe.training.output_dir))
    source = trimmed_source(model.name_or_path, model.revision, recipe.vocabulary, folder, tell)
    return dataclasses.replace(recipe, model=dataclasses.replace(model, name_or_path=source, revision="main"))


def prepare(recipe: FinePruningRecipe, folder: RunFolder) -> FinePruningJob:
    """Load tokenizer and data."""
    source = find_model(recipe)
    _check_times(recipe)
    try:
        processor = load_processor(recipe.task.processor, recipe.model.name_or_path, recipe.model.revision)
    except CheckpointError as error:
        raise RecipeError(f"model.name_or_path: {error.where}", error.what, error.remedy) from error
    if recipe.task.processor == "tokenizer" and recipe.data.max_length > processor.model_max_length:
        raise RecipeError(
            "data.max_length",
            f"{recipe.data.max_length}, and the model reads {processor.model_max_length} tokens at most.",
            "Give a smaller number.",
        )
    data = recipe.task.prepare(recipe.data, processor)
    return FinePruningJob(recipe=recipe, processor=processor, data=data, source=source, folder=folder)


def _check_times(recipe: FinePruningRecipe) -> None:
    """Refuse times that cannot be met; of a model that is rewound first, its sizes are not known yet."""
    if recipe.pruning is not None and recipe.pruning.budget.time is not None and recipe.model.rewind is None:
        budget, stages = recipe.pruning.budget, recipe.pruning.stages
        shape = load_shape(recipe.model.name_or_path, revision=recipe.model.revision)
        check_times(shape, (budget,) if stages is None else stages.budgets(budget))


def _rehearse(job: FinePruningJob, model: PreTrainedModel, pruning: SparseTrainingArguments) -> None:
    """Refuse, before the dense fine-tune, what fine-pruning would refuse after it.

    That is a checkpoint of other pruning arguments to go on from, and a model, budget or teacher that cannot work.
    """
    start = job.rewound(model)
    checkpoint = job.folder.checkpoint(job.recipe.training.output_dir)
    if checkpoint is not None:
        is_given = job.teacher is not None or pruning.distil_teacher_name_or_path == DENSE
        check_resumed(checkpoint, start, of_coordinator(pruning, has_teacher=is_given))
    with job.tried(start) as student:
        rehearse(student, pruning, job.teacher)
