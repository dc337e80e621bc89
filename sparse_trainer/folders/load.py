"""Read folders: pruned models, checkpoints in the middle of training, and what must not be taken for either."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME
from transformers.utils.hub import cached_file

from patchers.modeling_pruned import pruned_class
from patchers.patching.patch import PATCH_ENTRIES
from sparse_trainer.errors import CheckpointError
from sparse_trainer.files.foreign_code import drop_code_names
from sparse_trainer.folders.adapted import load_adapted, refuse_adapter_alone
from sparse_trainer.folders.configs import CONFIG_FILE, DAMAGED, config_values, refusing
from sparse_trainer.folders.nn_pruning_format import (
    complete,
    is_of_nn_pruning,
    loading_options,
    removed_heads,
)
from sparse_trainer.folders.safetensors_files import Stored, named_as_in, weight_files
from sparse_trainer.plan.document import PLAN_FILE, Plan
from sparse_trainer.plan.record import attach_plan
from sparse_trainer.training.checkpoint import STATE_FILE, args_to_restore
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.gate_file import GATE_FILE

_HUB_OPTIONS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)
_UNSAVED = "Save through the Trainer, or call save_state(folder, coordinator) too; else restore the folder."
logger = logging.getLogger(__name__)


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


def load_model(path: str | os.PathLike[str], auto_class: Any = None, **kwargs: Any) -> PreTrainedModel:
    """Load a dense or pruned model, but no checkpoint with gates.

    Args:
        auto_class: An auto class of transformers, for a task head of choice; default: the head that was saved.

    Raises:
        CheckpointError: as `load_pruned`.
    """
    where = os.fspath(path)
    hub = {name: kwargs[name] for name in _HUB_OPTIONS if name in kwargs}
    if os.path.isdir(where):
        refuse_patched(where)
        refuse_adapter_alone(where)
    values = config_values(where, hub)
    plan = _read_plan(where, hub)
    cls = _class_of(where, values, auto_class)
    old = is_of_nn_pruning(values, f"{where}: {CONFIG_FILE}")
    ours = plan is not None or "pruning" in values or old
    # A task head of choice, or more labels than before, start fresh: only then may weights be missing.
    strict = (
        ours
        and auto_class is None
        and not {"num_labels", "id2label", "ignore_mismatched_sizes"} & set(kwargs)
    )
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


def check_weights(name: str) -> None:
    """Raise `CheckpointError` for a local folder whose weights are missing or damaged, by their headers alone."""
    folder = Path(name)
    if (
        not os.path.isdir(name) or (folder / WEIGHTS_NAME).is_file()
    ):  # pickled: of nn_pruning, told when it is loaded
        return
    files = _weight_files(folder)
    if not files:
        raise CheckpointError(name, "holds no safetensors weights.", DAMAGED)
    for file in files:
        _entry_names(file)


def is_patched_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Tell whether the weights in a folder come with gates; reads names only.

    Raises:
        CheckpointError: the weights are damaged.
    """
    return (Path(folder) / GATE_FILE).is_file() or any(
        name.endswith(PATCH_ENTRIES) for file in _weight_files(Path(folder)) for name in _entry_names(file)
    )


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
        adapted: PreTrainedModel = load_adapted(where, base_model)
        return adapted
    refuse_adapter_alone(where)
    if not is_patched_checkpoint(where):
        raise CheckpointError(str(where), "has no gates in its weights.", "Load it with load_pruned.")
    # Libraries that save the model they wrap may do so in a subfolder.
    beside = where if (where / STATE_FILE).is_file() else where.parent
    sparse_args = args_to_restore(beside if (beside / STATE_FILE).is_file() else where, _UNSAVED)
    values = config_values(str(where), {})
    cls: Any = _class_of(str(where), values, None)
    with refusing(f"{where}: {CONFIG_FILE}", cls.__name__):
        model: Any = cls._from_config(cls.config_class.from_pretrained(where))
    ModelPatchingCoordinator(sparse_args).restore(model)
    _load_state(model, where)
    model.eval()
    return model  # type: ignore[no-any-return]


def _load_state(model: Any, folder: Path) -> None:
    """Load weights and gates as they are stored: in their dtype, which need not be that of the config."""
    file = str(_weight_files(folder)[0])
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


def _read_plan(where: str, hub: Mapping[str, Any]) -> Plan | None:
    file = cached_file(
        where,
        PLAN_FILE,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
    return None if file is None else Plan.load(file)


def _class_of(where: str, values: Mapping[str, Any], auto_class: Any) -> type[PreTrainedModel]:
    if auto_class is None:
        name = str((values.get("architectures") or [None])[0])
        stock = getattr(transformers, name, None)
    else:
        with refusing(f"{where}: {CONFIG_FILE}", auto_class.__name__):
            stock = auto_class._model_mapping.get(transformers.CONFIG_MAPPING[values["model_type"]], None)
        stock = stock[0] if isinstance(stock, tuple) else stock
        name = auto_class.__name__
    if not isinstance(stock, type) or not issubclass(stock, PreTrainedModel):
        raise CheckpointError(
            f"{where}: {CONFIG_FILE}: architectures",
            f"{name!r} is no model class of transformers {transformers.__version__} for this config.",
            "Load a class of your own with pruned_class(YourClass).from_pretrained(folder).",
        )
    return pruned_class(stock) if "pruning" in values else stock


def _nothing(entry: str) -> bool:
    return False


def _load(
    cls: Any,
    where: str,
    strict: bool,
    kwargs: Mapping[str, Any],
    *,
    file: str = SAFE_WEIGHTS_NAME,
    lacks: Callable[[str], bool] = _nothing,
) -> PreTrainedModel:
    """Load `cls`, and name the entries that do not fit; missing and unknown ones only where `strict`.

    Args:
        lacks: Entries of the file that need no place in the model.
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
    lost = [name for name in lost if not lacks(name)]
    if lost:
        raise CheckpointError(
            f"{where}: {file}",
            f"{len(lost)} entries are missing, unknown or of the wrong size, the first of them {min(lost)!r}.",
            f"{DAMAGED} For a fresh task head pass ignore_mismatched_sizes=True.",
        )
    drop_code_names(model.config)
    return model  # type: ignore[no-any-return]


def _weight_files(folder: Path) -> list[Path]:
    has_some = any((folder / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
    return weight_files(folder) if has_some else []


def _entry_names(file: Path) -> list[str]:
    with _opened(file) as content:
        return list(content.keys())


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(str(file), f"cannot be read ({error}).", DAMAGED) from error
