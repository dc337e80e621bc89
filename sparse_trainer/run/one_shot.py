"""Run a one-shot recipe: measure, prune, measure again, save, reload elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparse_trainer.cut.auto_classes import auto_classes_of
from sparse_trainer.errors import CheckpointError
from sparse_trainer.folders.replace import check_target
from sparse_trainer.folders.rescue import rescuing, spare_folder
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.inputs.limits import check_positions, positions_of
from sparse_trainer.inputs.make import inputs_for
from sparse_trainer.run import outcome, pictures
from sparse_trainer.run.outcome import RunResult
from sparse_trainer.run.prune_folder import Pruned, Tell, prune_model, read_calibration
from sparse_trainer.run.recipes.oneshot import MeasureOptions, OneShotRecipe
from sparse_trainer.run.report import PERPLEXITY, Comparison
from sparse_trainer.run.verify import Reloaded, verify_reload
from sparse_trainer.tasks.language.measure import check_tasks, evaluate
from sparse_trainer.tasks.language.text import Perplexity


def run_one_shot(recipe: OneShotRecipe, tell: Tell, *, overwrite: bool = False) -> RunResult:
    """Run a recipe from start to end.

    Raises:
        SparseTrainerError: Bad input, before anything is pruned; or a result that does not hold what it promises.
    """
    start = time.monotonic()
    folder = Path(recipe.export.output_dir or f"runs/{recipe.name}/pruned")
    check_target(folder, overwrite=overwrite)
    pictures.check_drawing()
    if recipe.evaluation is not None:
        check_tasks(recipe.evaluation.tasks, recipe.evaluation.files, recipe.evaluation)
    _check_positions(recipe)
    place, tokenizer = recipe.model.place(), recipe.model.tokenizer()
    batches = read_calibration(recipe.model, tokenizer, recipe.prune, recipe.calibration, tell)
    tell("loading the model")
    dense = recipe.model.load(by_block=recipe.prune.by_block)
    before = _measured(dense, tokenizer, recipe.evaluation, "dense", tell)
    pruned = prune_model(dense, batches, recipe.prune, device=place, tell=tell)
    with rescuing(pruned.model, tokenizer, spare_folder(folder)):
        after = _measured(pruned.model, tokenizer, recipe.evaluation, "pruned", tell)
        tell("measuring")
        comparison = outcome.compare(
            {"dense": (dense, before), "pruned": (pruned.model, after)}, recipe.export
        )
        tell(f"saving to {folder}")
        _save(recipe, pruned, tokenizer, comparison, folder)
    auto_class = (auto_classes_of(pruned.plan.architecture) or ("AutoModel",))[0]
    return RunResult(
        recipe=recipe.name,
        folder=folder,
        comparison=comparison,
        plan=pruned.plan,
        reloaded=_reload(recipe, pruned.model, auto_class, folder, tell),
        load_lines=outcome.model_lines(folder, auto_class),
        files={what: folder / name for what, name in (outcome.FILES | pictures.FILES).items()},
        seconds=time.monotonic() - start,
    )


def _check_positions(recipe: OneShotRecipe) -> None:
    """Raise `ArgumentError` for sequences, of the measurements at the end, that the model has no positions for."""
    positions = positions_of(recipe.model.config())
    if recipe.calibration is not None:
        check_positions("calibration.length", recipe.calibration.length, positions)
    if recipe.evaluation is not None:
        check_positions("evaluation.length", recipe.evaluation.length, positions)
    check_positions("export.latency_sequence_length", recipe.export.latency_sequence_length, positions)


def _measured(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    options: MeasureOptions | None,
    name: str,
    tell: Tell,
) -> Mapping[str, float] | None:
    """Return what the recipe wants to know of a model, as rows of the table."""
    if options is None:
        return None
    if tokenizer is None:
        raise CheckpointError(
            str(model.config.name_or_path), "has no tokenizer.", "Save one there, or say evaluation: null."
        )
    tell(f"measuring the {name} model on {', '.join(options.tasks)}")
    rows: dict[str, float] = {}
    found = evaluate(model, tokenizer, options.tasks, files=options.files, options=options)
    for task, result in found.items():
        if isinstance(result, Perplexity):
            rows[f"{task} {PERPLEXITY}"] = result.perplexity
        else:
            rows |= {f"{task} acc": result.acc, f"{task} acc_norm": result.acc_norm}
    return rows


def _save(
    recipe: OneShotRecipe,
    pruned: Pruned,
    tokenizer: PreTrainedTokenizerBase | None,
    comparison: Comparison,
    folder: Path,
) -> None:
    """Write the model with all that belongs to it, all or nothing."""

    def beside(place: Path) -> None:
        outcome.write_beside(place, recipe.dump(), pruned.plan, comparison)
        pictures.write_scores(pruned.decisions, place)

    save_pruned(
        pruned.model,
        folder,
        processor=tokenizer,
        metrics=comparison.card_rows(),
        export=recipe.export.export,
        overwrite=True,
        beside=beside,
    )


def _reload(
    recipe: OneShotRecipe, model: PreTrainedModel, auto_class: str, folder: Path, tell: Tell
) -> Reloaded | None:
    """Check the folder in a new process, on the CPU."""
    if not recipe.export.verify:
        return None
    tell("reloading in a new process")
    model.to("cpu")  # type: ignore[arg-type]
    return verify_reload(folder, auto_class, model, inputs_for(model, rows=recipe.export.verify_samples))
