"""Run a recipe: fine-tune dense, fine-prune, cut, save, reload elsewhere, measure, report."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    PreTrainedModel,
)

from sparse_trainer.bench import bench
from sparse_trainer.cost import parameter_count
from sparse_trainer.export import check_target, new_folder, save_pruned
from sparse_trainer.files import write_text
from sparse_trainer.plan import PLAN_FILE, Plan
from sparse_trainer.recipe import DENSE, Recipe
from sparse_trainer.report import Comparison, Measured, shape_lines, write_map
from sparse_trainer.stages import (
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
from sparse_trainer.verify import Reloaded, verify_reload

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run leaves behind."""

    recipe: str
    folder: Path
    seconds: float
    comparison: Comparison
    plan: Plan | None
    """None of a dense run."""
    reloaded: Reloaded | None
    """None where it was switched off, or nothing was pruned."""
    load_lines: tuple[str, str, str]
    """Python that loads and uses the result."""
    files: dict[str, Path]
    """What was written beside the model."""

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        plan = self.plan
        return {
            "recipe": self.recipe,
            "folder": str(self.folder),
            "seconds": round(self.seconds, 1),
            **self.comparison.to_json(),
            "density_asked": plan.density_asked if plan else None,
            "density_reached": plan.density_reached if plan else None,
            "reloaded": asdict(self.reloaded) if self.reloaded else None,
            "load": list(self.load_lines),
            "files": {name: str(path) for name, path in self.files.items()},
        }


def run(recipe: Recipe, tell: Tell = logger.info) -> RunResult:
    """Run a recipe from start to end.

    Args:
        tell: Called with one line at the start of every stage.

    Raises:
        SparseTrainerError: Bad input, before any training starts; or a result that does not hold what it promises.
    """
    start = time.monotonic()
    folder = export_folder(recipe)
    check_target(folder, ours=RECIPE_FILE if recipe.pruning is None else PLAN_FILE)
    tell("loading data and model")
    setting = prepare(recipe)
    if recipe.pruning is None:
        return _run_dense(setting, folder, tell, start)
    student, teacher = setting.load_model(), load_teacher(setting, recipe.pruning)
    rehearse(student, recipe.pruning)

    dense, dense_metrics, student = starting_points(setting, student, tell)
    if recipe.pruning.distil_teacher_name_or_path == DENSE:
        teacher = dense

    tell("fine-pruning")
    compact = fine_prune(setting, student, recipe.pruning, teacher)
    metrics = evaluate(setting, compact, recipe.training)
    tell("measuring")
    comparison = _compare(setting, {"dense": (dense, dense_metrics), "pruned": (compact, metrics)})
    tell(f"saving to {folder}")
    save_pruned(
        compact,
        folder,
        processor=setting.tokenizer,
        metrics=comparison.card_rows(),
        export=recipe.export.export,
        overwrite=True,
    )
    plan = Plan.load(folder)
    return RunResult(
        recipe=recipe.name,
        folder=folder,
        comparison=comparison,
        plan=plan,
        reloaded=_reload(setting, compact, folder, tell),
        load_lines=_load_lines(setting, folder),
        files=_write_beside(recipe, plan, comparison, folder),
        seconds=time.monotonic() - start,
    )


def export_folder(recipe: Recipe) -> Path:
    """Return the folder that the result goes to."""
    if recipe.export.directory is not None:
        return Path(recipe.export.directory)
    return Path(str(recipe.training.output_dir), "pruned" if recipe.pruning else "model")


def _compare(
    setting: Setting, models: Mapping[str, tuple[PreTrainedModel, Mapping[str, float] | None]]
) -> Comparison:
    """Measure sizes, and latencies side by side."""
    options = setting.recipe.export
    timed = bench(
        {name: model for name, (model, _) in models.items()},
        batch_sizes=options.latency_batch_sizes,
        sequence_length=options.latency_sequence_length,
        rounds=options.latency_rounds,
    )
    measured = {
        name: Measured(
            metrics=metrics,
            parameters=parameter_count(model),
            file_bytes=_file_bytes(model),
            latencies=timed.latencies[name],
        )
        for name, (model, metrics) in models.items()
    }
    return Comparison(models=measured, conditions=timed.conditions)


def _file_bytes(model: PreTrainedModel) -> int:
    """Return the size of the weight files of a model, by writing them."""
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        return sum(path.stat().st_size for path in Path(scratch).glob("*.safetensors"))


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


def _load_lines(setting: Setting, folder: Path) -> tuple[str, str, str]:
    """Return Python that loads the folder and asks it about an example."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    trust = ", trust_remote_code=True" if "auto_map" in config else ""
    return (
        "from transformers import pipeline",
        f'model = pipeline("{setting.task.pipeline}", model="{folder}"{trust})',
        f"print(model({setting.data.example!r}))",
    )


def _write_beside(recipe: Recipe, plan: Plan, comparison: Comparison, folder: Path) -> dict[str, Path]:
    """Write recipe, tables and map beside the model."""
    texts = {
        "recipe": (RECIPE_FILE, recipe.dump()),
        "report": ("report.json", json.dumps(comparison.to_json(), indent=2) + "\n"),
        "shapes": ("shapes.txt", "\n".join(shape_lines(plan)) + "\n"),
    }
    files = {name: folder / file for name, (file, _) in texts.items()}
    for name, (_, text) in texts.items():
        write_text(files[name], text)
    files["map"] = folder / "kept.png"
    write_map(plan, files["map"])
    return files


def _save_dense(setting: Setting, model: PreTrainedModel, folder: Path) -> None:
    """Write a stock checkpoint, all or nothing."""
    with new_folder(folder, overwrite=True, ours=RECIPE_FILE) as draft:
        model.save_pretrained(draft)
        setting.tokenizer.save_pretrained(draft)
        write_text(draft / RECIPE_FILE, setting.recipe.dump())


def _run_dense(setting: Setting, folder: Path, tell: Tell, start: float) -> RunResult:
    """Fine-tune without pruning, save a stock checkpoint, measure it."""
    recipe = setting.recipe
    tell("fine-tuning")
    training = recipe.dense_training() or recipe.training
    model = train(setting, setting.load_model(), training)
    comparison = _compare(setting, {"dense": (model, evaluate(setting, model, training))})
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
