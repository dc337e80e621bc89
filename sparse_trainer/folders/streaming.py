"""Cut a checkpoint on disk, tensor by tensor: for models larger than memory."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from patchers.modeling_pruned import stock_class_of
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.cut.record import attach_plan, plan_of
from sparse_trainer.cut.traced import Piece, Traced, pieces, trace
from sparse_trainer.errors import CheckpointError
from sparse_trainer.files.writing import place_of, write_text
from sparse_trainer.folders.card import model_card
from sparse_trainer.folders.configs import CONFIG_FILE, config_values
from sparse_trainer.folders.exports import EXPORTS
from sparse_trainer.folders.load import refuse_patched
from sparse_trainer.folders.load_shape import load_shape
from sparse_trainer.folders.nn_pruning_format import is_of_nn_pruning
from sparse_trainer.folders.replace import check_target, new_folder
from sparse_trainer.folders.safetensors_files import Origin, Stored, origins
from sparse_trainer.folders.safetensors_writer import SafetensorsWriter, size_of
from sparse_trainer.folders.save import CARD_FILE
from sparse_trainer.plan.document import PLAN_FILE, Plan, PlanLike

Progress = Callable[[int, int], None]
"""Called with the bytes written so far and the bytes in all."""
_OWN_FILES = (CONFIG_FILE, GENERATION_CONFIG_NAME, PLAN_FILE, CARD_FILE)
_CODE = (".py", ".pyc", ".so")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".index.json")
_WEIGHTS_PATTERN = "model{suffix}.safetensors"


@dataclass(frozen=True, kw_only=True)
class _Step:
    """Stored tensors that are read together, and what is written of them."""

    origin: Origin | None
    """None for the empty entries that keep stock classes from loading the folder."""
    cut: Mapping[str, tuple[str, Piece]]
    """By name in the cut model: name in memory before the cut, and the piece."""
    outputs: dict[str, Tensor]
    """By stored name: what is written, without its numbers."""


def cut_checkpoint(
    source: str | os.PathLike[str],
    plan: PlanLike,
    target: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Cut the checkpoint in a folder by a plan, and return the new one: that of `optimize_model` and `save_pruned`.

    Tensors are read and written one by one, or one layer's experts at a time, so that memory holds no more than that.
    The new folder appears whole or not at all.

    Args:
        source: A folder with config.json and safetensors, dense or pruned before.
        plan: A plan, its JSON values, or a file or folder that holds one.
        max_shard_size: Largest size of a new file, in bytes or like "5GB".
        overwrite: Replace a folder that `save_pruned` or this function wrote before.
        progress: Told about every file written.

    Raises:
        CheckpointError: a stored tensor or the plan does not fit the model; the disk is too small; the target is there.
    """
    folder, where = Path(source), place_of(target)
    check_target(where, overwrite=overwrite)
    _check_source(folder)
    stored, dense, compact = Stored(folder), load_shape(str(folder)), load_shape(str(folder))
    names = trace(compact, None if dense.config.dtype is not None else stored.dtype())
    if (folder / PLAN_FILE).is_file():
        attach_plan(compact, Plan.load(folder))
    compact = optimize_model(compact, plan=plan, inplace=True, check=False)
    steps = _steps(stored, dense, compact, names)
    need = sum(size_of(tensor) for step in steps for tensor in step.outputs.values())
    with new_folder(where, overwrite=overwrite, need=need) as draft:
        _write_beside(folder, draft, compact)
        _write_weights(draft, stored, dense, compact, steps, max_shard_size, progress)
    return where


def _check_source(folder: Path) -> None:
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(str(folder), f"holds no {CONFIG_FILE}.", "Give the folder of a model.")
    refuse_patched(folder)
    values = config_values(str(folder), {})
    if values.get("quantization_config") or is_of_nn_pruning(values, str(folder)):
        raise CheckpointError(
            str(folder), "is quantized, or a checkpoint of nn_pruning.",
            "Load it with load_pruned, cut it with optimize_model and save it with save_pruned.",
        )  # fmt: skip


def _steps(
    stored: Stored, dense: PreTrainedModel, compact: PreTrainedModel, names: Mapping[str, str]
) -> list[_Step]:
    """Return what to read and write, in the order of the files; nothing has been read yet.

    Raises:
        CheckpointError: a tensor does not fit the model, or is missing.
    """
    found, transforms = origins(stored, dense)
    if type(compact) is stock_class_of(compact):
        # What was renamed or merged to be loaded is written as it was stored.
        vars(compact)["_weight_conversions"] = transforms
    wanted = pieces(compact)
    by_origin: dict[str, dict[str, Piece]] = {}
    for name, tensor in wanted.items():
        if isinstance(tensor, Traced):
            by_origin.setdefault(tensor.piece.origin, {})[name] = tensor.piece
    steps, done = [], set[str]()
    for origin in found:
        loaded = _loaded_shapes(origin, stored, dense)
        cut = {
            new: (name, piece)
            for name in loaded
            for new, piece in by_origin.get(names[name], {}).items()
            if new not in done
        }
        done.update(cut)
        if cut:
            like = {new: _shape(wanted[new], loaded[name].dtype) for new, (name, _) in cut.items()}
            steps.append(_Step(origin=origin, cut=cut, outputs=revert_weight_conversion(compact, like)))
    for name in wanted.keys() - done:
        if wanted[name].numel() == 0 and not isinstance(wanted[name], Traced):
            empty = revert_weight_conversion(compact, {name: _shape(wanted[name], wanted[name].dtype)})
            steps.append(_Step(origin=None, cut={}, outputs=empty))
        else:
            raise CheckpointError(
                f"{next(iter(stored.entries.values())).file.parent}: {name}",
                "is in no file of the checkpoint.",
                "Set `architectures` in config.json to the class that was saved.",
            )
    return steps


def _loaded_shapes(origin: Origin, stored: Stored, dense: PreTrainedModel) -> dict[str, Tensor]:
    """Return what stored tensors become, without numbers, and check that it fits the model."""
    first = origin.sources[0][0]
    try:
        loaded = origin.load(dense, stored.shape)
        want = {name: tuple(dense.get_parameter_or_buffer(name).shape) for name in loaded}
    except (RuntimeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{stored.entries[first].file}: {first}", f"cannot be loaded ({error}).", "Check config.json."
        ) from error
    for name, shape in want.items():
        if tuple(loaded[name].shape) != shape:
            raise CheckpointError(
                f"{stored.entries[first].file}: {first}",
                f"makes {name} {tuple(loaded[name].shape)}, and {type(dense).__name__} has {shape}.",
                "Check config.json against the weights.",
            )
    return loaded


def _shape(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(tensor.shape, dtype=dtype, device="meta")


def _write_beside(folder: Path, draft: Path, compact: PreTrainedModel) -> None:
    """Write config, code, plan and card, and copy the tokenizer and other small files, but no code."""
    plan = plan_of(compact)
    assert plan is not None
    compact.save_pretrained(draft, state_dict={})
    (draft / SAFE_WEIGHTS_NAME).unlink(missing_ok=True)
    plan.save(draft / PLAN_FILE)
    write_text(draft / CARD_FILE, model_card(compact, plan, {}, EXPORTS["auto"]))
    for file in sorted(folder.iterdir()):
        ours = file.name in _OWN_FILES and file.name != GENERATION_CONFIG_NAME
        if (
            file.is_file()
            and not ours
            and not file.name.startswith(".")
            and not file.name.endswith(_WEIGHTS + _CODE)
        ):
            shutil.copy(file, draft / file.name)


def _write_weights(
    draft: Path,
    stored: Stored,
    dense: PreTrainedModel,
    compact: PreTrainedModel,
    steps: list[_Step],
    max_shard_size: int | str,
    progress: Progress | None,
) -> None:
    """Fill the files, a tensor where it belongs as soon as it is there."""
    every = {name: tensor for step in steps for name, tensor in step.outputs.items()}
    split: Any = split_torch_state_dict_into_shards(
        every, filename_pattern=_WEIGHTS_PATTERN, max_shard_size=max_shard_size
    )
    total, written = sum(map(size_of, every.values())), 0
    with ExitStack() as stack:
        files: dict[str, SafetensorsWriter] = {}
        for step in steps:
            for name, tensor in _run(step, stored, dense, compact).items():
                file = split.tensor_to_filename[name]
                if file not in files:
                    like = {each: every[each] for each in split.filename_to_tensors[file]}
                    files[file] = stack.enter_context(closing(SafetensorsWriter(draft / file, like)))
                is_complete = files[file].write(name, tensor)
                written += size_of(tensor)
                if is_complete and progress is not None:
                    progress(written, total)
    if split.is_sharded:
        parameters = sum(parameter.numel() for parameter in compact.parameters())
        metadata = {"total_parameters": parameters, **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        write_text(draft / SAFE_WEIGHTS_INDEX_NAME, json.dumps(index, indent=2, sort_keys=True) + "\n")


def _run(step: _Step, stored: Stored, dense: PreTrainedModel, compact: PreTrainedModel) -> dict[str, Tensor]:
    """Read, cut and give the stored names back."""
    if step.origin is None:
        return {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in step.outputs.items()}
    loaded = step.origin.load(dense, stored.read)
    cut = {new: piece.take(loaded[name]) for new, (name, piece) in step.cut.items()}
    del loaded
    stored_again: dict[str, Tensor] = revert_weight_conversion(compact, cut)
    return stored_again
