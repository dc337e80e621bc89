"""Exact selection for units that lie inside each other: branches and layers first, then what is inside them."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from patchers.groups import Group
from sparse_trainer.budget.nesting import Constraint, Nesting
from sparse_trainer.budget.selection import Budget, Selection, Selector
from sparse_trainer.errors import BudgetError

# Shape legend: U = units of a group.

_CACHED = 8
"""Selectors kept at hand: the enclosing units that stay change rarely from step to step."""


@final
class NestedSelector:
    """Selects under one budget over the whole model, for kinds that contain each other.

    Scores say of each enclosing unit whether it should stay: one below 0 goes, the lowest first. Where that misses the
    budget, fewer or more of them go. The units inside those that stay fill the budget, best first, as `Selector` does.
    One layer of every stack always stays.

    Raises:
        BudgetError: floors leave more than the budget allows.
    """

    def __init__(self, groups: Sequence[Group], costs: Mapping[str, int], budget: Budget) -> None:
        assert isinstance(budget.density, float | int)
        self.budget, self.density = budget, float(budget.density)
        self.nesting = Nesting(groups, costs)
        self.total = float(self.nesting.total)
        self.outer = self.nesting.outer
        taken = {g.name for g in self.outer}
        self.inner = tuple(g for g in self.nesting.groups if g.name not in taken)
        self._whole = Budget(density=1.0, multiple_of=budget.multiple_of, min_keep=budget.min_keep)
        pools = {g.name: self._selector([g]).pools[0] for g in self.inner}
        self._floors = {name: pool.floor for name, pool in pools.items()}
        self._wholes = {name: pool.total for name, pool in pools.items()}
        self._selectors: dict[frozenset[str], Selector] = {}
        self._check()

    @property
    def constraints(self) -> list[Constraint]:
        """What must hold: one density over all groups."""
        own = {name: float(cost) for name, cost in self.nesting.own.items()}
        return [Constraint(costs=own, total=self.total, density=self.density, around=self.nesting.around)]

    def _check(self) -> None:
        least = self._least(self._closings({g.name: 0.0 for g in self.outer})[-1]) / self.total
        if self.density < least - 1e-9:
            raise BudgetError(
                "density",
                f"{self.density:g} is not reachable: min_keep and multiple_of keep at least {least:.4g}.",
                f"Ask for a density in [{least:.4g}, 1], or lower min_keep or multiple_of.",
            )

    @torch.no_grad()
    def select(self, scores: Mapping[str, Tensor], remaining: float = 0.0) -> Selection:
        """Keep the best units; `remaining` as in `Selector.select`. Waits for the device once."""
        allowed = (self.density + (1.0 - self.density) * remaining) * self.total
        closed = self._choose(scores, allowed)
        keep, threshold = self._fill(closed, scores, allowed)
        for g in self.nesting.groups:
            if g.name not in keep:
                stays = not self._encloses(g) & closed
                keep[g.name] = torch.full_like(scores[g.name], stays, dtype=torch.bool)
        return Selection(keep=keep, threshold=threshold)

    def _fill(
        self, closed: frozenset[str], scores: Mapping[str, Tensor], allowed: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the units to keep inside what stays, and the lowest score kept."""
        inner = [g for g in self.inner if not self._encloses(g) & closed]
        if not inner:
            return {}, torch.zeros_like(scores[self.outer[0].name]).sum()
        if closed not in self._selectors:
            if len(self._selectors) >= _CACHED:
                self._selectors.clear()
            self._selectors[closed] = self._selector(inner)
        pool = self._selectors[closed].pools[0]
        left = allowed - self._fixed(closed)
        return pool.select(scores, min(1.0, max(0.0, left / pool.total)))

    def _choose(self, scores: Mapping[str, Tensor], allowed: float) -> frozenset[str]:
        """Return the enclosing groups to close."""
        values = torch.cat([scores[g.name].detach().float().flatten() for g in self.outer]).tolist()
        outer_scores = dict(zip([g.name for g in self.outer], values, strict=True))
        closings = self._closings(outer_scores)
        wanted = {name for name, score in outer_scores.items() if score < 0}
        at = max(i for i, closed in enumerate(closings) if closed <= wanted)
        slack = 1e-9 * self.total
        while at + 1 < len(closings) and self._least(closings[at]) > allowed + slack:
            at += 1
        while at > 0 and self._most(closings[at]) < allowed - slack:
            if self._least(closings[at - 1]) > allowed + slack:
                break
            at -= 1
        return closings[at]

    def _closings(self, scores: Mapping[str, float]) -> list[frozenset[str]]:
        """Return the sets that may close, each one group larger than the one before, lowest scores first."""
        layers = [g for g in self.outer if g.kind == "layers"]
        spared = {max((g for g in layers if g.stack == s), key=lambda g: scores[g.name]).name
                  for s in {g.stack for g in layers}}  # fmt: skip
        order = sorted((g.name for g in self.outer if g.name not in spared), key=lambda name: scores[name])
        return [frozenset(order[:count]) for count in range(len(order) + 1)]

    def _encloses(self, group: Group) -> set[str]:
        """Return the names of a group and of those around it."""
        return {group.name, *self.nesting.around[group.name]}

    def _fixed(self, closed: frozenset[str]) -> float:
        """Return the cost of the enclosing units that stay, without what lies in groups of its own."""
        own = self.nesting.own
        return float(sum(own[g.name] * g.num_units for g in self.outer if not self._encloses(g) & closed))

    def _least(self, closed: frozenset[str]) -> float:
        """Return the least cost that is possible once these groups are closed."""
        return self._fixed(closed) + self._inside(closed, self._floors)

    def _most(self, closed: frozenset[str]) -> float:
        """Return the largest cost that is possible once these groups are closed."""
        return self._fixed(closed) + self._inside(closed, self._wholes)

    def _inside(self, closed: frozenset[str], costs: Mapping[str, float]) -> float:
        return sum(costs[g.name] for g in self.inner if not self._encloses(g) & closed)

    def _selector(self, groups: Sequence[Group]) -> Selector:
        return Selector(groups, self.nesting.own, self._whole)


def make_selector(
    groups: Sequence[Group], costs: Mapping[str, int], budget: Budget
) -> Selector | NestedSelector:
    """Return the selector that suits the groups; kinds that contain each other may share one density."""
    nested = isinstance(budget.density, float | int) and bool(Nesting(groups, costs).outer)
    return NestedSelector(groups, costs, budget) if nested else Selector(groups, costs, budget)
