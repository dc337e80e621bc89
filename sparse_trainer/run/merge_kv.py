"""KV heads from folder to folder: load a model, merge KV heads of its layers, save it."""

from pathlib import Path

from sparse_trainer.cut.record import plan_of
from sparse_trainer.folders.exports import find_export
from sparse_trainer.folders.processors import find_processor, tokenizer_in
from sparse_trainer.folders.replace import check_target
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.one_shot.kv_merge import KvMergeOptions, check_kv_merge, merge_kv_by
from sparse_trainer.plan.document import Plan
from sparse_trainer.run.options import CalibrationOptions, SourceOptions, Tell
from sparse_trainer.run.prune_folder import read_calibration
from sparse_trainer.run.together import check_alone


def merge_folder(
    source: SourceOptions,
    folder: Path,
    options: KvMergeOptions,
    calibration: CalibrationOptions | None = None,
    *,
    export: str = "auto",
    overwrite: bool = False,
    tell: Tell,
) -> tuple[Path, Plan]:
    """Merge KV heads of a model and save it with its tokenizer; return the folder and the plan.

    The folder appears whole or not at all.

    Args:
        calibration: None = weights alone decide, and nothing is refitted.
        tell: Called with one line at the start of every stage.

    Raises:
        SparseTrainerError: as `merge_kv_heads`, or model, text or folder cannot be had.
    """
    check_alone("merge-kv-heads")
    check_target(folder, overwrite=overwrite)
    find_export(export)
    check_kv_merge(options, source.shape())
    if calibration is not None:
        calibration.check()
    processor = find_processor(source.name_or_path, source.revision)
    batches = read_calibration(source, tokenizer_in(processor), (), calibration, tell, always=True)
    tell(f"loading {source.name_or_path}")
    model = source.load()
    tell(options.method)
    merged = merge_kv_by(options, model, batches, inplace=True)
    tell(f"saving to {folder}")
    made = save_pruned(merged, folder, processor=processor, export=export, overwrite=overwrite)
    plan = plan_of(merged)
    assert plan is not None
    return made, plan
