"""Stacked experts of a mixture: their channels, and whole experts, by the attributes that describe them."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from patchers.discovery.channels import pair_index, width_edits
from patchers.discovery.findings import Part, Refusal
from patchers.discovery.tables.names import NUM_EXPERTS
from patchers.errors import UnsupportedModelError
from patchers.layers import join
from patchers.units import CHANNELS, EXPERTS, Edit, TensorSlice

_STRIDE_BYTES = 16
"""Grouped matrix products want rows of so many bytes, or a multiple (torch 2.13)."""
_HALF_BYTES = 2
_ANY_WIDTH = (None, "eager", "batched_mm")
"""Implementations of experts in transformers that take any width; None = what the class itself does."""
_CORRECTION = ("correction_bias", "expert_bias")


def read_experts(model: nn.Module, path: str) -> Part | Refusal:
    """Return the channels of stacked experts: a channel goes in every expert at once."""
    experts: Any = model.get_submodule(path)
    own, tensors = vars(experts), dict(experts.named_parameters(recurse=False))
    up = "gate_up_proj" if own["has_gate"] else "up_proj"
    if up not in tensors or tensors["down_proj"].dim() != 3:
        return Refusal(path=join(path, "down_proj"), reason="the weights of the experts are not stacked")
    in_dim, out_dim = (1, 2) if own["is_transposed"] else (2, 1)
    width = tensors["down_proj"].shape[in_dim]
    if tensors[up].shape[out_dim] != (2 * width if own["has_gate"] else width):
        raise UnsupportedModelError(
            join(path, up), f"{tensors[up].shape[out_dim]} output features for {width} channels.",
            "Restore the checkpoint: its weights belong to different models.",
        )  # fmt: skip
    index = pair_index(width, concatenated=own["is_concatenated"]) if own["has_gate"] else None
    per = 2 if own["has_gate"] else 1
    slices = [TensorSlice(name=join(path, up), dim=out_dim, units=width, width=per, index=index)]
    if f"{up}_bias" in tensors:
        slices.append(TensorSlice(name=join(path, f"{up}_bias"), dim=1, units=width, width=per, index=index))
    slices.append(
        TensorSlice(name=join(path, "down_proj"), dim=in_dim, units=width, width=1, is_consumer=True)
    )
    count = tensors["down_proj"].shape[0]
    return Part(
        path=path,
        form="experts",
        kind=CHANNELS,
        units=width,
        consumer=path,
        tensors=tuple(slices),
        edits=tuple(width_edits(model, (path, path.rpartition(".")[0]), width)),
        min_units=1,
        multiple_of=_STRIDE_BYTES // _HALF_BYTES,
        least_multiple=_least_multiple(experts),
        active=_active(model, path, count),
    )


def _least_multiple(experts: Any) -> int:
    """Return what the number of channels has to be a multiple of, so that the down projection has aligned rows.

    Models trained in float32 are served in half precision, so that is what is kept by default (`multiple_of`); this is
    what the experts cannot do without as they are now.
    """
    config = vars(experts).get("config")
    if config is None or config._experts_implementation in _ANY_WIDTH:
        return 1
    down: Tensor = experts.down_proj
    return max(1, _STRIDE_BYTES // down.element_size())


def _active(model: nn.Module, path: str, count: int) -> float:
    """Return the share of the experts that a token meets, by the `top_k` of the router beside them."""
    block = model.get_submodule(path.rpartition(".")[0])
    for module in (block, *(child for _, child in block.named_children())):
        top = vars(module).get("top_k")
        if isinstance(top, int) and 0 < top <= count:
            return top / count
    return 1.0


def read_router(model: nn.Module, path: str) -> Part | Refusal | None:
    """Return the experts at `path` as units, with the router beside them; None where there is no router to cut.

    A router is a module beside the experts with one row of weights per expert.
    """
    block_path = path.rpartition(".")[0]
    block, experts = model.get_submodule(block_path), model.get_submodule(path)
    count = next(experts.parameters()).shape[0]
    routers = [
        name
        for name, child in block.named_children()
        if child is not experts and (weight := dict(child.named_parameters()).get("weight")) is not None
        if weight.dim() == 2 and weight.shape[0] == count
    ]
    if len(routers) != 1:
        return None
    router = join(block_path, routers[0])
    own = dict(_tensors_of(model.get_submodule(router)))
    reason = _unsound_router(model, router, own)
    if reason is not None:
        return Refusal(path=router, reason=reason)
    tensors = [
        TensorSlice(name=join(where, name), dim=0, units=count, width=1)
        for where, module in ((router, model.get_submodule(router)), (path, experts))
        for name, tensor in _tensors_of(module)
        if tensor.dim() > 0 and tensor.shape[0] == count
    ]
    edits = [
        Edit(path=where, attribute=name, per_unit=1)
        for where in (block_path, router, path)
        for name in NUM_EXPERTS
        if vars(model.get_submodule(where)).get(name) == count
    ]
    chosen = round(_active(model, path, count) * count)
    # A closed expert is one that the router cannot choose; a token meets so many of those that stay.
    return Part(
        path=block_path,
        form="router",
        kind=EXPERTS,
        units=count,
        consumer=router,
        tensors=tuple(tensors),
        edits=tuple(edits),
        min_units=chosen,
    )


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _unsound_router(model: nn.Module, router: str, own: dict[str, Tensor]) -> str | None:
    module = model.get_submodule(router)
    beside = model.get_submodule(router.rpartition(".")[0])
    if any(name.endswith(_CORRECTION) for name in beside.state_dict()):
        return "it ranks experts by a correction bias beside their scores"
    if any(not tensor.is_floating_point() for tensor in own.values()):
        return "a table of tokens chooses the experts"
    groups = (vars(module).get(name) for name in ("n_group", "num_group", "topk_group"))
    if any(isinstance(group, int) and group > 1 for group in groups):
        return "it chooses groups of experts first"
    return None
