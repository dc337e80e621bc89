"""Blocks that share their linears: several layers, one set of weights, each with norms of its own.

Follows the idea of grouping in FoldGPT (Liu et al. 2024, arXiv 2407.00928).
"""

from collections.abc import Sequence
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from patchers.errors import UnsupportedModelError
from patchers.layers import LINEAR_TYPES, is_linear
from patchers.modeling_pruned import is_no_norm, share_parameter

Start = Literal["first", "mean"]
STARTS: Final = ("first", "mean")
"""What a group starts from: the weights of its first block, or the mean over its blocks."""


@torch.no_grad()
def share_blocks(
    model: nn.Module, stack: str, groups: Sequence[Sequence[int]], *, start: Start, own_biases: bool
) -> None:
    """Make the linears of the blocks of each group one set of parameters, in place.

    The modules stay apart: each block keeps its norms, its number and its place in the cache; their parameters are
    the same objects, so gradients add up, and an optimizer meets them once.

    Args:
        stack: Path of the list of blocks.
        groups: Numbers of the blocks of each group; `check_shareable` has to hold.
        own_biases: Leave each block the biases of its linears.
    """
    for first, *others in groups:
        for name in _names(model.get_submodule(f"{stack}.{first}"), own_biases=own_biases):
            source = f"{stack}.{first}.{name}"
            if start == "mean":
                weights = [model.get_parameter(f"{stack}.{block}.{name}") for block in (first, *others)]
                model.get_parameter(source).copy_(_mean(weights))
            for block in others:
                share_parameter(model, f"{stack}.{block}.{name}", source)


def check_shareable(model: nn.Module, stack: str, groups: Sequence[Sequence[int]]) -> None:
    """Raise `UnsupportedModelError` unless the blocks of each group can share their linears."""
    shared = shared_parameters(model, stack)
    places = {name.removeprefix(f"{stack}.").partition(".")[0] for pair in shared.items() for name in pair}
    taken = next((block for group in groups for block in group if str(block) in places), None)
    if taken is not None:
        raise UnsupportedModelError(
            f"{stack}.{taken}", "shares weights with another layer already.", "Name other layers."
        )
    for group in groups:
        first = f"{stack}.{group[0]}"
        for block in group:
            _check_block(model, f"{stack}.{block}")
            _check_alike(model, first, f"{stack}.{block}")


def shared_parameters(model: nn.Module, stack: str) -> dict[str, str]:
    """Return the parameters in a list of blocks that are one with an earlier one: name -> name of the earlier."""
    seen: dict[int, str] = {}
    found: dict[str, str] = {}
    for name, parameter in model.get_submodule(stack).named_parameters(stack, remove_duplicate=False):
        source = seen.setdefault(id(parameter), name)
        if (
            source.removeprefix(f"{stack}.").partition(".")[0]
            != name.removeprefix(f"{stack}.").partition(".")[0]
        ):
            found[name] = source
    return found


def _names(block: nn.Module, *, own_biases: bool) -> list[str]:
    """Return the names of the parameters of a block that are shared."""
    return [
        f"{path}.{leaf}"
        for path, module in block.named_modules()
        if isinstance(module, LINEAR_TYPES)
        for leaf, _ in module.named_parameters(recurse=False)
        if leaf == "weight" or not own_biases
    ]


def _mean(weights: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(weights[0], dtype=torch.float32)
    for weight in weights:
        total += weight
    return (total / len(weights)).to(weights[0].dtype)


def _check_block(model: nn.Module, path: str) -> None:
    """Raise where a block holds matrices that are not the weights of linears, or linears inside adapters."""
    for name, module in model.get_submodule(path).named_modules():
        where = f"{path}.{name}" if name else path
        if is_linear(module) and not isinstance(module, LINEAR_TYPES):
            raise UnsupportedModelError(
                where,
                "is wrapped by an adapter.",
                "Share first, and put adapters on the result; or merge them (merge_and_unload).",
            )
        if isinstance(module, (*LINEAR_TYPES, nn.Embedding)) or is_no_norm(module):
            continue
        matrix = next((n for n, p in module.named_parameters(recurse=False) if p.dim() > 1), None)
        if matrix is not None:
            raise UnsupportedModelError(
                f"{where}.{matrix}",
                "is no weight of a linear: layers with stacked experts, convolutions or states cannot share.",
                "Name layers without them.",
            )


def _check_alike(model: nn.Module, first: str, other: str) -> None:
    one, two = _linears(model.get_submodule(first)), _linears(model.get_submodule(other))
    for name in sorted(one.keys() | two.keys()):
        if one.get(name) != two.get(name):
            raise UnsupportedModelError(
                f"{other}.{name}",
                f"is {_said(two.get(name))}, and in {first} {_said(one.get(name))}: they cannot share.",
                "Name layers of equal widths; prune with `scope='uniform'`.",
            )


def _linears(block: nn.Module) -> dict[str, Any]:
    """Return type, shapes, dtype and device of every linear of a block, by its path."""
    return {
        path: (
            type(module).__name__,
            *(f"{leaf} {list(p.shape)} {p.dtype} {p.device}" for leaf, p in module.named_parameters()),
        )
        for path, module in block.named_modules()
        if isinstance(module, LINEAR_TYPES)
    }


def _said(linear: tuple[str, ...] | None) -> str:
    return "missing" if linear is None else ", ".join(linear)
