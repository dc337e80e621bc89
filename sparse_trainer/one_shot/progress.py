"""How far pruning in steps has come: what is left, in units and costs of the model before the first step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from patchers.units import LAYERS, Group, Kind, Structure
from sparse_trainer.budget.options import Budget
from sparse_trainer.plan.document import Plan
from sparse_trainer.plan.searched import Searched


@dataclass
class Progress:
    """How far pruning in steps has come; units and costs are those before the first step."""

    kept: dict[str, int]
    """Units that are left, by group."""
    kinds: dict[str, Kind] = field(default_factory=dict)
    costs: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)
    largest: dict[Kind, int] = field(default_factory=dict)
    """Units of the largest group of each kind."""
    searches: list[Searched] = field(default_factory=list)
    """What searches for widths found."""

    def begin(self, structure: Structure, costs: Mapping[str, int]) -> Structure:
        """Return what can be pruned now: of a single KV group the query heads are the units, and they stay."""
        left = tuple(g for g in structure.groups if self.kept.get(g.name, g.num_units) == g.num_units)
        if not self.costs:
            self.kept = {g.name: g.num_units for g in left}
            self.kinds = {g.name: g.kind for g in left}
            self.costs = {g.name: costs[g.name] for g in left}
            self.sizes = _sizes(left, costs)
            for g in left:
                self.largest[g.kind] = max(g.num_units, self.largest.get(g.kind, 0))
        return replace(structure, groups=left)

    def density(self, structure: Structure, asked: float | dict[str, float], done: float) -> Any:
        """Return the density of this step, of what can be pruned now."""
        now = _sizes(structure.groups, self.costs)
        stuck = {name: count for name, count in self.kept.items() if name not in structure}
        spent = sum(self.costs[name] * count for name, count in stuck.items())
        if isinstance(asked, float):
            return _share(self.sizes[""], asked, done, spent, now[""])
        shares = {}
        for kind, density in asked.items():
            spent = sum(count for name, count in stuck.items() if self.kinds[name] == kind)
            shares[kind] = _share(self.sizes.get(kind, 1.0), density, done, spent, now.get(kind, 1.0))
        return shares

    def capped(self, budget: Budget, max_prune: float) -> Budget:
        """Return the budget with floors under which no group loses more than this share of its units."""
        floors = {
            kind: max(budget.floor_of(kind), math.ceil((1.0 - max_prune) * largest - 1e-9))
            for kind, largest in self.largest.items()
        }
        return replace(budget, min_keep=floors)

    def reached(self) -> float:
        """Return the share of the cost that is left."""
        return sum(self.costs[name] * count for name, count in self.kept.items()) / self.sizes[""]


def _share(size: float, density: float, done: float, spent: float, now: float) -> float:
    return min(1.0, max(1e-9, ((1.0 - (1.0 - density) * done) * size - spent) / now))


def _sizes(groups: Sequence[Group], costs: Mapping[str, int]) -> dict[str, float]:
    """Return the cost of everything under "", and the number of units of each kind."""
    sizes = {"": float(sum(costs[g.name] * g.num_units for g in groups))}
    for g in groups:
        sizes[g.kind] = sizes.get(g.kind, 0.0) + g.num_units
    return sizes


def kept_in(plan: Plan | None) -> dict[str, int]:
    """Return the units that earlier plans left, by group; where layers went, names have moved, and nothing is known."""
    if plan is None or any(g["kind"] == LAYERS and not g["keep"] for g in plan.groups.values()):
        return {}
    return {name: len(group["keep"]) for name, group in plan.groups.items()}
