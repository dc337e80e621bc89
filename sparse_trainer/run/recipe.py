"""Run a recipe: fine-tune dense, fine-prune, cut, save, reload elsewhere, measure, report."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from sparse_trainer.files import write_text
from sparse_trainer.folders.export import save_pruned
from sparse_trainer.folders.replace import check_target, new_folder
from sparse_trainer.plan.document import PLAN_FILE, Plan
from sparse_trainer.plan.record import plan_of
from sparse_trainer.recipe import OneShotRecipe
from sparse_trainer.recipe.fine_pruning import DENSE, Recipe
from sparse_trainer.run.oneshot import run_one_shot
from sparse_trainer.run.outcome import FILES, RECIPE_FILE, RunResult, compare, pipeline_lines, write_beside
from sparse_trainer.run.stages import (
    Setting,
    Tell,
    evaluate,
    fine_prune,
    load_teacher,
    prepare,
    rehearse,
    starting_points,
    train,
)
from sparse_trainer.run.verify import Reloaded, verify_reload

logger = logging.getLogger(__name__)


def run(recipe: Recipe | OneShotRecipe, tell: Tell = logger.info) -> RunResult:
    """Run a recipe from start to end.

    Args:
        tell: Called with one line at the start of every stage.

    Raises:
        SparseTrainerError: Bad input, before any training starts; or a result that does not hold what it promises.
    """
    if isinstance(recipe, OneShotRecipe):
        return run_one_shot(recipe, tell)
    start = time.monotonic()
    folder = export_folder(recipe)
    check_target(folder, ours=RECIPE_FILE if recipe.pruning is None else PLAN_FILE)
    tell("loading data and model")
    setting = prepare(recipe)
    if recipe.pruning is None:
        return _run_dense(setting, folder, tell, start)
    student, teacher = setting.load_model(), load_teacher(setting, recipe.pruning)
    rehearse(setting.rewound(student), recipe.pruning, teacher)

    dense, dense_metrics, student = starting_points(setting, student, tell)
    if recipe.pruning.distil_teacher_name_or_path == DENSE:
        teacher = dense

    tell("fine-pruning")
    compact = fine_prune(setting, student, recipe.pruning, teacher)
    metrics = evaluate(setting, compact, recipe.training)
    tell("measuring")
    comparison = compare({"dense": (dense, dense_metrics), "pruned": (compact, metrics)}, recipe.export)
    tell(f"saving to {folder}")
    save_pruned(
        compact,
        folder,
        processor=setting.tokenizer,
        metrics=comparison.card_rows(),
        export=recipe.export.export,
        overwrite=True,
        beside=lambda place: write_beside(place, recipe.dump(), Plan.load(place), comparison),
    )
    plan = Plan.load(folder)
    return RunResult(
        recipe=recipe.name,
        folder=folder,
        comparison=comparison,
        plan=plan,
        reloaded=_reload(setting, compact, folder, tell),
        load_lines=_load_lines(setting, folder),
        files={what: folder / name for what, name in FILES.items()},
        seconds=time.monotonic() - start,
    )


def export_folder(recipe: Recipe) -> Path:
    """Return the folder that the result goes to."""
    if recipe.export.output_dir is not None:
        return Path(recipe.export.output_dir)
    return Path(str(recipe.training.output_dir), "pruned" if recipe.pruning else "model")


def _reload(setting: Setting, compact: PreTrainedModel, folder: Path, tell: Tell) -> Reloaded | None:
    """Check the folder in a new process, on the CPU, with examples of the validation set."""
    options = setting.recipe.export
    if not options.verify:
        return None
    tell("reloading in a new process")
    count = min(options.verify_samples, len(setting.data.validation))
    batch = setting.data.collator([setting.data.validation[row] for row in range(count)])
    inputs: dict[str, Tensor] = {name: value for name, value in batch.items() if name != "labels"}
    return verify_reload(folder, setting.task.auto_class, compact.cpu(), inputs)


def _load_lines(setting: Setting, folder: Path) -> tuple[str, ...]:
    return pipeline_lines(folder, setting.task.pipeline, setting.data.example)


def _save_dense(setting: Setting, model: PreTrainedModel, folder: Path) -> None:
    """Write a checkpoint, all or nothing; with the plan of a model that was pruned before."""
    with new_folder(folder, overwrite=True, ours=RECIPE_FILE) as draft:
        model.save_pretrained(draft)
        setting.tokenizer.save_pretrained(draft)
        write_text(draft / RECIPE_FILE, setting.recipe.dump())
        plan = plan_of(model)
        if plan is not None:
            plan.save(draft / PLAN_FILE)


def _run_dense(setting: Setting, folder: Path, tell: Tell, start: float) -> RunResult:
    """Fine-tune without pruning, save a stock checkpoint, measure it."""
    recipe = setting.recipe
    training = recipe.dense_training() or recipe.training
    model = setting.start(setting.load_model(), tell)
    tell("fine-tuning")
    model = train(setting, model, training)
    comparison = compare({"dense": (model, evaluate(setting, model, training))}, recipe.export)
    tell(f"saving to {folder}")
    _save_dense(setting, model, folder)
    return RunResult(
        recipe=recipe.name,
        folder=folder,
        comparison=comparison,
        plan=None,
        reloaded=None,
        load_lines=_load_lines(setting, folder),
        files={"recipe": folder / RECIPE_FILE},
        seconds=time.monotonic() - start,
    )
