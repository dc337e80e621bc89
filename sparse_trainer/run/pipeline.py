"""Run a recipe: fine-tune dense, fine-prune, cut, save, reload elsewhere, measure, report."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from sparse_trainer.errors import ArgumentError
from sparse_trainer.folders.rescue import rescuing
from sparse_trainer.folders.save import least_bytes, save_pruned
from sparse_trainer.plan.document import Plan
from sparse_trainer.run.one_shot import run_one_shot
from sparse_trainer.run.outcome import FILES, RECIPE_FILE, RunResult, compare, pipeline_lines, write_beside
from sparse_trainer.run.recipes.fine_pruning import DENSE, Recipe, speaking_of
from sparse_trainer.run.recipes.oneshot import OneShotRecipe
from sparse_trainer.run.rehearsal import check_options, rehearse_training
from sparse_trainer.run.resume import RunFolder
from sparse_trainer.run.stages import (
    Setting,
    Tell,
    check_goes_on,
    evaluate,
    fine_prune,
    load_teacher,
    prepare,
    rehearse,
    save_dense,
    starting_points,
    train,
)
from sparse_trainer.run.verify import Reloaded, verify_reload

logger = logging.getLogger(__name__)


def run(
    recipe: Recipe | OneShotRecipe, tell: Tell = logger.info, *, overwrite: bool = False, resume: bool = False
) -> RunResult:
    """Run a recipe from start to end.

    Args:
        tell: Called with one line at the start of every stage.
        overwrite: Replace the result of an earlier run; as `export.overwrite` of the recipe.
        resume: Go on with a run of the same recipe that was stopped, from its last checkpoint.

    Raises:
        SparseTrainerError: Bad input, before any training starts; or a result that does not hold what it promises.
    """
    overwrite = overwrite or recipe.export.overwrite
    with speaking_of(recipe):
        if isinstance(recipe, OneShotRecipe):
            if resume:
                raise ArgumentError(
                    "resume", f"{recipe.name} trains nothing to go on with.", "Leave resume out (--resume)."
                )
            return run_one_shot(recipe, tell, overwrite=overwrite)
        return _run_training(recipe, tell, resume=resume, overwrite=overwrite)


def _run_training(recipe: Recipe, tell: Tell, *, resume: bool, overwrite: bool) -> RunResult:
    folder = RunFolder(recipe=recipe, resume=resume)
    folder.check(overwrite=overwrite)
    check_options(recipe)
    try:
        return _train(recipe, folder, tell)
    except (KeyboardInterrupt, SystemExit):
        tell(folder.advice())
        raise


def _train(recipe: Recipe, folder: RunFolder, tell: Tell) -> RunResult:
    start = time.monotonic()
    tell("loading data and model")
    setting = prepare(recipe, folder)
    if recipe.pruning is None:
        return _run_dense(setting, tell, start)
    student, teacher = setting.load_model(), load_teacher(setting, recipe.pruning)
    start_of_pruning = setting.rewound(student)
    check_goes_on(setting, start_of_pruning, recipe.pruning, teacher)
    rehearse(start_of_pruning, recipe.pruning, teacher)
    rehearse_training(setting, student)
    folder.check_room(least_bytes(student, recipe.pruning.density))
    folder.start()

    dense, dense_metrics, student = starting_points(setting, student, tell)
    if recipe.pruning.distil_teacher_name_or_path == DENSE:
        teacher = dense

    tell("fine-pruning")
    compact = fine_prune(setting, student, recipe.pruning, teacher)
    with rescuing(compact, setting.tokenizer, folder.rescued):
        metrics = evaluate(setting, compact, recipe.training)
        tell("measuring")
        comparison = compare({"dense": (dense, dense_metrics), "pruned": (compact, metrics)}, recipe.export)
        tell(f"saving to {folder.result}")
        save_pruned(
            compact,
            folder.result,
            processor=setting.tokenizer,
            metrics=comparison.card_rows(),
            export=recipe.export.export,
            overwrite=True,
            beside=lambda place: write_beside(place, recipe.dump(), Plan.load(place), comparison),
        )
    return RunResult(
        recipe=recipe.name,
        folder=folder.result,
        comparison=comparison,
        plan=Plan.load(folder.result),
        reloaded=_reload(setting, compact, folder.result, tell),
        load_lines=_load_lines(setting, folder.result),
        files={what: folder.result / name for what, name in FILES.items()},
        seconds=time.monotonic() - start,
    )


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


def _run_dense(setting: Setting, tell: Tell, start: float) -> RunResult:
    """Fine-tune without pruning, save a stock checkpoint, measure it."""
    recipe, folder = setting.recipe, setting.folder.result
    training = recipe.dense_training() or recipe.training
    model = setting.start(setting.load_model(), tell)
    rehearse_training(setting, model)
    setting.folder.start()
    tell("fine-tuning")
    model = train(setting, model, training)
    comparison = compare({"dense": (model, evaluate(setting, model, training))}, recipe.export)
    tell(f"saving to {folder}")
    save_dense(setting, model, folder)
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
