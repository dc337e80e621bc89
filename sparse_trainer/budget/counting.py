"""Costs that are counted: parameters, and multiply-accumulates (MACs) per token."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from patchers.layers import LINEAR_TYPES, Linear, features, linear_at
from patchers.patching.gates import SCORE_ENTRIES
from patchers.units import ATTENTION, EXPERTS, HEADS, HIDDEN, LAYERS, Group, Slice, Structure, TensorSlice


@final
class Params:
    """Parameters."""

    def row(self, linear: Linear) -> int:
        """Return the inputs, and 1 for a bias."""
        return features(linear)[1] + (linear.bias is not None)

    def entries(self, tensor: Tensor, count: int, group: Group) -> int:
        """Return all entries of parameters, none of buffers."""
        return count if isinstance(tensor, nn.Parameter) else 0

    def attention(self, width: int) -> int:
        """Return 0."""
        return 0

    def block(self, block: nn.Module) -> int:
        """Return all parameters."""
        return sum(p.numel() for p in block.parameters())


@final
@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates per token."""

    sequence_length: int

    def row(self, linear: Linear) -> int:
        """Return the inputs."""
        return features(linear)[1]

    def entries(self, tensor: Tensor, count: int, group: Group) -> int:
        """Return the entries of channels in experts, as often as a token meets them.

        A token meets as many experts as before when some are gone, so whole experts cost no MACs.
        """
        return round(count * group.active) if tensor.dim() == 3 and group.kind != EXPERTS else 0

    def attention(self, width: int) -> int:
        """Return those of queries with keys, and of weights with values."""
        return 2 * self.sequence_length * width

    def block(self, block: nn.Module) -> int:
        """Return those of all linears."""
        return _linear_macs(block)


@final
class Counting:
    """The cost model that counts one quantity: rows and columns of a unit in every linear, entries of other tensors.

    A layer costs all that is in its block; a hidden feature its rows and columns in the linears of all blocks.
    """

    def __init__(self, quantity: Params | Macs) -> None:
        self.quantity = quantity

    def unit(self, model: nn.Module, group: Group) -> int:
        """Return the cost of one unit, as in `CostModel`."""
        if group.kind == LAYERS:
            block = self.quantity.block(model.get_submodule(group.block))
            return block + self.quantity.attention(group.heads_width)
        if group.kind == HIDDEN:
            return sum(self._slice(model, s) for s in group.slices if _is_inside(s.path, group))
        cost = sum(self._slice(model, s) for s in group.slices)
        cost += sum(self._tensor(model, t, group) for t in group.tensors)
        if group.kind in (HEADS, ATTENTION):
            cost += self.quantity.attention(group.consumer_slice.width)
        return cost if group.kind.is_width else group.consumer_slice.units * cost

    def per_feature(self, model: nn.Module, groups: Sequence[Group]) -> dict[str, int]:
        """Return what goes with a hidden feature, as in `CostModel`."""
        hidden = next((g for g in groups if g.kind == HIDDEN), None)
        if hidden is None:
            return {}
        axes = {(s.path, s.axis) for s in hidden.slices}
        found = {g.name: self._shared(model, g, hidden, axes) for g in groups if g is not hidden}
        blocks = tuple(f"{g.block}." for g in groups if g.kind == LAYERS) or ("\0",)
        alone = [s for s in hidden.slices if _is_inside(s.path, hidden) and not s.path.startswith(blocks)]
        own = sum(self._slice(model, s) for s in alone)
        branches = {g.inner for g in groups if g.inner is not None}
        for g in (g for g in groups if g.kind not in (HIDDEN, LAYERS) and g.name not in branches):
            own -= 0 if g.slices[0].path.startswith(blocks) else found[g.name] * g.num_units
        return found | {hidden.name: own}

    def _shared(
        self, model: nn.Module, group: Group, hidden: Group, axes: Collection[tuple[str, str]]
    ) -> int:
        if group.kind == LAYERS:
            inside = f"{group.block}."
            cost = sum(self._slice(model, s) for s in hidden.slices if s.path.startswith(inside))
            tensors = [t for t in hidden.tensors if t.name.startswith(inside)]
            return cost + sum(self._tensor(model, t, hidden) for t in tensors)
        units = 1 if group.kind.is_width else group.consumer_slice.units
        other = {"in": "out", "out": "in"}
        return units * sum(s.width for s in group.slices if (s.path, other[s.axis]) in axes)

    def _slice(self, model: nn.Module, s: Slice) -> int:
        linear = linear_at(model, s.path)
        return s.width * (features(linear)[0] if s.axis == "in" else self.quantity.row(linear))

    def _tensor(self, model: nn.Module, t: TensorSlice, group: Group) -> int:
        path, _, leaf = t.name.rpartition(".")
        owner = model.get_submodule(path)
        tensor = owner.get_buffer(leaf) if leaf in owner._buffers else owner.get_parameter(leaf)
        return self.quantity.entries(tensor, tensor.numel() // tensor.shape[t.dim] * t.width, group)


def _is_inside(path: str, hidden: Group) -> bool:
    return path.startswith(f"{hidden.stack}.")


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters, shared ones once, gates left out."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.endswith(SCORE_ENTRIES))


def mac_count(model: nn.Module, structure: Structure, sequence_length: int = 128) -> int:
    """Return the MACs per token of all linears and of the attention products that `structure` knows."""
    heads = structure.of([HEADS])
    products = sum(2 * sequence_length * g.consumer_slice.width * g.num_units for g in heads)
    return _linear_macs(model) + products


def _linear_macs(model: nn.Module) -> int:
    sizes = [features(module) for module in model.modules() if isinstance(module, LINEAR_TYPES)]
    return sum(outputs * inputs for outputs, inputs in sizes)
