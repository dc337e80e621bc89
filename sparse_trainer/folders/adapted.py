"""Checkpoints of trainings with adapters: base model, adapter and gates, put together again."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import PreTrainedModel

from patchers.modeling_pruned import pruned_class
from patchers.patching.merging import base_model as inner_of
from sparse_trainer.errors import CheckpointError
from sparse_trainer.files.foreign_code import drop_code_names
from sparse_trainer.files.json_text import read_object
from sparse_trainer.folders.configs import CONFIG_FILE, first_line, refusing
from sparse_trainer.training.adapter_files import ADAPTER_CONFIG, adapters_in
from sparse_trainer.training.checkpoint import STATE_FILE, args_to_restore, read_model
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.gate_file import GATE_FILE, restore_gates

_DAMAGED = "Restore the checkpoint, or take an earlier one."
_GIVE_BASE = "Name the folder or hub id of the base model: load_patched(…, base_model=…), or --base-model."


def holds_adapter_alone(folder: str | os.PathLike[str]) -> bool:
    """Tell whether a folder holds an adapter of peft, and no model."""
    return (Path(folder) / ADAPTER_CONFIG).is_file() and not (Path(folder) / CONFIG_FILE).is_file()


def refuse_adapter_alone(folder: str | os.PathLike[str]) -> None:
    """Raise `CheckpointError` for an adapter in the place of a model; also where its gates were lost."""
    if not holds_adapter_alone(folder):
        return
    if (Path(folder) / STATE_FILE).is_file():
        raise CheckpointError(
            str(Path(folder) / GATE_FILE), "the gates beside the adapter are missing.", _DAMAGED
        )
    raise CheckpointError(
        os.fspath(folder),
        "holds an adapter of peft, no model.",
        "Merge it first: peft.AutoPeftModel….from_pretrained(folder).merge_and_unload().save_pretrained(OUT).",
    )


def load_adapted(folder: Path, base_model: str | os.PathLike[str] | None) -> Any:
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
    if not isinstance(stock, type) or not issubclass(stock, PreTrainedModel):
        raise CheckpointError(
            f"{folder / STATE_FILE}: model",
            f"{said['class']!r} is no model class of transformers {transformers.__version__}.",
            _DAMAGED,
        )
    values = said["config"]
    cls: Any = pruned_class(stock) if "pruning" in values else stock
    with refusing(f"{folder / STATE_FILE}: model", cls.__name__):
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
