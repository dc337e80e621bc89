"""Teachers of a recipe that trains: loaded, compared with who learns from them, and handed to a Trainer."""

from transformers import PreTrainedModel, Trainer

from sparse_trainer.errors import ArgumentError, RecipeError, SparseTrainerError
from sparse_trainer.folders.configs import resolve
from sparse_trainer.run.recipes.fine_pruning import DENSE, FinePruningRecipe
from sparse_trainer.tasks.base import Prepared
from sparse_trainer.training.distillation.comparable import check_distillation, check_teacher
from sparse_trainer.training.distilling import distilling_trainer


def load_teacher(recipe: FinePruningRecipe, data: Prepared) -> PreTrainedModel | None:
    """Load a teacher that is given by name; of fine-pruning, the coordinator makes its own copy for 'self'.

    Raises:
        SparseTrainerError: It cannot be loaded; the option is named.
    """
    pruning, distillation = recipe.pruning, recipe.distillation
    name, option = None, "pruning.distil_teacher_name_or_path"
    if distillation is not None:
        name, option = distillation.teacher, "distillation.teacher"
    elif pruning is not None and pruning.distil_teacher_name_or_path not in (DENSE, "self"):
        name = pruning.distil_teacher_name_or_path
    if name is None:
        return None
    try:
        return recipe.task.load_model(resolve(name), "main", data)
    except SparseTrainerError as error:
        raise type(error)(f"{option}: {error.where}", error.what, error.remedy) from error


def check_lesson(recipe: FinePruningRecipe, model: PreTrainedModel, teacher: PreTrainedModel | None) -> None:
    """Refuse, in a run without pruning, a teacher whose answers have another form than the model's.

    Raises:
        RecipeError: Another vocabulary, other labels, or hidden states that cannot be compared.
    """
    if recipe.distillation is None or teacher is None:
        return
    try:
        check_distillation(model, recipe.distillation.weights, teacher)
        check_teacher(model, teacher, recipe.distillation.weights)
    except ArgumentError as error:
        remedy = error.remedy.replace("distil_alpha_", "alpha_")
        raise RecipeError("distillation.teacher", error.what, remedy) from error


def learner(recipe: FinePruningRecipe, teacher: PreTrainedModel | None) -> type[Trainer]:
    """Return what trains where nothing is pruned: it learns from the teacher of section `distillation`, if any."""
    base = recipe.task.trainer
    if recipe.distillation is None or teacher is None:
        return base
    return distilling_trainer(base, teacher, recipe.distillation.weights)
