"""What a checkpoint of a pruning training records beside its weights, and whether a resumed training asks for the same.

The gates themselves (scores, masks) stand in the weights, or in a file beside an adapter. `pruning_state.json` holds
the arguments that attach the same gates to a fresh model; `trainer_state.json` is Trainer's own record, written last.
"""

import dataclasses
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from patchers.modeling_pruned import stock_class_of
from patchers.patching.merging import active_adapters, base_model, has_adapters
from sparse_trainer.errors import ArgumentError, CheckpointError
from sparse_trainer.files.json_text import read_object
from sparse_trainer.files.names import STATE_FILE
from sparse_trainer.files.writing import write_text
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.gate_file import read_gates, save_gates

_FORMAT = 1
EARLIER = "Resume from an earlier checkpoint, or train from the start."
"""What can be done about a checkpoint that is damaged."""


def save_state(folder: str | os.PathLike[str], coordinator: ModelPatchingCoordinator) -> None:
    """Write what attaches the same gates again: the pruning arguments, and how far the training is.

    Beside adapters, whose `save_pretrained` writes neither gates nor the config of the model, these are written too.
    """
    state: dict[str, Any] = {
        "format": _FORMAT,
        "sparse_args": dataclasses.asdict(coordinator.args),
        "step": coordinator.current_step,
        "total_steps": coordinator.total_steps,
    }
    if has_adapters(coordinator.model):
        save_gates(folder, coordinator.model)
        base: Any = base_model(coordinator.model)
        state["model"] = {
            "class": stock_class_of(base).__name__,
            "dtype": str(base.dtype).removeprefix("torch."),
            "adapters": active_adapters(base),
            "config": json.loads(base.config.to_json_string(use_diff=False)),
        }
    write_text(Path(folder) / STATE_FILE, json.dumps(state, indent=2) + "\n")


def read_sparse_args(folder: str | os.PathLike[str], remedy: str) -> SparseTrainingArguments:
    """Return the pruning arguments that a checkpoint was trained with.

    Args:
        remedy: What the user can do about a file that is missing or damaged.

    Raises:
        CheckpointError: It is.
    """
    file = Path(folder) / STATE_FILE
    values = read_object(file, remedy, constants=True)
    if values.get("format") != _FORMAT or not isinstance(values.get("sparse_args"), dict):
        raise CheckpointError(str(file), f"is not a pruning state of format {_FORMAT}.", remedy)
    try:
        return SparseTrainingArguments(**values["sparse_args"])
    except (TypeError, ArgumentError) as error:
        raise CheckpointError(f"{file}: sparse_args", f"cannot be used ({error}).", remedy) from error


def args_to_restore(folder: str | os.PathLike[str], remedy: str) -> SparseTrainingArguments:
    """Return the pruning arguments of a checkpoint without what matters at the start of a training only.

    Raises:
        CheckpointError: as `read_sparse_args`.
    """
    sparse_args = read_sparse_args(folder, remedy)
    # The gates are stored: an earlier plan is of no use here, and may be gone.
    sparse_args.protect_plan = sparse_args.rewind_model_name_or_path = None
    sparse_args.protect_kinds = SparseTrainingArguments().protect_kinds
    return sparse_args


def read_model(folder: str | os.PathLike[str], remedy: str) -> dict[str, Any]:
    """Return what stands under an adapter: the name of its class, its config and dtype, and the active adapters.

    Raises:
        CheckpointError: the file is missing, damaged or does not say it.
    """
    file = Path(folder) / STATE_FILE
    said = read_object(file, remedy, constants=True).get("model")
    kinds = {"class": str, "config": dict, "dtype": str, "adapters": list}
    if not isinstance(said, dict) or any(not isinstance(said.get(name), k) for name, k in kinds.items()):
        raise CheckpointError(f"{file}: model", "does not say which model stands under the adapter.", remedy)
    return said


def check_resumed(checkpoint: Path, model: nn.Module, asked: SparseTrainingArguments) -> None:
    """Raise `CheckpointError` unless the checkpoint was trained with the pruning arguments that are asked for now.

    Beside an adapter the gates of `model` have to be there too.
    """
    if has_adapters(model):
        read_gates(checkpoint, model, EARLIER)
    then = _plain(read_sparse_args(checkpoint, EARLIER))
    now = _plain(asked)
    changed = [name for name in now if now[name] != then[name]]
    if changed:
        raise CheckpointError(
            f"{checkpoint / STATE_FILE}: {', '.join(changed)}",
            "; ".join(f"{name} was {then[name]!r} and is {now[name]!r} now" for name in changed) + ".",
            "Resume with the arguments of the checkpoint, or train from the start.",
        )


def find_checkpoint(
    resume_from_checkpoint: str | os.PathLike[str] | bool | None, output_dir: str | os.PathLike[str]
) -> Path | None:
    """Return the checkpoint that a training goes on from; None where it starts afresh.

    Args:
        resume_from_checkpoint: As `Trainer.train` takes it: a folder; True = the last complete one in `output_dir`.

    Raises:
        CheckpointError: There is none, or its save was interrupted.
    """
    if resume_from_checkpoint is None or resume_from_checkpoint is False:
        return None
    if resume_from_checkpoint is True:
        found = last_checkpoint(output_dir)
        if found is None:
            raise CheckpointError(
                f"resume_from_checkpoint: {output_dir}",
                "holds no complete checkpoint.",
                "Train from the start.",
            )
        return found
    folder = Path(resume_from_checkpoint)
    if not os.path.isdir(folder):  # unlike Path.is_dir, no error for a name that no folder can have
        raise CheckpointError(
            f"resume_from_checkpoint: {folder}",
            "is no folder.",
            f"Name a folder {PREFIX_CHECKPOINT_DIR}-STEP that an earlier training wrote.",
        )
    read_object(folder / TRAINER_STATE_NAME, EARLIER, constants=True)
    return folder


def last_checkpoint(output_dir: str | os.PathLike[str], since: int = 0) -> Path | None:
    """Return the newest complete checkpoint in a training folder: Trainer writes its own state last.

    Args:
        since: Time, in nanoseconds as the file system counts, before which checkpoints are not looked at.
    """
    complete = {
        int(match[1]): file.parent
        for file in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")
        if (match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", file.parent.name))
        and file.stat().st_mtime_ns >= since
        and _is_json(file)
    }
    return complete[max(complete)] if complete else None


def is_over(state: TrainerState, callbacks: Iterable[TrainerCallback]) -> bool:
    """Tell whether a training has taken all of its steps, or early stopping has run out of patience.

    Transformers 5.24 takes one more step when it resumes in the middle of an epoch from the checkpoint of its last
    one; and it forgets that early stopping ended the training that wrote the checkpoint.
    """
    patience = [
        callback.early_stopping_patience - callback.early_stopping_patience_counter
        for callback in callbacks
        if isinstance(callback, EarlyStoppingCallback)
    ]
    return state.global_step >= state.max_steps or min(patience, default=1) <= 0


def open_again(folder: Path) -> None:
    """Take its last file from a checkpoint that is about to be written over: until it is back, none is complete."""
    if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", folder.name):
        (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)


def _plain(args: SparseTrainingArguments) -> dict[str, Any]:
    """Return the arguments as they come back from JSON: lists for tuples, text for the keys of mappings."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(args)))
    return values


def _is_json(file: Path) -> bool:
    try:
        read_object(file, "", constants=True)
    except CheckpointError:
        return False
    return True
