"""Load models from folders, dense and pruned, and refuse what must not be taken for one: checkpoints with gates."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME
from transformers.utils.hub import cached_file

from patchers.patching.marks import PATCH_ENTRIES
from sparse_trainer.cut.record import attach_plan
from sparse_trainer.errors import CheckpointError
from sparse_trainer.files.foreign_code import drop_code_names
from sparse_trainer.files.names import ADAPTER_CONFIG, GATE_FILE, STATE_FILE
from sparse_trainer.folders.configs import CONFIG_FILE, DAMAGED, config_values, model_class, refusing, resolve
from sparse_trainer.folders.nn_pruning_format import (
    complete,
    is_of_nn_pruning,
    loading_options,
    removed_heads,
)
from sparse_trainer.folders.safetensors_files import stored_names
from sparse_trainer.plan.document import PLAN_FILE, Plan

_HUB_OPTIONS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)


def load_pruned(path_or_hub_id: str | os.PathLike[str], **kwargs: Any) -> PreTrainedModel:
    """Load a pruned model of any export, without `trust_remote_code`; `model.pruning_plan` is its plan.

    Checkpoints of nn_pruning, with `pruned_heads` in their config, load too; `optimize_model` cuts their zeros.

    Args:
        path_or_hub_id: A folder, or a name on the hub.
        kwargs: Go to `from_pretrained`: dtype, device_map, attn_implementation, revision, …

    Raises:
        CheckpointError: a checkpoint with gates; or config, weights or plan are missing or damaged.
    """
    return load_model(path_or_hub_id, None, **kwargs)


def load_model(
    path: str | os.PathLike[str],
    auto_class: Any = None,
    *,
    device: torch.device | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a dense or pruned model with its weights, but no checkpoint with gates.

    Args:
        path: A folder, a name on the hub, or `package:NAME/FOLDER`.
        auto_class: An auto class of transformers, for a task head of choice; default: the head that was saved.
        device: Where to move it; None = leave it where `from_pretrained` puts it.
        kwargs: Go to `from_pretrained`.

    Raises:
        CheckpointError: as `load_pruned`.
    """
    model: Any = _load_model(resolve(os.fspath(path)), auto_class, kwargs)
    loaded: PreTrainedModel = model if device is None else model.to(device)
    return loaded


def _load_model(where: str, auto_class: Any, kwargs: Mapping[str, Any]) -> PreTrainedModel:
    hub = {name: kwargs[name] for name in _HUB_OPTIONS if name in kwargs}
    if os.path.isdir(where):
        refuse_patched(where)
        refuse_adapter_alone(where)
    values = config_values(where, hub)
    plan = _read_plan(where, hub)
    cls = class_of(where, values, auto_class)
    old = is_of_nn_pruning(values, f"{where}: {CONFIG_FILE}")
    ours = plan is not None or "pruning" in values or old
    # A task head of choice, or more labels than before, start fresh: only then may weights be missing.
    fresh = auto_class is not None or {"num_labels", "id2label", "ignore_mismatched_sizes"} & set(kwargs)
    strict = ours and not fresh
    if old:
        removed = removed_heads(values, f"{where}: {CONFIG_FILE}")
        shape, file, options = loading_options(cls, values, removed, where, hub, kwargs)
        model = _load(type(shape.model), where, strict, options, file=file, lacks=shape.lacks)
        # What was renamed to be loaded is not renamed back to be saved.
        vars(model).pop("_weight_conversions", None)
        complete(model, shape)
        return model
    model = _load(cls, where, strict, kwargs)
    if plan is not None:
        attach_plan(model, plan)
    return model


def refuse_patched(folder: str | os.PathLike[str]) -> None:
    """Raise `CheckpointError` for a training checkpoint with gates: loaded as a dense model it would be wrong."""
    if is_patched_checkpoint(folder):
        raise CheckpointError(
            os.fspath(folder),
            "is a checkpoint from the middle of pruning: its weights count only together with the gates in it.",
            f"Cut it with `sparse-trainer optimize {os.fspath(folder)} OUT`, or go on training from it.",
        )


def refuse_adapter_alone(folder: str | os.PathLike[str]) -> None:
    """Raise `CheckpointError` for an adapter of peft in the place of a model; also where its gates were lost."""
    place = Path(folder)
    if not (place / ADAPTER_CONFIG).is_file() or (place / CONFIG_FILE).is_file():
        return
    if (place / STATE_FILE).is_file():
        raise CheckpointError(
            str(place / GATE_FILE),
            "the gates beside the adapter are missing.",
            "Restore the checkpoint, or take an earlier one.",
        )
    raise CheckpointError(
        os.fspath(folder),
        "holds an adapter of peft, no model.",
        "Merge it first: peft.AutoPeftModel….from_pretrained(folder).merge_and_unload().save_pretrained(OUT).",
    )


def check_weight_files(name: str) -> None:
    """Raise `CheckpointError` for a local folder whose weights are missing or damaged, by their headers alone."""
    folder = Path(name)
    if not os.path.isdir(name) or (folder / WEIGHTS_NAME).is_file():
        return  # pickled weights of nn_pruning are checked when they are loaded
    if not stored_names(folder):
        raise CheckpointError(name, "holds no safetensors weights.", DAMAGED)


def is_patched_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Tell whether the weights in a folder come with gates; reads names only.

    Raises:
        CheckpointError: the weights are damaged.
    """
    place = Path(folder)
    return (place / GATE_FILE).is_file() or any(name.endswith(PATCH_ENTRIES) for name in stored_names(place))


def _read_plan(where: str, hub: Mapping[str, Any]) -> Plan | None:
    file = cached_file(
        where,
        PLAN_FILE,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
    return None if file is None else Plan.load(file)


def class_of(where: str, values: Mapping[str, Any], auto_class: Any) -> type[PreTrainedModel]:
    """Return the class that a config names, or that an auto class has for it; of a pruned model, its pruned form.

    Raises:
        CheckpointError: transformers has no such class.
    """
    if auto_class is None:
        name = str((values.get("architectures") or [None])[0])
        stock = getattr(transformers, name, None)
    else:
        with refusing(f"{where}: {CONFIG_FILE}", auto_class.__name__):
            stock = auto_class._model_mapping.get(transformers.CONFIG_MAPPING[values["model_type"]], None)
        stock = stock[0] if isinstance(stock, tuple) else stock
        name = auto_class.__name__
    remedy = "Load a class of your own with pruned_class(YourClass).from_pretrained(folder)."
    return model_class(stock, name, values, f"{where}: {CONFIG_FILE}: architectures", remedy)


def _load(
    cls: Any,
    where: str,
    strict: bool,
    kwargs: Mapping[str, Any],
    *,
    file: str = SAFE_WEIGHTS_NAME,
    lacks: Callable[[str], bool] | None = None,
) -> PreTrainedModel:
    """Load `cls`, and name the entries that do not fit; missing and unknown ones only where `strict`.

    Args:
        lacks: Tells which entries of the file need no place in the model; None = each needs one.
    """
    # Pickled weights are never ours, and can run code. Mismatches are told below, by name.
    options = {
        "use_safetensors": True,
        **kwargs,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    with refusing(f"{where}: {file}", cls.__name__):
        model, info = cls.from_pretrained(where, **options)
    lost = [] if kwargs.get("ignore_mismatched_sizes") else [name for name, *_ in info["mismatched_keys"]]
    if strict:
        lost += [*info["missing_keys"], *info["unexpected_keys"]]
    lost = [name for name in lost if lacks is None or not lacks(name)]
    if lost:
        raise CheckpointError(
            f"{where}: {file}",
            f"{len(lost)} entries are missing, unknown or of the wrong size, the first of them {min(lost)!r}.",
            f"{DAMAGED} For a fresh task head pass ignore_mismatched_sizes=True.",
        )
    drop_code_names(model.config)
    return model  # type: ignore[no-any-return]
