"""Selection under a budget of time: a density is found at which the table says that the time is met."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Self, final

import torch
from torch import Tensor

from patchers.units import HIDDEN, LAYERS, Group
from sparse_trainer.budget.latency.model_time import Counts, ModelTime
from sparse_trainer.budget.nested import NestedSelector
from sparse_trainer.budget.nesting import Constraint, Nesting
from sparse_trainer.budget.options import TOGETHER, Budget
from sparse_trainer.budget.pool import Kept
from sparse_trainer.budget.selection import Selector
from sparse_trainer.errors import BudgetError

# Shape legend: U = units of a group.

BENDS = 32
"""Straight pieces of which the curve of a group is made for gates that are neither open nor closed."""
_HALVINGS = 24
_CLOSE = 1e-4
"""Part of the dense time that is left unspent at most, where units are small enough."""


@final
class TimedSelector:
    """Selects the best units that a time pays for.

    Which units a density keeps is chosen with what a unit of each group takes on average; how long the model takes
    with them is read from its table, whose curves bend. The density at which it takes as long as it may is found by
    halving. Units that come for free, because a wider group is no slower, stay as well.

    Args:
        groups: Groups that may be pruned, as they are now.
        budget: Floors, multiples, scope; its density is not read.
        time: What the model takes.
        goal: Seconds that it may take.
        others: Units that are left of groups which are not in `groups`.

    Raises:
        BudgetError: the time cannot be met; the best that can be is named, and what limits it.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        budget: Budget,
        time: ModelTime,
        goal: float,
        others: Counts | None = None,
    ) -> None:
        assert not any(group.kind == HIDDEN for group in groups)
        self.groups, self.time, self.goal = tuple(fitted(groups, time)), time, goal
        self._others = dict(others or {})
        self.budget = replace(budget, density=1.0)
        self.costs = {group.name: time.unit_of(group) for group in groups}
        self.nesting = Nesting(self.groups, self.costs)
        self._inner: Selector | NestedSelector = (
            NestedSelector(self.nesting, self.budget)
            if self.nesting.outer
            else Selector(self.groups, self.costs, self.budget)
        )
        self.dense = time.seconds(self._others)
        """Seconds of the model with all units that are left."""
        generator = torch.Generator().manual_seed(0)
        self.any_scores = {g.name: torch.rand(g.num_units, generator=generator) for g in self.groups}
        """Scores that favour no layer."""
        self._check_reachable(self.any_scores)
        self.density = self._density(self.any_scores, goal)
        """Share of the time of these units that may stay, of scores that favour no layer."""

    def _check_reachable(self, scores: Mapping[str, Tensor]) -> None:
        least = self._counts(self._inner.at(scores, 0.0).keep)
        fastest = self.time.seconds(least)
        self.fastest = fastest
        """Seconds with the fewest units that can stay."""
        if fastest <= self.goal:
            return
        target = self.budget.time
        asked = target.asked if target is not None else f"{1e3 * self.goal:.4g} ms"
        parts = ", ".join(f"{name} {1e3 * value:.4g} ms" for name, value in self.time.parts(least).items())
        best = self.time.dense / fastest
        raise BudgetError(
            "latency",
            f"{asked} is not reachable: of {1e3 * self.time.dense:.4g} ms at least {1e3 * fastest:.4g} ms stay, "
            f"{best:.3g} times faster ({parts}).",
            self._remedy(best),
        )

    def _remedy(self, best: float) -> str:
        """Return what can be done about a time that cannot be met.

        Args:
            best: How many times faster the model can be.
        """
        target, speedup = self.budget.time, math.floor(100 * best) / 100
        if target is not None and target.milliseconds is not None:
            less = [f"Ask for milliseconds={_above(1e3 * self.fastest):g} or more"]
        else:
            less = [f"Ask for speedup={speedup:g} or less"] if speedup > 1 else []
        other = [
            *([] if LAYERS in self.budget.kinds else ["prune layers"]),
            "protect less, or lower `min_keep` or `multiple_of`",
        ]
        text = "; ".join([*less, *other])
        return f"{text[0].upper()}{text[1:]}." + ("" if LAYERS in self.budget.kinds else f" {TOGETHER}")

    @property
    def share(self) -> float:
        """Share of the time of all groups that the goal leaves for them."""
        return min(1.0, max(1e-9, 1.0 - (self.dense - self.goal) * 1e9 / self.nesting.total))

    @property
    def constraints(self) -> list[Constraint]:
        """What must hold: one share of the time of all groups, as their curves bend."""
        bends = {
            group.name: tuple(self._part(group, step / BENDS) for step in range(BENDS + 1))
            for group in self.groups
            if group.kind.is_width
        }
        return [replace(self.nesting.constraint(self.share), bends=bends)]

    def _part(self, group: Group, share: float) -> float:
        """Return the part of a group's time that a share of its units takes."""
        whole = self.cost_of(group, group.num_units)
        return self.cost_of(group, share * group.num_units) / whole if whole > 0 else share

    def cost_of(self, group: Group, count: float) -> float:
        """Return the seconds that so many units of a group add; of heads, channels and experts."""
        return self.time.of_group(group.name, count)

    def aiming(self, goal: float) -> Self:
        """Return the same selector for another time; where that cannot be met, for the least that can."""
        other = copy.copy(self)
        other.goal = max(goal, self.fastest)
        other.density = other._density(self.any_scores, other.goal)
        return other

    def _counts(self, keep: Mapping[str, Tensor]) -> dict[str, int]:
        names = list(keep)
        kept = torch.stack([keep[name].sum() for name in names]).tolist()
        return {**self._others, **dict(zip(names, kept, strict=True))}

    def seconds(self, keep: Mapping[str, Tensor]) -> float:
        """Return what the model takes with the units that stay."""
        return self.time.seconds(self._counts(keep))

    def select(self, scores: Mapping[str, Tensor], remaining: float = 0.0) -> Kept:
        """Keep the best units.

        On the way to the budget no time is looked up, so that no device is waited for: a density falls to the one
        that suits scores which favour no layer. At its end the time itself is met.

        Args:
            scores: Score per unit, shape [U], higher = keep, by group name.
            remaining: Part of the way from dense to the budget that is still to go, in [0, 1].
        """
        if remaining > 0:
            return self._inner.at(scores, self.density + (1.0 - self.density) * remaining)
        here = {group.name: scores[group.name].detach().float().cpu() for group in self.groups}
        selection = self._inner.at(here, self._density(here, self.goal))
        keep = self._with_free(selection.keep, here)
        device = scores[self.groups[0].name].device
        return Kept(
            keep={name: keep_U.to(device) for name, keep_U in keep.items()},
            threshold=selection.threshold.to(device),
        )

    def _density(self, scores: Mapping[str, Tensor], goal: float) -> float:
        """Return the largest density at which the model takes no longer than it may."""
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            left = goal - self.seconds(self._inner.at(scores, middle).keep)
            if left >= 0:
                low = middle
                if left <= _CLOSE * self.dense:
                    break
            else:
                high = middle
        return low

    def _with_free(self, keep: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what stays, and the best of the units that make no group slower."""
        widened = dict(keep)
        for group in self.groups:
            count = int(keep[group.name].sum())
            free = self.time.free_units(group, count)
            free -= 0 if free == group.num_units else free % self.budget.step_of(group)
            if free > count > 0:
                first = scores[group.name].masked_fill(keep[group.name], math.inf)
                widened[group.name] = torch.zeros_like(keep[group.name])
                widened[group.name][first.argsort(descending=True, stable=True)[:free]] = True
        return widened


def fitted(groups: Sequence[Group], time: ModelTime) -> list[Group]:
    """Return groups that ask for the multiples of which no number of units is slower than a larger one."""
    return [
        replace(group, multiple_of=math.lcm(group.multiple_of, time.least_multiple(group)))
        for group in groups
    ]


def _above(value: float) -> float:
    """Return a number of four digits that is no smaller.

    >>> _above(11.18342), _above(200.0)
    (11.19, 200.0)
    """
    step = 10.0 ** (math.floor(math.log10(value)) - 3)
    return round(math.ceil(value / step - 1e-9) * step, 12)
