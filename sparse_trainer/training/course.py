"""What a training is asked for at each moment: one budget from start to end, or several in turn."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, final

from patchers.units import Structure
from sparse_trainer.budget.cost import feature_costs, unit_cost
from sparse_trainer.budget.latency.selector import TimedSelector
from sparse_trainer.budget.latency.timing import Timing
from sparse_trainer.budget.nesting import Nesting
from sparse_trainer.budget.options import Budget
from sparse_trainer.budget.schedule import Schedule
from sparse_trainer.budget.selectors import AnySelector, make_selector
from sparse_trainer.budget.stages import StagedSchedule, Stages
from sparse_trainer.training.timed import timed_selectors


@final
@dataclass(frozen=True, kw_only=True)
class Leg:
    """One budget, and what selects under it."""

    budget: Budget
    selector: AnySelector | TimedSelector
    timing: Timing | None
    """Where a time is asked for."""
    part: float
    """The way from the budget before (dense, at first), as a part of that from dense."""


@final
class Course:
    """The budgets of one training, in turn, and which of them counts when.

    Args:
        budget: The last one.
        stages: What is asked of each; None = there is one budget.
        schedule: Of as many stages.

    Raises:
        BudgetError: one of them cannot be met.
    """

    def __init__(
        self, model: Any, structure: Structure, budget: Budget, stages: Stages | None, schedule: Schedule
    ) -> None:
        self.schedule = schedule
        budgets = (budget,) if stages is None else stages.budgets(budget)
        if budget.time is not None:
            found = timed_selectors(model, structure, budgets)
            first = found[0][0]
            self.costs, self.nesting = first.costs, first.nesting
            self.legs = _legs(budgets, found, [selector.density for selector, _ in found])
            return
        target, length = budget.target, budget.sequence_length
        self.costs = {g.name: unit_cost(model, g, target, length) for g in structure.groups}
        per_feature = feature_costs(model, structure.groups, target)
        self.nesting = Nesting(structure.groups, self.costs, per_feature)
        made = [(make_selector(structure.groups, self.costs, each, per_feature), None) for each in budgets]
        self.legs = _legs(budgets, made, [] if stages is None else stages.densities)

    def leg(self, progress: float) -> Leg:
        """Return the budget that counts at this fraction of training."""
        return self.legs[self._stage(progress)]

    def aim(self, progress: float, selector: TimedSelector) -> None:
        """Let another selector meet the time that counts at this fraction of training."""
        counts = self.leg(progress)
        self.legs = tuple(replace(leg, selector=selector) if leg is counts else leg for leg in self.legs)

    def remaining(self, progress: float) -> float:
        """Return the part of the way from dense to the budget that counts which is still to go."""
        return self.schedule.remaining(progress) * self.leg(progress).part

    def held(self, progress: float) -> int | None:
        """Return the budget whose structure is fixed at this moment, None on the way to one."""
        if isinstance(self.schedule, StagedSchedule):
            return self.schedule.held(progress)
        return 0 if self.schedule.frozen(progress) else None

    def check_steps(self, total_steps: int) -> None:
        """Raise `ArgumentError` for a training that is too short for its budgets."""
        if isinstance(self.schedule, StagedSchedule):
            self.schedule.check_steps(total_steps)

    def _stage(self, progress: float) -> int:
        return self.schedule.stage(progress) if isinstance(self.schedule, StagedSchedule) else 0


def _legs(
    budgets: Sequence[Budget],
    found: Sequence[tuple[AnySelector | TimedSelector, Timing | None]],
    densities: Sequence[float],
) -> tuple[Leg, ...]:
    """Put budgets in a row.

    Args:
        densities: Where each of several ends.
    """
    parts = [1.0]
    for before, after in pairwise(densities):
        parts.append((before - after) / (1.0 - after))
    return tuple(
        Leg(budget=budget, selector=selector, timing=timing, part=part)
        for budget, (selector, timing), part in zip(budgets, found, parts, strict=True)
    )
