"""The tensors in a folder of safetensors files, and which tensor in memory each of them becomes."""

import copy
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    dot_natural_key,
    rename_source_key,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from sparse_trainer.errors import CheckpointError, shown
from sparse_trainer.files.json_text import read_object

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_RESTORE = "Download or save the checkpoint again."


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stored tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


class Stored:
    """The tensors of a folder, in the order in which they lie there.

    Raises:
        CheckpointError: no safetensors in the folder, or damaged ones.
    """

    def __init__(self, folder: Path) -> None:
        self.entries: dict[str, Entry] = {}
        for file in weight_files(folder):
            content = _opened(file)
            for name in content.offset_keys():
                part = content.get_slice(name)
                if part.get_dtype() not in DTYPES:
                    raise CheckpointError(
                        f"{file}: {name}", f"has dtype {part.get_dtype()}.", "Give a checkpoint that is not quantized."
                    )  # fmt: skip
                shape = tuple(part.get_shape())
                self.entries[name] = Entry(file=file, shape=shape, dtype=DTYPES[part.get_dtype()])

    def shape(self, name: str) -> Tensor:
        """Return a tensor without numbers."""
        entry = self.entries[name]
        return torch.empty(entry.shape, dtype=entry.dtype, device="meta")

    def read(self, name: str) -> Tensor:
        """Return a tensor, mapped from its file: pages are read when they are used, and go when the tensor goes."""
        return _opened(self.entries[name].file).get_tensor(name)  # type: ignore[no-any-return]

    def dtype(self) -> torch.dtype | None:
        """Return the dtype of the first floating tensor."""
        return next((e.dtype for e in self.entries.values() if e.dtype.is_floating_point), None)


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(str(file), f"cannot be read ({error}).", _RESTORE) from error


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that make up a checkpoint.

    Raises:
        CheckpointError: there are none, or the index is damaged or lists files that are not there.
    """
    index, single = folder / SAFE_WEIGHTS_INDEX_NAME, folder / SAFE_WEIGHTS_NAME
    if single.is_file():
        return [single]
    if not index.is_file():
        raise CheckpointError(
            str(folder), f"holds neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}.",
            "Give a folder with safetensors; load and save a model in another format first.",
        )  # fmt: skip
    return files_of_index(index)


def stored_names(folder: Path) -> list[str]:
    """Return the names of all tensors in a folder; none where it holds no safetensors.

    Raises:
        CheckpointError: the weights are damaged.
    """
    has_some = any((folder / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
    return [
        name for file in (weight_files(folder) if has_some else ()) for name in _opened(file).offset_keys()
    ]


def files_of_index(index: Path) -> list[Path]:
    """Return the files that an index of shards lists.

    Raises:
        CheckpointError: it is damaged, or lists a file outside its folder.
    """
    listed = read_object(index, _RESTORE).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise CheckpointError(
            f"{index}: weight_map", f"{shown(listed)} is no object of file names.", _RESTORE
        )
    names = sorted(set(listed.values()))
    outside = next((name for name in names if name in ("", ".", "..") or re.search(r"[/\\\0]", name)), None)
    if outside is not None:
        raise CheckpointError(
            f"{index}: weight_map", f"{shown(outside)} is not the name of a file in this folder.", _RESTORE
        )
    return [index.parent / name for name in names]


@dataclass(kw_only=True)
class Origin:
    """Stored tensors that together become one or more tensors in memory."""

    target: str
    """The first of the tensors in memory."""
    converter: WeightConverter | None
    """How transformers makes them; None = one stored tensor is the tensor."""
    sources: list[tuple[str, str]] = field(default_factory=list)
    """Stored names, each with the pattern of the converter that it matches."""

    def load(self, dense: PreTrainedModel, get: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Return the tensors in memory, by name."""
        if self.converter is None:
            return {self.target: get(self.sources[0][0])}
        # It collects what it converts: each use takes a fresh one.
        converter = copy.deepcopy(self.converter)
        for name, pattern in self.sources:
            converter.add_tensor(self.target, name, pattern, partial(get, name))  # type: ignore[arg-type]
        made = converter.convert(self.target, model=dense, config=dense.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def origins(stored: Stored, dense: PreTrainedModel) -> tuple[list[Origin], list[WeightTransform]]:
    """Return where the tensors of a model lie, in the order of the files, and the conversions that apply.

    The rules are those of `from_pretrained`: prefixes, legacy names, experts stored one by one.

    Args:
        dense: The model on the meta device.

    Raises:
        CheckpointError: a stored tensor has no place in the model; names it.
    """
    transforms = get_model_conversion_mapping(dense)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    state, prefix = dense.state_dict(), dense.base_model_prefix
    found: dict[str, Origin] = {}
    for name in sorted(stored.entries, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = name, None
        if target not in state:
            _refuse_unless_ignored(name, target, stored, dense)
            continue
        converter = by_pattern[pattern] if pattern is not None else None
        origin = found.setdefault(target, Origin(target=target, converter=converter))
        if origin.sources and pattern is None:
            raise CheckpointError(
                f"{stored.entries[name].file}: {name}", f"and {origin.sources[0][0]!r} are both {target!r}.", _RESTORE
            )  # fmt: skip
        origin.sources.append((name, pattern or name))
    place = {name: number for number, name in enumerate(stored.entries)}
    ordered = sorted(found.values(), key=lambda origin: min(place[name] for name, _ in origin.sources))
    return ordered, [t for t in transforms if t.was_used()]


def named_as_in(model: PreTrainedModel, stored: Stored) -> dict[str, Tensor]:
    """Return the stored tensors, in memory of their own, under the names they have in `model`.

    Checkpoints with gates hold these names; older ones hold those under which transformers saves the type.

    Raises:
        CheckpointError: a stored tensor has no place in the model; names it.
    """
    if stored.entries.keys() <= model.state_dict().keys():
        return {name: stored.read(name).clone() for name in stored.entries}
    found, _ = origins(stored, model)
    return {name: tensor.clone() for each in found for name, tensor in each.load(model, stored.read).items()}


def _refuse_unless_ignored(name: str, target: str, stored: Stored, dense: PreTrainedModel) -> None:
    ignored: Iterable[str] = dense._keys_to_ignore_on_load_unexpected or []
    if not any(re.search(pattern, target) for pattern in ignored):
        raise CheckpointError(
            f"{stored.entries[name].file}: {name}",
            f"has no place in {type(dense).__name__}.",
            "Set `architectures` in config.json to the class that was saved; or load, cut and save it in memory.",
        )
