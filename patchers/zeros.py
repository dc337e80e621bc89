"""Find removable units in a plain model that contains zeros, and fold the constants they leave behind."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from patchers.layers import linear_at, parameter_like, weight_OI
from patchers.patching.gates import Gate
from patchers.patching.masks import bake
from patchers.patching.patch import masks_of
from patchers.units import CHANNELS, HEADS, Group, Structure

# Shape legend: U = units, W = features of a unit, I = input features of the consumer, O = output features.


@torch.no_grad()
def removable(model: nn.Module, structure: Structure) -> dict[str, Tensor]:
    """Return, per group of heads or channels, True for the units that matter, shape [U].

    A unit is free when its columns in the consumer are zero. It is constant when its producer rows (value rows of a
    head) are zero: then it adds `W_consumer @ constant`, which `fold_constants` moves into the consumer's bias. Some
    stay where kernels want a multiple of a number.
    """
    return {
        g.name: _rounded_up(g, ~(_free_U(model, g) | _constant_U(model, g)))
        for g in structure.of([HEADS, CHANNELS])
    }


def _rounded_up(group: Group, keep_U: Tensor) -> Tensor:
    """Return `keep_U` with the first of the others, up to a number of units that the kernels of the group take."""
    spare = -int(keep_U.sum()) % group.multiple_of
    keep_U[(~keep_U).nonzero().flatten()[:spare]] = True
    return keep_U


def _free_U(model: nn.Module, group: Group) -> Tensor:
    tensor = group.consumer_tensor
    if tensor is not None:
        zero = model.get_parameter(tensor.name) == 0
        zero_I = zero.transpose(0, tensor.dim).flatten(1).all(dim=1)
    else:
        zero_I = (weight_OI(linear_at(model, group.consumer)) == 0).all(dim=0)
    return zero_I[group.consumer_slice.index_UW.to(zero_I.device)].all(dim=1).cpu()


def _constant_U(model: nn.Module, group: Group) -> Tensor:
    """Return True where every value row is zero and the consumer can take the constant, shape [U]."""
    if not any(s.is_value for s in group.slices):
        return torch.zeros(group.num_units, dtype=torch.bool)
    constant_U = torch.ones(group.num_units, dtype=torch.bool)
    silent_U = torch.ones(group.num_units, dtype=torch.bool)
    for s in group.slices:
        if s.is_value:
            linear = linear_at(model, s.path)
            index_UW = s.index_UW.to(linear.weight.device)
            constant_U &= (weight_OI(linear) == 0).all(dim=1)[index_UW].all(dim=1).cpu()
            if linear.bias is not None:
                silent_U &= (linear.bias == 0)[index_UW].all(dim=1).cpu()
    if linear_at(model, group.consumer).bias is None:
        constant_U &= silent_U
    return constant_U


@torch.no_grad()
def zero_units(model: nn.Module, structure: Structure, keep: Mapping[str, Tensor]) -> None:
    """Zero what belongs to the units that `keep` marks False, in place: every slice of them, biases included."""
    for name, keep_U in keep.items():
        for s in structure[name].slices:
            linear = linear_at(model, s.path)
            gone = s.features(~keep_U.cpu()).to(linear.weight.device)
            weight_OI(linear).index_fill_(0 if s.axis == "out" else 1, gone, 0.0)
            if s.axis == "out" and linear.bias is not None:
                linear.bias.index_fill_(0, gone, 0.0)
        for t in structure[name].tensors:
            tensor = model.get_parameter(t.name)
            tensor.index_fill_(t.dim, t.features(~keep_U.cpu()).to(tensor.device), 0.0)


@torch.no_grad()
def fold_constants(
    model: nn.Module, structure: Structure, keep: Mapping[str, Tensor], run: Callable[[], Any]
) -> None:
    """Add what the constant units among the dropped ones contribute to their consumers' biases, in place.

    The constant (the activation of a producer's bias, the value bias of a head) is read off the consumer's input while
    `run` calls the model once in evaluation mode: whatever the input, it is the same for every token.
    """
    dropped = {
        g.consumer: g
        for g in structure.of([HEADS, CHANNELS])
        if g.name in keep and g.consumer_tensor is None and not bool(keep[g.name].all())
    }
    first_token: dict[str, Tensor] = {}

    def remember(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            first_token[path] = args[0].flatten(0, -2)[0]

        return hook

    with ExitStack() as stack:
        for path in dropped:
            handle = model.get_submodule(path).register_forward_pre_hook(remember(path))
            stack.callback(handle.remove)
        run()
    for path, group in dropped.items():
        if path in first_token:
            _fold(model, group, keep[group.name], first_token[path])


def _fold(model: nn.Module, group: Group, keep_U: Tensor, x_I: Tensor) -> None:
    linear = linear_at(model, group.consumer)
    gone_I = torch.ones_like(x_I, dtype=torch.bool)
    gone_I[group.consumer_slice.features(keep_U).to(x_I.device)] = False
    # In double precision: a sum over thousands of channels, folded once and for all.
    constant_O = weight_OI(linear).double()[:, gone_I] @ x_I[gone_I].double()
    if linear.bias is not None:
        linear.bias = parameter_like((linear.bias.double() + constant_O).to(linear.bias.dtype), linear.bias)


@torch.no_grad()
def bake_all(model: nn.Module, structure: Structure, gates: dict[str, Gate]) -> None:
    """Multiply the parameters of a model by its masks, and by the gates on its channels, in place."""
    for path, mask in masks_of(model).items():
        bake(linear_at(model, path), mask)
    zero_units(model, structure, {name: gate.keep_U > 0 for name, gate in gates.items()})
