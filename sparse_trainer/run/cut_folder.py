"""Turn a checkpoint from the middle of pruning, or a model full of zeros, into a compact folder."""

import os
from pathlib import Path

from transformers import PreTrainedModel

from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.cut.record import plan_of
from sparse_trainer.errors import CheckpointError
from sparse_trainer.folders.configs import resolve
from sparse_trainer.folders.exports import find_export
from sparse_trainer.folders.load import is_patched_checkpoint, load_model
from sparse_trainer.folders.processors import find_processor
from sparse_trainer.folders.replace import check_target
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.folders.streaming import Progress, cut_checkpoint
from sparse_trainer.plan.document import Plan
from sparse_trainer.training.load import load_patched


def compact_folder(
    source: str,
    folder: Path,
    *,
    plan: Path | None = None,
    export: str = "auto",
    overwrite: bool = False,
    base_model: str | None = None,
    progress: Progress | None = None,
) -> tuple[Path, Plan]:
    """Cut the model in `source` and save it; return the folder and the record of the cut.

    With a plan a folder is cut tensor by tensor, whatever its size.

    Args:
        source: A checkpoint with gates, or a folder or hub id of a model that contains zeros or has a plan.
        plan: A file or folder with the plan to cut by.
        base_model: Of a checkpoint with an adapter: the model below, where it is not the one that the adapter names.
        progress: Told about every file written, where the cut goes tensor by tensor.

    Raises:
        ArgumentError: An unknown export.
        CheckpointError: `source` cannot be loaded or has nothing to cut; `folder` is not ours to replace.
    """
    find_export(export)
    if plan is not None and export == "auto" and os.path.isdir(resolve(source)):
        made = cut_checkpoint(resolve(source), plan, folder, overwrite=overwrite, progress=progress)
        return made, Plan.load(made)
    check_target(folder, overwrite=overwrite)
    by, processor = None if plan is None else Plan.load(plan), find_processor(source)
    model = _load(source, base_model)
    before = model.num_parameters()
    compact = optimize_model(model, plan=by, inplace=True)
    done = plan_of(compact)
    if done is None or (plan is None and compact.num_parameters() == before):
        raise CheckpointError(
            source, "has no gates and no removable zeros: nothing to cut.", "Fine-prune it first."
        )
    return save_pruned(compact, folder, processor=processor, export=export, overwrite=overwrite), done


def _load(source: str, base_model: str | None) -> PreTrainedModel:
    name = resolve(source)
    if os.path.isdir(name) and is_patched_checkpoint(name):
        return load_patched(name, base_model=base_model)
    return load_model(name)
