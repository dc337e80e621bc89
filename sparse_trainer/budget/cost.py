"""What a unit costs, in parameters or multiply-accumulates (MACs) per token."""

from collections.abc import Collection, Sequence

from torch import Tensor, nn

from patchers.discovery.discover import discover
from patchers.layers import LINEAR_TYPES, features, linear_at
from patchers.patching.marks import SCORE_ENTRIES
from patchers.units import (
    ATTENTION,
    EXPERTS,
    HEADS,
    HIDDEN,
    LAYERS,
    Group,
    Slice,
    Structure,
    TensorSlice,
)

Target = str
TARGETS: tuple[Target, ...] = ("params", "macs", "units")


def unit_cost(model: nn.Module, group: Group, target: Target, sequence_length: int = 128) -> int:
    """Return the cost of one unit of `group`.

    params: rows (with biases) and columns of the unit in every linear; of a layer, everything in the block; of a hidden
    feature, the linears in all blocks.
    macs: multiply-accumulates per token in those linears; heads add 2 * sequence_length * head_dim for the attention
    products. units: 1.
    """
    if target == "units":
        return 1
    if group.kind == LAYERS:
        block = model.get_submodule(group.block)
        if target == "params":
            return sum(p.numel() for p in block.parameters())
        return sum(_linear_macs(m) for m in block.modules()) + _attention_macs(model, group, sequence_length)
    if group.kind == HIDDEN:
        return sum(_slice_cost(model, s, target) for s in group.slices if _is_inside(s.path, group))
    units = 1 if group.kind.is_width else group.consumer_slice.units
    per_unit = sum(_slice_cost(model, s, target) for s in group.slices)
    per_unit += sum(_tensor_cost(model, t, target, group) for t in group.tensors)
    if target == "macs":
        per_unit += 2 * sequence_length * _head_width(group)
    return units * per_unit


def _is_inside(path: str, hidden: Group) -> bool:
    return path.startswith(f"{hidden.stack}.")


def feature_costs(model: nn.Module, groups: Sequence[Group], target: Target) -> dict[str, int]:
    """Return what of the cost of a unit goes with every hidden feature, by group name; empty where none can go.

    A channel reads and writes hidden features: with a feature one entry of each of its rows and columns goes. Of the
    hidden features themselves, what no other group has: biases, and linears of kinds that are not pruned.
    """
    hidden = next((g for g in groups if g.kind == HIDDEN), None)
    if hidden is None or target == "units":
        return {}
    axes = {(s.path, s.axis) for s in hidden.slices}
    found = {g.name: _per_feature(model, g, hidden, axes, target) for g in groups if g is not hidden}
    blocks = tuple(f"{g.block}." for g in groups if g.kind == LAYERS) or ("\0",)
    alone = [s for s in hidden.slices if _is_inside(s.path, hidden) and not s.path.startswith(blocks)]
    own = sum(_slice_cost(model, s, target) for s in alone)
    branches = {g.inner for g in groups if g.inner is not None}
    for g in (g for g in groups if g.kind not in (HIDDEN, LAYERS) and g.name not in branches):
        own -= 0 if g.slices[0].path.startswith(blocks) else found[g.name] * g.num_units
    return found | {hidden.name: own}


def _per_feature(
    model: nn.Module, group: Group, hidden: Group, axes: Collection[tuple[str, str]], target: Target
) -> int:
    if group.kind == LAYERS:
        inside = f"{group.block}."
        cost = sum(_slice_cost(model, s, target) for s in hidden.slices if s.path.startswith(inside))
        tensors = [t for t in hidden.tensors if t.name.startswith(inside)]
        return cost + sum(_tensor_cost(model, t, target, hidden) for t in tensors)
    units = 1 if group.kind.is_width else group.consumer_slice.units
    other = {"in": "out", "out": "in"}
    return units * sum(s.width for s in group.slices if (s.path, other[s.axis]) in axes)


def _slice_cost(model: nn.Module, s: Slice, target: Target) -> int:
    linear = linear_at(model, s.path)
    outputs, inputs = features(linear)
    if s.axis == "in":
        return s.width * outputs
    return s.width * (inputs + (target == "params" and linear.bias is not None))


def _tensor_cost(model: nn.Module, t: TensorSlice, target: Target, group: Group) -> int:
    """Return the cost of a unit's entries in a bare tensor: channels of experts multiply, all else only counts.

    A token meets as many experts as before when some are gone, so whole experts cost no MACs.
    """
    tensor = _tensor_at(model, t.name)
    entries = tensor.numel() // tensor.shape[t.dim] * t.width
    if target == "params":
        return entries if isinstance(tensor, nn.Parameter) else 0
    return round(entries * group.active) if tensor.dim() == 3 and group.kind != EXPERTS else 0


def _tensor_at(model: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    return owner.get_buffer(leaf) if leaf in owner._buffers else owner.get_parameter(leaf)


def _head_width(group: Group) -> int:
    return group.consumer_slice.width if group.kind in (HEADS, ATTENTION) else 0


def _linear_macs(module: nn.Module) -> int:
    if not isinstance(module, LINEAR_TYPES):
        return 0
    outputs, inputs = features(module)
    return outputs * inputs


def _attention_macs(model: nn.Module, group: Group, sequence_length: int) -> int:
    heads = [g for g in discover(model, [HEADS]).groups if g.block == group.block]
    return sum(2 * sequence_length * g.consumer_slice.width * g.num_units for g in heads)


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters, shared ones once, gates left out."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.endswith(SCORE_ENTRIES))


def mac_count(model: nn.Module, structure: Structure, sequence_length: int = 128) -> int:
    """Return the MACs per token of all linears and of the attention products that `structure` knows."""
    linears = sum(_linear_macs(module) for module in model.modules())
    heads = structure.of([HEADS])
    return linears + sum(2 * sequence_length * g.consumer_slice.width * g.num_units for g in heads)
