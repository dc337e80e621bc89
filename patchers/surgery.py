"""Take closed units out of a model: every slice of them, for good."""

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from patchers.errors import UnsupportedModelError
from patchers.layers import Linear, bare_linear_at, features, keep_entries, keep_features, parameter_like
from patchers.modeling_pruned import Skip, add_select, keep_layers, selections_of, set_attribute
from patchers.units import (
    ATTENTION,
    FFN,
    HIDDEN,
    LAYERS,
    WIDTH_KINDS,
    Group,
    Select,
    Slice,
    Structure,
    TensorSlice,
)

# Shape legend: U = units of a group.


@torch.no_grad()
def cut(model: nn.Module, structure: Structure, keep: Mapping[str, Tensor]) -> None:
    """Remove the units that `keep` marks False, in place.

    Works on the meta device. Sizes and per-layer attributes of modules follow; the config is the caller's.
    A closed branch adds exactly nothing to the residual stream; an attention whose heads are all closed still adds
    the bias of its output linear, as the gated model does.

    Args:
        structure: What `discover` found in this model.
        keep: Boolean per unit, shape [U], by group name; a missing group is kept whole.
    """
    for name in keep:
        _check_shape(structure, name, keep[name])
    closed = {name for name, keep_U in keep.items() if not bool(keep_U.any())}
    gone_layers = {(g.stack, g.layer) for g in structure.of([LAYERS]) if g.name in closed}
    _check_sorts(structure, gone_layers)
    gone_branches = {g.consumer for g in structure.of([ATTENTION, FFN]) if g.name in closed}
    for group in structure.of([HIDDEN]):
        if group.name in keep:
            # Before all else: what takes the place of a branch has the width of what was there.
            _check_least(group, keep[group.name])
            _cut_stream(model, group, keep[group.name])
    for group in structure.of([ATTENTION, FFN]):
        if group.consumer in gone_branches and (group.stack, group.layer) not in gone_layers:
            _cut_branch(model, group)
    for group in structure.of(WIDTH_KINDS):
        whole = (group.stack, group.layer) in gone_layers or group.consumer in gone_branches
        if group.name in keep and not whole:
            _check_least(group, keep[group.name])
            _cut_width(model, group, keep[group.name])
    for stack in structure.stacks:
        _cut_layers(model, stack.path, {layer for path, layer in gone_layers if path == stack.path})


def _check_shape(structure: Structure, name: str, keep_U: Tensor) -> None:
    if name not in structure:
        raise UnsupportedModelError(
            name, "no such group in this model.", "Take a plan that was made for this model."
        )
    if keep_U.shape != (structure[name].num_units,):
        raise UnsupportedModelError(
            name,
            f"{tuple(keep_U.shape)} kept flags for {structure[name].num_units} units.",
            "Take a plan that was made for this model.",
        )


def _check_sorts(structure: Structure, gone: Collection[tuple[str, int]]) -> None:
    """Raise where no layer of a sort would be left: caches and masks look for the first of each."""
    for stack in structure.stacks:
        left = {sort for layer, sort in enumerate(stack.sorts) if (stack.path, layer) not in gone}
        lost = set(stack.sorts) - left
        if lost:
            raise UnsupportedModelError(
                stack.path,
                f"no layer with {min(lost) or 'feed-forward parts only'} would stay.",
                "Keep one layer of each sort.",
            )


def _check_least(group: Group, keep_U: Tensor) -> None:
    if int(keep_U.sum()) < group.min_units:
        raise UnsupportedModelError(
            group.name,
            f"{int(keep_U.sum())} of {group.num_units} units would stay; its module needs {group.min_units}.",
            "Keep more of them.",
        )
    num_kept = int(keep_U.sum())
    if not group.fits(num_kept):
        raise UnsupportedModelError(
            group.name,
            f"the kernels of its experts take multiples of {group.least_multiple} {group.kind}, not {num_kept}.",
            f"Prune with `multiple_of={group.multiple_of}`; or call model.set_experts_implementation('eager') first, "
            "and load the result with experts_implementation='eager'.",
        )


def _cut_width(model: nn.Module, group: Group, keep_U: Tensor) -> None:
    if bool(keep_U.all()):
        return
    if group.core is not None and not bool(keep_U.any()):
        _skip_attention(model, group, with_bias=True)
        return
    _cut_slices(model, group, keep_U)
    for select in group.selects:
        _narrow_select(model.get_submodule(select.path), select, keep_U)


def _cut_stream(model: nn.Module, group: Group, keep_U: Tensor) -> None:
    """Cut everything that holds hidden features; parameters that were shared still are."""
    if bool(keep_U.all()):
        return
    shared = _shared(model)
    _cut_slices(model, group, keep_U)
    for first, *others in shared:
        whole = model.get_parameter(first)
        for name in others:
            path, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(path), leaf, whole)


def _shared(model: nn.Module) -> list[list[str]]:
    """Return the names of each parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [same for same in names.values() if len(same) > 1]


def _cut_slices(model: nn.Module, group: Group, keep_U: Tensor) -> None:
    """Cut every slice of the units that go; attributes that count them follow."""
    # Of a fused linear several slices belong to the unit, and they must go at once: indices count the whole linear.
    at: dict[tuple[str, Literal["out", "in"]], list[Slice]] = {}
    for s in group.slices:
        at.setdefault((s.path, s.axis), []).append(s)
    for (path, axis), slices in at.items():
        whole = bare_linear_at(model, path)
        known = torch.cat([s.index_UW.flatten() for s in slices])
        kept = torch.cat([s.features(keep_U) for s in slices])
        keep_features(whole, axis, _with_rest(features(whole)[0 if axis == "out" else 1], known, kept))
    tensors: dict[tuple[str, int], list[TensorSlice]] = {}
    for t in group.tensors:
        tensors.setdefault((t.name, t.dim), []).append(t)
    for (name, dim), parts in tensors.items():
        keep_entries(model, name, dim, torch.cat([t.features(keep_U) for t in parts]).sort().values)
    for edit in group.edits:
        set_attribute(model.get_submodule(edit.path), edit.attribute, int(keep_U.sum()) * edit.per_unit)


def _with_rest(size: int, known: Tensor, kept: Tensor) -> Tensor:
    """Return the kept entries and those of no unit (the one KV head behind the queries), in order."""
    stays = torch.ones(size, dtype=torch.bool)
    stays[known] = False
    stays[kept] = True
    return stays.nonzero().flatten()


def _cut_branch(model: nn.Module, group: Group) -> None:
    if group.core is not None:
        _skip_attention(model, group, with_bias=False)
        return
    _cut_slices(model, group, torch.zeros(group.consumer_slice.units, dtype=torch.bool))
    _silence(bare_linear_at(model, group.consumer))


def _skip_attention(model: nn.Module, group: Group, *, with_bias: bool) -> None:
    """Replace the attention of a block by a no-op, or by the constant that its output linear adds."""
    assert group.core is not None
    attention = model.get_submodule(group.core.path)
    consumer = bare_linear_at(model, group.consumer)
    if group.core.owns_output:
        constant = consumer.bias if with_bias else None
        skip = Skip.of(attention, group.core.outputs, features(consumer)[0], constant is not None)
        if constant is not None:
            skip.bias = parameter_like(constant, constant)
    else:
        keep_features(consumer, "in", torch.empty(0, dtype=torch.long))
        if not with_bias:
            _silence(consumer)
        skip = Skip.of(attention, group.core.outputs, 0, bias=False)
    model.set_submodule(group.core.path, skip)


def _silence(linear: Linear) -> None:
    if linear.bias is not None:
        linear.bias.zero_()


def _narrow_select(module: nn.Module, select: Select, keep_U: Tensor) -> None:
    """Add, or narrow, the selection that picks the remaining entries of a per-unit argument."""
    entries = torch.arange(select.units * select.width).view(select.units, select.width)
    kept = entries[keep_U.cpu()].flatten().tolist()
    existing = next((s for s in selections_of(module) if s.argument == select.argument), None)
    if existing is not None:
        existing.index = tuple(existing.index[i] for i in kept)
        return
    add_select(
        module, argument=select.argument, position=select.position, dim=select.dim, index=kept,
        of=entries.numel(), returned=select.returned,
    )  # fmt: skip


def _cut_layers(model: nn.Module, stack: str, gone: set[int]) -> None:
    if not gone:
        return
    size = len(list(model.get_submodule(stack).children()))
    kept = [layer for layer in range(size) if layer not in gone]
    if not kept:
        raise UnsupportedModelError(stack, "every layer would be removed.", "Keep at least one.")
    keep_layers(model, stack, kept)
