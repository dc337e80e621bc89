"""A model whose groups can be put at any width and back again: units closed by gates, what reads them refitted."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from patchers.layers import bare_linear_at, features, weight_OI
from patchers.patching.gates import Gate
from patchers.patching.patch import patch, unpatch
from patchers.units import Group, Structure
from sparse_trainer.one_shot.allocation import highest
from sparse_trainer.one_shot.repairs.base import Repair
from sparse_trainer.one_shot.repairs.refit import prepare_biases, refitted
from sparse_trainer.statistics.requests import Statistics

# Shape legend: U = units of a group, O = outputs, I = input features of a consumer.


@dataclass(frozen=True, kw_only=True)
class Width:
    """A group with some of its units, ready to be put into the model."""

    group: Group
    keep_U: Tensor
    weight_OI: Tensor | None
    """Of the consumer, refitted; None = as it was."""
    bias_O: Tensor | None


@final
class Stitched:
    """Puts groups at widths, in place.

    Args:
        gates: One for each group, all open.
        ranks: Scores of the units, shape [U], by group name: of a group the highest stay.
        repair: What refits the consumers; None = nothing.
        statistics: What the repair asks for.
    """

    def __init__(
        self,
        model: Any,
        gates: Mapping[str, Gate],
        ranks: Mapping[str, Tensor],
        repair: Repair | None,
        statistics: Statistics,
    ) -> None:
        self.model, self.gates, self.ranks = model, gates, ranks
        self.repair, self.statistics = repair, statistics
        self._dense: dict[str, Width] = {}

    def width(self, group: Group, count: int) -> Width:
        """Return a group with its best units, its consumer refitted from the dense weights."""
        keep_U = highest(self.ranks[group.name].cpu(), count)
        if self.repair is None or count == group.num_units:
            return Width(group=group, keep_U=keep_U, weight_OI=None, bias_O=None)
        moments = self.statistics.by_group(self.repair.request, [group])[group.name]
        dense = self._dense.get(group.name) or self._stored(group)
        assert dense.weight_OI is not None
        weight, bias = refitted(dense.weight_OI, dense.bias_O, group, keep_U, moments, self.repair)
        return Width(group=group, keep_U=keep_U, weight_OI=weight, bias_O=bias)

    def size(self, group: Group) -> int:
        """Return how many numbers a width of the group holds."""
        return 0 if self.repair is None else math.prod(features(bare_linear_at(self.model, group.consumer)))

    def put(self, width: Width) -> None:
        """Put a group at a width."""
        name = width.group.name
        self.gates[name].set_keep(width.keep_U)
        if self.repair is None:
            return
        if name not in self._dense:
            self._dense[name] = self._stored(width.group)
        self._write(self._dense[name])
        self._write(width)

    def restore(self, group: Group) -> None:
        """Make a group whole again."""
        self.gates[group.name].set_keep(torch.ones(group.num_units, dtype=torch.bool))
        dense = self._dense.pop(group.name, None)
        if dense is not None:
            self._write(dense)

    @torch.no_grad()
    def _stored(self, group: Group) -> Width:
        linear = bare_linear_at(self.model, group.consumer)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        keep_U = torch.ones(group.num_units, dtype=torch.bool)
        return Width(group=group, keep_U=keep_U, weight_OI=weight_OI(linear).detach().clone(), bias_O=bias)

    @torch.no_grad()
    def _write(self, width: Width) -> None:
        linear = bare_linear_at(self.model, width.group.consumer)
        if width.weight_OI is not None:
            weight_OI(linear).copy_(width.weight_OI)
        if width.bias_O is not None:
            linear.bias.copy_(width.bias_O)


@contextmanager
def stitched(
    model: Any,
    structure: Structure,
    ranks: Mapping[str, Tensor],
    repair: Repair | None,
    statistics: Statistics,
) -> Iterator[Stitched]:
    """Hang a gate on every group for the time of a `with` block; afterwards the model is what it was before."""
    if repair is not None:
        prepare_biases(model, structure, repair)
    gates = patch(model, structure, lambda group: Gate(group.num_units, scored=False))
    found = Stitched(model, gates, ranks, repair, statistics)
    try:
        yield found
    finally:
        for group in structure.groups:
            found.restore(group)
        unpatch(model)
