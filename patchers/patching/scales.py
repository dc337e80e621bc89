"""Scales that gates have learned beside their masks: folded into the weights that read the units."""

import torch
from torch import nn

from patchers.layers import linear_at, weight_OI
from patchers.patching.patch import gates_by_group
from patchers.units import Group, Kind, Structure

# Shape legend: O = output features, I = input features, U = units, W = features of one unit.


def takes_scales(kind: Kind) -> bool:
    """Tell whether units of this kind are read by a weight that a scale of theirs can be folded into."""
    return kind.gated == "input"


@torch.no_grad()
def fold_scales(model: nn.Module, structure: Structure) -> None:
    """Multiply the weights that read the units by the scales of their gates, in place; the scales are 1 afterwards.

    The model computes what it did, up to rounding. Adapters have to be merged first.
    """
    for name, gate in gates_by_group(model, structure).items():
        if gate.scale_U is not None:
            _fold(model, structure[name], gate.scale_U)
            gate.scale_U.fill_(1.0)


def _fold(model: nn.Module, group: Group, scale_U: torch.Tensor) -> None:
    reads, tensor = group.consumer_slice, group.consumer_tensor
    if tensor is None:
        weight, dim = weight_OI(linear_at(model, group.consumer)), 1
    else:
        weight, dim = model.get_parameter(tensor.name), tensor.dim
    scale_I = torch.ones(weight.shape[dim], dtype=scale_U.dtype, device=scale_U.device)
    scale_I[reads.index_UW.to(scale_U.device)] = scale_U.unsqueeze(1).expand(-1, reads.width)
    shape = [1] * weight.dim()
    shape[dim] = -1
    # One rounding: the product is taken in the wider of the two types.
    weight.copy_(weight * scale_I.view(shape))
