"""Gates beside an adapter: `save_pretrained` of a peft model writes the adapter alone, what prunes gets its own file.

Entries are named as in the model without adapters: a linear that was wrapped when the file was written need not be
wrapped when it is read.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from patchers.patching.adapters import without_wrappers
from patchers.patching.blends import BlendedActivation, BlendedNorm
from patchers.patching.gates import Gate
from patchers.patching.masks import WeightMask
from patchers.patching.merging import base_model
from sparse_trainer.errors import CheckpointError
from sparse_trainer.files.names import GATE_FILE
from sparse_trainer.files.writing import new_file


def save_gates(folder: str | os.PathLike[str], model: nn.Module) -> None:
    """Write gates, masks, scores and all else that a pruning attaches to a model."""
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in attached_state(model)}
    with new_file(Path(folder) / GATE_FILE) as draft:
        save_file(state, draft)


@torch.no_grad()
def restore_gates(folder: str | os.PathLike[str], model: nn.Module, remedy: str) -> None:
    """Set what is attached to a model to what `save_gates` wrote, in place.

    Args:
        remedy: What the user can do about a file that is missing, damaged or of another model.

    Raises:
        CheckpointError: It is.
    """
    stored, own = read_gates(folder, model, remedy), dict(attached_state(model))
    for name, tensor in own.items():
        tensor.copy_(stored[name])


def read_gates(folder: str | os.PathLike[str], model: nn.Module, remedy: str) -> dict[str, Tensor]:
    """Return what `save_gates` wrote, once it is known to fit what is attached to a model.

    Raises:
        CheckpointError: as `restore_gates`.
    """
    file = Path(folder) / GATE_FILE
    try:
        stored = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            str(file), f"the gates beside the adapter cannot be read ({error}).", remedy
        ) from error
    own = dict(attached_state(model))
    lost = sorted(stored.keys() ^ own.keys()) or [n for n in own if stored[n].shape != own[n].shape]
    if lost:
        raise CheckpointError(
            f"{file}: {lost[0]}",
            "is missing, unknown or of another size than in this model.",
            remedy,
        )
    return stored


def attached_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in base_model(model).named_modules():
        if not isinstance(module, Gate | WeightMask | BlendedActivation | BlendedNorm):
            continue
        kept = module.state_dict().keys()
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if name in kept:
                yield without_wrappers(f"{path}.{name}"), tensor
