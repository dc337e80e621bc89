"""What a budget demands, and which groups lie inside which, so that what is in both is counted once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from patchers.units import HIDDEN, LAYERS, Group

# Shape legend: U = units of a group.


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """One thing that a budget demands: the units of some groups share a density."""

    costs: Mapping[str, float]
    """What one unit counts, by group name."""
    total: float
    density: float
    around: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the groups that enclose a group: its units count while those stay. None = each counts by itself."""
    shared: Mapping[str, float] = field(default_factory=dict)
    """What of a unit's cost is proportional to the share of hidden features that stay, by group name."""
    hidden: str | None = None
    """Name of the group of these features."""
    bends: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Where a group's cost is not proportional to its units: its share at 0, 1/n, 2/n, … of them, by group name."""


@final
class Nesting:
    """The tree of groups: heads in attention branches, channels in feed-forward branches, branches in layers.

    A unit counts while it and all that encloses it stay; what it has of hidden features, as far as those stay.

    Args:
        groups: Groups of any kinds but experts beside channels.
        costs: Cost of one unit, what lies inside it included, by group name.
        per_feature: What of it goes with one hidden feature (`cost.feature_costs`).
    """

    def __init__(
        self, groups: Sequence[Group], costs: Mapping[str, int], per_feature: Mapping[str, int] | None = None
    ) -> None:
        self.groups = tuple(groups)
        branch_of = {g.inner: g.name for g in groups if g.inner is not None}
        layer_of = {g.block: g.name for g in groups if g.kind == LAYERS}
        self.around: dict[str, tuple[str, ...]] = {}
        """Names of the groups that enclose a group, the nearest first."""
        for g in groups:
            found = (branch_of.get(g.name), None if g.kind == LAYERS else layer_of.get(g.block))
            self.around[g.name] = tuple(name for name in found if name is not None)
        self.hidden = next((g for g in groups if g.kind == HIDDEN), None)
        parts = dict(per_feature or {})
        self.own = self._without_inner(costs)
        """Cost of one unit without what lies in groups of its own."""
        self.shared: dict[str, int] = {}
        """What of `own` is proportional to the share of hidden features that stay."""
        if self.hidden is not None and parts:
            self.own[self.hidden.name] = parts.pop(self.hidden.name)
            inner = self._without_inner({**parts, self.hidden.name: 0})
            self.shared = {name: inner[name] * self.hidden.num_units for name in parts}
        self.total = sum(self.own[g.name] * g.num_units for g in groups)

    def _without_inner(self, costs: Mapping[str, int]) -> dict[str, int]:
        inside = dict.fromkeys(costs, 0)
        for g in self.groups:
            if self.around[g.name]:
                inside[self.around[g.name][0]] += costs[g.name] * g.num_units
        return {g.name: max(0, costs[g.name] - inside[g.name]) for g in self.groups}

    def is_apart(self, group: Group) -> bool:
        """Tell whether these are the hidden features in which other units have a share."""
        return group is self.hidden and bool(self.shared)

    def constraint(self, density: float) -> Constraint:
        """Return what must hold where all groups share one density."""
        return Constraint(
            costs={name: float(cost) for name, cost in self.own.items()},
            total=float(self.total),
            density=density,
            around=self.around,
            shared={name: float(cost) for name, cost in self.shared.items()},
            hidden=None if self.hidden is None else self.hidden.name,
        )

    @property
    def outer(self) -> tuple[Group, ...]:
        """Groups that enclose others, in model order."""
        enclosing = {name for names in self.around.values() for name in names}
        return tuple(g for g in self.groups if g.name in enclosing)

    def kept(self, keep: Mapping[str, Tensor]) -> float:
        """Return the cost of the units that stay, each once."""
        gone = 0.0 if self.hidden is None else 1.0 - float(keep[self.hidden.name].double().mean())
        return sum(
            float(keep[g.name].sum()) * (self.own[g.name] - gone * self.shared.get(g.name, 0))
            for g in self.groups
            if all(bool(keep[name].any()) for name in self.around[g.name])
        )
