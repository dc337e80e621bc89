"""Models whose weights are shared out among processes (FSDP2, tensor parallelism): each holds a part of every tensor.

What torch needs for that is imported where a group of processes exists: it takes a second.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


def is_sharded(model: nn.Module) -> bool:
    """Tell whether the weights of a model lie in parts on several processes."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    managed = any(isinstance(module, FSDPModule) for module in model.modules())
    return managed or any(isinstance(p, DTensor) for p in model.parameters())


@contextmanager
@torch.no_grad()
def whole_weights(model: nn.Module, *, write: bool = False) -> Iterator[None]:
    """Show the weights of a model whole in every process for the time of a `with` block.

    All processes have to enter it together. A model that is not sharded stays as it is.

    Args:
        write: Keep what the block writes into the weights, the same in every process.
    """
    if not is_sharded(model):
        yield
        return
    from torch.distributed.tensor import distribute_tensor

    parts = _parts(model)
    whole = {id(p): nn.Parameter(p.full_tensor(), requires_grad=False) for _, _, p in parts}
    for module, name, part in parts:
        module._parameters[name] = whole[id(part)]
    try:
        yield
    finally:
        for module, name, part in parts:
            module._parameters[name] = part
            if write and id(part) in whole:
                part.copy_(distribute_tensor(whole.pop(id(part)).data, part.device_mesh, part.placements))


@torch.no_grad()
def copy_whole(model: nn.Module, into: nn.Module) -> None:
    """Copy a sharded model into one of the same structure that lies whole in every process.

    All processes have to call it together; of one tensor at a time there is a whole copy more.
    """
    parts = {id(part) for _, _, part in _parts(model)}
    target = {**dict(into.named_parameters()), **dict(into.named_buffers())}
    tensor: Any
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        target[name].copy_(tensor.full_tensor() if id(tensor) in parts else tensor)


def _parts(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Return every sharded parameter with its owner and name, once for each owner.

    What a forward pass has left whole is let go of: only the parts are up to date, and written to.
    """
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if isinstance(parameter, DTensor)
    ]
