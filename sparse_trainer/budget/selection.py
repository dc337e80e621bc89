"""From scores to what stays: exact, cost-aware selection without a host sync, pool by pool."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from patchers.units import Group, Kind
from sparse_trainer.budget.nesting import Constraint
from sparse_trainer.budget.options import Budget, check_reachable
from sparse_trainer.budget.pool import Kept, Pool
from sparse_trainer.errors import ArgumentError

# Shape legend: U = units of a group.


class Selector:
    """Selects under one budget, for groups and unit costs that do not change.

    Args:
        groups: Groups whose kinds do not contain each other, unless the budget counts each kind by itself.
        costs: Cost of one unit, by group name.

    Raises:
        ArgumentError: units of a kind cost nothing.
        BudgetError: floors leave more than the budget allows; the message gives the feasible range.
    """

    def __init__(self, groups: Sequence[Group], costs: Mapping[str, int], budget: Budget) -> None:
        _check_counted(groups, costs, budget)
        self.budget = budget
        self.per_kind = budget.is_per_kind
        self.pools = [
            Pool(members, [1 if self.per_kind else costs[g.name] for g in members], budget)
            for members in _pools(groups, budget.scope, self.per_kind)
        ]
        self.costs = {g.name: costs[g.name] for g in groups}
        self.total = float(sum(costs[g.name] * g.num_units for g in groups))
        for pool in self.pools:
            check_reachable(pool.density, pool.floor / pool.total, f" for {pool.label}")

    @property
    def constraints(self) -> list[Constraint]:
        """What must hold, pool by pool."""
        return [
            Constraint(
                costs={g.name: 1.0 if self.per_kind else float(self.costs[g.name]) for g in pool.groups},
                total=pool.total,
                density=pool.density,
            )
            for pool in self.pools
        ]

    def select(self, scores: Mapping[str, Tensor], remaining: float = 0.0) -> Kept:
        """Keep the best units of each pool.

        Args:
            scores: Score per unit, shape [U], higher = keep, by group name.
            remaining: Part of the way from dense to the budget that is still to go, in [0, 1].
        """
        return self._at(scores, [pool.density + (1.0 - pool.density) * remaining for pool in self.pools])

    def at(self, scores: Mapping[str, Tensor], density: float) -> Kept:
        """Keep the best units of each pool at a density of its own, whatever the budget says."""
        return self._at(scores, [density] * len(self.pools))

    @torch.no_grad()
    def _at(self, scores: Mapping[str, Tensor], asked: list[float]) -> Kept:
        keep: dict[str, Tensor] = {}
        thresholds = []
        for pool, density in zip(self.pools, self._densities(asked), strict=True):
            kept, threshold = pool.select(scores, density)
            keep.update(kept)
            thresholds.append(threshold)
        return Kept(keep=keep, threshold=thresholds[0])

    def _densities(self, asked: list[float]) -> list[float]:
        """Return the fraction that each pool may keep now.

        Equal widths round to whole units in every layer at once: what rounding one kind gives or takes is made up by
        the kinds with smaller units.
        """
        if self.per_kind or self.budget.scope != "uniform":
            return asked
        budget, left = asked[0] * self.total, self.total
        shares: dict[Kind, float] = {}
        unit = {pool.kind: self.costs[pool.groups[0].name] for pool in self.pools}
        for kind in sorted(unit, key=lambda k: -unit[k]):
            pools = [pool for pool in self.pools if pool.kind == kind]
            shares[kind] = min(1.0, max(0.0, budget / left)) if left > 0 else 1.0
            budget -= sum(pool.rounded(shares[kind]) for pool in pools)
            left -= sum(pool.total for pool in pools)
        return [shares[pool.kind] for pool in self.pools]


def _pools(groups: Sequence[Group], scope: str, per_kind: bool) -> list[list[Group]]:
    """Share the groups out over pools; `uniform` and per-kind `layer` budgets hold for every group by itself."""
    pools: dict[tuple[object, ...], list[Group]] = {}
    for g in groups:
        kind = g.kind if per_kind or scope == "uniform" else None
        place = (g.stack, g.layer) if scope in ("layer", "uniform") and g.kind.is_width else None
        pools.setdefault((kind, place), []).append(g)
    return sorted(pools.values(), key=lambda members: -sum(g.num_units for g in members))


def _check_counted(groups: Sequence[Group], costs: Mapping[str, int], budget: Budget) -> None:
    """Raise `ArgumentError` for kinds of unit that cost nothing: no budget could tell one of them from all.

    Args:
        costs: Cost of one unit, by group name.
    """
    kinds = list(dict.fromkeys(g.kind for g in groups))
    free = [kind for kind in kinds if not any(costs[g.name] for g in groups if g.kind == kind)]
    # One density per kind counts units; what is reached is told in costs nevertheless.
    if free and (free == kinds or not budget.is_per_kind):
        raise ArgumentError(
            "target",
            f"{', '.join(free)} cost nothing by this count: a token meets as many whichever are gone.",
            "Take `target='params'` or 'units'.",
        )
