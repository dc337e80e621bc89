"""One view of the layers that surgery touches: sizes, and slicing that keeps dtype, device and gradient flag."""

from typing import Final, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from patchers.errors import UnsupportedModelError

# Shape legend: O = output features, I = input features, K = kept features.

LINEAR_TYPES = (nn.Linear, Conv1D)
Linear = nn.Linear | Conv1D
BASE: Final = "base_layer"
"""The child of an adapter that it wraps: peft's name."""


def is_linear(module: nn.Module) -> bool:
    """Tell whether a module is a linear layer, or an adapter around one."""
    return isinstance(dict(module.named_children()).get(BASE, module), LINEAR_TYPES)


def join(path: str, *parts: str) -> str:
    """Return a dotted path; empty parts vanish.

    >>> join("a.b", "", "c"), join("", "c")
    ('a.b.c', 'c')
    """
    return ".".join(part for part in (path, *parts) if part)


def present(module: nn.Module) -> set[str]:
    """Return the paths of everything inside a module."""
    return {path for path, _ in module.named_modules()}


def linear_at(model: nn.Module, path: str) -> Linear:
    """Return the linear at `path`, to read: looking through an adapter that wraps it (peft's `base_layer`)."""
    module = model.get_submodule(path)
    wrapped = dict(module.named_children()).get(BASE)
    return _as_linear(module if wrapped is None else wrapped, path)


def bare_linear_at(model: nn.Module, path: str) -> Linear:
    """Return the linear at `path`, to cut: nothing may wrap it."""
    return _as_linear(model.get_submodule(path), path)


def _as_linear(module: nn.Module, path: str) -> Linear:
    if not isinstance(module, LINEAR_TYPES):
        raise UnsupportedModelError(
            path,
            f"expected a linear layer, found {type(module).__module__}.{type(module).__name__}.",
            "Merge adapters (merge_and_unload) first, and prune before quantizing.",
        )
    return module


def weight_OI(linear: Linear) -> Tensor:
    """Return the weight as [output, input], whatever the layer stores.

    >>> weight_OI(nn.Linear(3, 2)).shape
    torch.Size([2, 3])
    """
    return linear.weight.T if isinstance(linear, Conv1D) else linear.weight


def features(linear: Linear) -> tuple[int, int]:
    """Return (output features, input features).

    >>> features(nn.Linear(3, 2))
    (2, 3)
    """
    rows, columns = weight_OI(linear).shape
    return rows, columns


def parameter_like(tensor: Tensor, original: Tensor) -> nn.Parameter:
    """Wrap `tensor` with the gradient flag of `original`."""
    return nn.Parameter(tensor.detach().contiguous(), requires_grad=original.requires_grad)


@torch.no_grad()
def keep_features(linear: Linear, axis: Literal["out", "in"], index_K: Tensor) -> None:
    """Cut `linear` down to these output or input features, in place.

    >>> layer = nn.Linear(3, 4)
    >>> keep_features(layer, "out", torch.tensor([0, 2])); layer
    Linear(in_features=3, out_features=2, bias=True)
    """
    index_K = index_K.to(linear.weight.device)
    dim = 0 if axis == "out" else 1
    kept = weight_OI(linear).index_select(dim, index_K)
    linear.weight = parameter_like(kept.T if isinstance(linear, Conv1D) else kept, linear.weight)
    if axis == "out" and linear.bias is not None:
        linear.bias = parameter_like(linear.bias.index_select(0, index_K), linear.bias)
    set_features(linear)


@torch.no_grad()
def keep_entries(model: nn.Module, name: str, dim: int, index_K: Tensor) -> None:
    """Cut a parameter down to these entries of one dimension, in place."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if leaf in owner._buffers:
        buffer = owner.get_buffer(leaf)
        setattr(owner, leaf, buffer.index_select(dim, index_K.to(buffer.device)))
        return
    whole = owner.get_parameter(leaf)
    setattr(owner, leaf, parameter_like(whole.index_select(dim, index_K.to(whole.device)), whole))
    if isinstance(owner, nn.Embedding):
        owner.num_embeddings, owner.embedding_dim = owner.weight.shape
    elif isinstance(owner, nn.LayerNorm | nn.RMSNorm):
        owner.normalized_shape = tuple(owner.weight.shape)


def set_features(linear: Linear) -> None:
    """Make the layer's size attributes agree with its weight."""
    outputs, inputs = features(linear)
    if isinstance(linear, Conv1D):
        linear.nf, linear.nx = outputs, inputs
    else:
        linear.out_features, linear.in_features = outputs, inputs
