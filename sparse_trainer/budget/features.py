"""Exact selection beside hidden features, which all linears share: how many stay, then what those leave to pay for."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from patchers.units import HIDDEN
from sparse_trainer.budget.nested import NestedSelector
from sparse_trainer.budget.nesting import Constraint, Nesting
from sparse_trainer.budget.options import Budget, check_reachable
from sparse_trainer.budget.pool import Kept

# Shape legend: U = hidden features, K = counts of them that may stay.


@final
class FeatureSelector:
    """Selects under one budget over the whole model, where units cost less the fewer hidden features stay.

    Scores say of each hidden feature whether it should stay: one below 0 goes. Where the other units could not meet the
    budget then, with all or with none of them closed, fewer or more features go. The others fill the budget at the
    cost that they are left with, best first. No host sync.

    Raises:
        BudgetError: floors leave more than the budget allows.
    """

    def __init__(self, nesting: Nesting, budget: Budget) -> None:
        assert nesting.hidden is not None
        assert not budget.is_per_kind
        self.nesting, self.group, self.density = nesting, nesting.hidden, float(budget.density)
        self.total, self.own = float(nesting.total), float(nesting.own[self.group.name])
        whole = Budget(density=1.0, multiple_of=budget.multiple_of, min_keep=budget.min_keep)
        self.others = tuple(g for g in nesting.groups if g is not self.group)
        self._inner = NestedSelector(nesting, whole) if self.others else None
        size, step = self.group.num_units, budget.step_of(self.group)
        least = -(-max(1, min(budget.floor_of(HIDDEN), size)) // step) * step
        self._counts_K = torch.tensor([*range(min(least, size), size, step), size])
        least_K, _ = self._bounds({g.name: torch.zeros(g.num_units) for g in nesting.groups})
        check_reachable(self.density, float(least_K[0]) / self.total)

    @property
    def constraints(self) -> list[Constraint]:
        """What must hold: one density over all groups."""
        return [self.nesting.constraint(self.density)]

    @torch.no_grad()
    def select(self, scores: Mapping[str, Tensor], remaining: float = 0.0) -> Kept:
        """Keep the best units; `remaining` as in `Selector.select`."""
        allowed = (self.density + (1.0 - self.density) * remaining) * self.total
        score_U = scores[self.group.name].detach().float().flatten()
        self._counts_K = self._counts_K.to(score_U.device)
        count = self._count(score_U, scores, allowed)
        rank_U = torch.empty_like(score_U, dtype=torch.long)
        order_U = score_U.argsort(descending=True, stable=True)
        rank_U[order_U] = torch.arange(len(score_U), device=score_U.device)
        keep = {self.group.name: rank_U < count}
        if self._inner is None:
            return Kept(keep=keep, threshold=score_U.masked_fill(rank_U >= count, torch.inf).min())
        selection = self._inner.spend(scores, allowed - self.own * count, self._gone(count))
        return Kept(keep={**selection.keep, **keep}, threshold=selection.threshold)

    def _gone(self, count: Tensor) -> Tensor:
        return 1.0 - count.double() / self.group.num_units

    def _bounds(self, scores: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the least and the most that can stay beside each count of hidden features, shape [K]."""
        own_K = self.own * self._counts_K.double()
        if self._inner is None:
            return own_K, own_K
        least_K, most_K = self._inner.bounds(scores, self._gone(self._counts_K))
        return own_K + least_K, own_K + most_K

    def _count(self, score_U: Tensor, scores: Mapping[str, Tensor], allowed: float) -> Tensor:
        """Return how many hidden features stay, shape [1]: those not below 0, or what the budget demands."""
        slack = 1e-9 * self.total
        least_K, most_K = self._bounds(scores)
        wanted = (self._counts_K < (score_U >= 0).sum()).sum()
        enough = (most_K < allowed - slack).sum()
        at_most = (least_K <= allowed + slack).sum() - 1
        place = torch.minimum(torch.maximum(wanted, enough), at_most).clamp(0, len(self._counts_K) - 1)
        return self._counts_K.gather(0, place.view(1))
