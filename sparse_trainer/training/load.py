"""Load checkpoints of a pruning training, model and gates together; with adapters, on top of their base model."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils.constants import FSDP_MODEL_NAME
from safetensors import SafetensorError
from transformers import PreTrainedModel

from patchers.patching.merging import base_model as inner_of
from sparse_trainer.errors import CheckpointError, first_line
from sparse_trainer.files.foreign_code import drop_code_names
from sparse_trainer.files.json_text import read_object
from sparse_trainer.files.names import ADAPTER_CONFIG, GATE_FILE, STATE_FILE
from sparse_trainer.folders.configs import CONFIG_FILE, DAMAGED, config_values, model_class, refusing
from sparse_trainer.folders.load import class_of, is_patched_checkpoint, refuse_adapter_alone
from sparse_trainer.folders.safetensors_files import Stored, named_as_in, weight_files
from sparse_trainer.training.adapter_files import adapters_in
from sparse_trainer.training.checkpoint import args_to_restore, read_model
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.gate_file import restore_gates

_DAMAGED = "Restore the checkpoint, or take an earlier one."
_UNSAVED = "Save through the Trainer, or call save_state(folder, coordinator) too; else restore the folder."
_GIVE_BASE = "Name the folder or hub id of the base model: load_patched(…, base_model=…), or --base-model."


def load_patched(
    folder: str | os.PathLike[str], *, base_model: str | os.PathLike[str] | None = None
) -> PreTrainedModel:
    """Load a training checkpoint together with its gates: a patched model, for `optimize_model`.

    Args:
        base_model: Of a checkpoint with an adapter: the folder or hub id of the model below; None = the one that the
            adapter names. What comes back is a peft model then.

    Raises:
        CheckpointError: no such checkpoint, or a damaged one; or no base model.
    """
    where = Path(folder)
    if (where / GATE_FILE).is_file():
        adapted: PreTrainedModel = _load_adapted(where, base_model)
        return adapted
    refuse_adapter_alone(where)
    if any(where.glob(f"{FSDP_MODEL_NAME}*")) and not (where / CONFIG_FILE).is_file():
        raise CheckpointError(
            str(where),
            "holds the parts of a model that FSDP had shared out.",
            "Resume the training from it, and save whole: trainer.save_model(folder); or let checkpoints be whole: "
            'fsdp_config={"state_dict_type": "FULL_STATE_DICT"}.',
        )
    if not is_patched_checkpoint(where):
        raise CheckpointError(str(where), "has no gates in its weights.", "Load it with load_pruned.")
    # Libraries that save the model they wrap may do so in a subfolder.
    beside = where if (where / STATE_FILE).is_file() else where.parent
    sparse_args = args_to_restore(beside if (beside / STATE_FILE).is_file() else where, _UNSAVED)
    values = config_values(str(where), {})
    cls: Any = class_of(str(where), values, None)
    with refusing(f"{where}: {CONFIG_FILE}", cls.__name__):
        model: Any = cls._from_config(cls.config_class.from_pretrained(where))
    ModelPatchingCoordinator(sparse_args).restore(model)
    _load_state(model, where)
    model.eval()
    return model  # type: ignore[no-any-return]


def _load_state(model: Any, folder: Path) -> None:
    """Load weights and gates as they are stored: in their dtype, which need not be that of the config."""
    file = str(weight_files(folder)[0])
    state = named_as_in(model, Stored(folder))
    try:
        problems = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise CheckpointError(file, f"does not fit the model ({error}).", DAMAGED) from error
    model.tie_weights()
    tied = set(model.all_tied_weights_keys)
    lost = [*problems.unexpected_keys, *(name for name in problems.missing_keys if name not in tied)]
    if lost:
        raise CheckpointError(file, f"{lost[0]!r} is missing or unknown.", DAMAGED)


def _load_adapted(folder: Path, base_model: str | os.PathLike[str] | None) -> Any:
    """Load what a training with adapters saved: a patched peft model, for `optimize_model`.

    Args:
        base_model: The folder or hub id of the model below; None = the one that the adapter names.

    Raises:
        CheckpointError: the base model is not found or another one, or something of the checkpoint is damaged.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise CheckpointError(str(folder), "holds an adapter of peft.", "pip install peft.") from error
    said = read_model(folder, _DAMAGED)
    model, missing = _load_base(
        said, _base_of(folder) if base_model is None else os.fspath(base_model), folder
    )
    ModelPatchingCoordinator(args_to_restore(folder, _DAMAGED)).restore(model)
    restore_gates(folder, model, _DAMAGED)
    whole: Any = None
    try:
        for name, place in adapters_in(folder, _DAMAGED):
            if whole is None:
                whole = PeftModel.from_pretrained(model, place, adapter_name=name)
            else:
                whole.load_adapter(place, name)
        whole.base_model.set_adapter(said["adapters"])
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            str(folder), f"the adapter cannot be loaded ({first_line(error)}).", _DAMAGED
        ) from error
    inner = dict(inner_of(whole).named_parameters(remove_duplicate=False))
    lost = [name for name in missing if name in inner]
    if lost:
        raise CheckpointError(
            str(folder),
            f"{lost[0]!r} is neither in the adapter nor in the base model.",
            f"Train it as one of modules_to_save. {_GIVE_BASE}",
        )
    return whole.eval()


def _load_base(said: Mapping[str, Any], base: str, folder: Path) -> tuple[PreTrainedModel, list[str]]:
    stock = getattr(transformers, said["class"], None)
    values, place = said["config"], f"{folder / STATE_FILE}: model"
    cls: Any = model_class(stock, said["class"], values, place, _DAMAGED)
    with refusing(place, cls.__name__):
        config = cls.config_class.from_dict(values)
    drop_code_names(config)
    dtype = getattr(torch, str(said["dtype"]), None)
    try:
        model, info = cls.from_pretrained(
            base, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            base, f"the base model of {folder} cannot be loaded ({first_line(error)}).", _GIVE_BASE
        ) from error
    return model, sorted(info["missing_keys"])


def _base_of(folder: Path) -> str:
    place = next(place for _, place in adapters_in(folder, _DAMAGED))
    name = read_object(place / ADAPTER_CONFIG, _DAMAGED).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG}: base_model_name_or_path", "is empty.", _GIVE_BASE)
    return name
