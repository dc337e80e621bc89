"""Tables of times as files: measured once for each model, device and software, and read from then on."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Final

from transformers import PreTrainedModel

from patchers.units import Structure
from sparse_trainer.budget.latency.clock import LOUD
from sparse_trainer.budget.latency.conditions import TimingConditions
from sparse_trainer.budget.latency.foreign import read_csv
from sparse_trainer.budget.latency.measure import logger, measure_table
from sparse_trainer.budget.latency.model_time import ModelTime
from sparse_trainer.budget.latency.sorts import timed_blocks
from sparse_trainer.budget.latency.table import LatencyTable
from sparse_trainer.budget.latency.timing import Timing
from sparse_trainer.budget.time_target import TimeTarget
from sparse_trainer.errors import ArgumentError, CheckpointError
from sparse_trainer.files.json_text import read_object
from sparse_trainer.files.writing import write_text

CACHE_VARIABLE: Final = "SPARSE_TRAINER_CACHE"
_REMEDY: Final = "Remove the file, and it is measured again."


def table_for(model: PreTrainedModel, structure: Structure, target: TimeTarget) -> LatencyTable:
    """Return the times of a model: those in the file that the target names, else those kept from earlier, else new.

    Args:
        structure: All that was found in the model.

    Raises:
        ArgumentError: the file that was named is of another device, or of other conditions.
        CheckpointError: it cannot be read.
    """
    conditions = TimingConditions.of(model, target)
    known = known_table(model, structure, target, conditions)
    if known is not None:
        return known
    logger.info("measuring what the blocks of %s take (%s)", type(model).__name__, conditions)
    table = measure_table(model, structure, target)
    if table.noise <= LOUD:
        _keep(table, cache_file(model, structure, conditions))
    return table


def known_table(
    model: PreTrainedModel, structure: Structure, target: TimeTarget, conditions: TimingConditions | None
) -> LatencyTable | None:
    """Return the times of a model that need no measuring, None where there are none; it may be on the meta device.

    Args:
        conditions: Under which the model would be timed; None = not known yet, so that only times of another device
            can be had.

    Raises:
        ArgumentError, CheckpointError: as `table_for`.
    """
    if target.table is not None and target.is_foreign:
        return read_csv(Path(target.table))
    if target.table is not None:
        return _given(Path(target.table), conditions)
    if conditions is None:
        return None
    file = cache_file(model, structure, conditions)
    kept = _kept(file, conditions)
    if kept is not None:
        logger.info("times of %s are read from %s", type(model).__name__, file)
    return kept


def timing_of(model: PreTrainedModel, structure: Structure, target: TimeTarget) -> Timing:
    """Return what is asked of a model's time, and what the model takes: `table_for`."""
    return timing_by(table_for(model, structure, target), model, structure, target)


def timing_by(
    table: LatencyTable, model: PreTrainedModel, structure: Structure, target: TimeTarget
) -> Timing:
    """Return what is asked of a model's time, and what the model takes by a table."""
    return Timing(
        target=target,
        time=ModelTime(table, model, structure),
        conditions=f"by {target.table}" if table.conditions is None else str(table.conditions),
        measures=table.conditions is not None,
    )


def cache_folder() -> Path:
    """Return where tables are kept: $SPARSE_TRAINER_CACHE, else the user's folder for caches."""
    named = os.environ.get(CACHE_VARIABLE)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(named) if named else Path(home, "sparse-trainer")) / "latency"


def cache_file(model: PreTrainedModel, structure: Structure, conditions: TimingConditions) -> Path:
    """Return the file of the table of a model: one for all with blocks of the same sorts and the same parts beside.

    What runs in them is part of it: activations, the implementation of attention (`sdpa`, `eager`) and of experts.
    """
    blocks = timed_blocks(model, structure)
    inside = tuple(f"{block.path}." for block in blocks)
    beside = [[n, list(p.shape)] for n, p in model.named_parameters() if not n.startswith(inside)]
    sizes = [[block.sort, [group.num_units for group in block.groups]] for block in blocks]
    parts = (part for block in blocks for part in model.get_submodule(block.path).modules())
    # Activations and norms are classes of their own; attentions and experts are called by name.
    kernels = [*sorted({type(part).__name__ for part in parts}), *map(str, _implementations(model))]
    seen = [type(model).__name__, asdict(conditions), beside, sizes, kernels]
    digest = hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]
    return cache_folder() / f"{model.config.model_type}-{digest}.json"


def _implementations(model: PreTrainedModel) -> tuple[str | None, str | None]:
    """Return what computes the attention of a model, and its experts."""
    return model.config._attn_implementation, model.config._experts_implementation


def save_table(table: LatencyTable, file: Path) -> None:
    """Write a table, all or nothing; raise `CheckpointError` where that cannot be."""
    write_text(file, table.to_json())


def _keep(table: LatencyTable, file: Path) -> None:
    """Keep a table for the next time; where that cannot be, say so and go on."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_table(table, file)
    except (OSError, CheckpointError) as error:
        logger.warning("The times are not kept for the next time: %s", error)


def _kept(file: Path, conditions: TimingConditions) -> LatencyTable | None:
    """Return the table that is kept in a file, None where there is none that can be used."""
    if not file.is_file():
        return None
    try:
        table = LatencyTable.from_values(read_object(file, _REMEDY), str(file))
    except CheckpointError as error:
        logger.warning("%s Measuring again.", error)
        return None
    return table if table.conditions == conditions else None


def _given(file: Path, conditions: TimingConditions | None) -> LatencyTable | None:
    """Return the table in a file that was named; None where it cannot be told yet whether it may be used."""
    remedy = "Give a table that was measured with sparse-trainer, or a CSV file."
    table = LatencyTable.from_values(read_object(file, remedy), str(file), remedy)
    assert table.conditions is not None
    if conditions is None:
        return None
    differences = table.conditions.differences(conditions)
    if differences:
        told = "; ".join(
            f"{name}: {theirs} there, {ours} here" for name, (theirs, ours) in differences.items()
        )
        raise ArgumentError(
            "latency_table",
            f"{file} was measured under other conditions ({told}).",
            "Leave it out, and times are measured here; or give times of another device as a CSV file.",
        )
    return table
