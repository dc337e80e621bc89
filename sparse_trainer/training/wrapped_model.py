"""Checkpoints of models that wrap another one, as those of sentence-transformers do: the library saves the inner model.

Its folder holds the inner model with its gates, which no stock loader reads, so a training could not go on from it. The
tensors of the whole wrapper are written beside it, under the names they have in memory.
"""

import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from patchers.patching.marks import PATCH_ENTRIES
from patchers.patching.merging import base_model
from sparse_trainer.errors import CheckpointError

WHOLE_FILE = "pruning_model.safetensors"


def save_whole(folder: str | os.PathLike[str], model: nn.Module) -> None:
    """Write the tensors of a model whose gates were not written under its own names."""
    (Path(folder) / WHOLE_FILE).unlink(missing_ok=True)
    if is_wrapper(model) and not _stored_gates(Path(folder)) >= _gates(model):
        save_model(model, os.fspath(Path(folder) / WHOLE_FILE))


def has_whole(folder: str | os.PathLike[str]) -> bool:
    """Tell whether a checkpoint holds a wrapper."""
    return (Path(folder) / WHOLE_FILE).is_file()


def load_whole(folder: str | os.PathLike[str], model: nn.Module) -> None:
    """Load what `save_whole` wrote, in place.

    Raises:
        CheckpointError: it is damaged, or of another model.
    """
    file = os.fspath(Path(folder) / WHOLE_FILE)
    try:
        load_model(model, file)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            file,
            f"cannot be loaded ({error}).",
            "Resume from an earlier checkpoint, or train from the start.",
        ) from error


def is_wrapper(model: nn.Module) -> bool:
    """Tell whether a model wraps one of transformers, and is none of peft."""
    inner: Any = (part for part in model.modules() if isinstance(part, PreTrainedModel))
    # A peft model has its gates saved beside the adapter, without the weights that it does not train.
    alone = base_model(model) is model and not isinstance(model, PreTrainedModel)
    return alone and next(inner, None) is not None


def _gates(model: nn.Module) -> set[str]:
    return {name for name in model.state_dict() if name.endswith(PATCH_ENTRIES)}


def _stored_gates(folder: Path) -> set[str]:
    names: set[str] = set()
    for file in folder.glob(f"*{Path(SAFE_WEIGHTS_NAME).suffix}"):
        with safe_open(file, framework="pt") as content:
            names.update(name for name in content.keys() if name.endswith(PATCH_ENTRIES))  # noqa: SIM118
    return names
