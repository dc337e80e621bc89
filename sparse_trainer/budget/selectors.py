"""From scores and costs to what stays: functions on tensors."""

from collections.abc import Mapping, Sequence

from patchers.units import Group
from sparse_trainer.budget.features import FeatureSelector
from sparse_trainer.budget.nested import NestedSelector
from sparse_trainer.budget.nesting import Nesting
from sparse_trainer.budget.options import Budget
from sparse_trainer.budget.selection import Selector

AnySelector = Selector | NestedSelector | FeatureSelector


def make_selector(
    groups: Sequence[Group],
    costs: Mapping[str, int],
    budget: Budget,
    per_feature: Mapping[str, int] | None = None,
) -> AnySelector:
    """Return the selector that suits the groups; kinds that contain each other may share one density."""
    nesting = Nesting(groups, costs, per_feature)
    if budget.is_per_kind:
        return Selector(groups, costs, budget)
    if nesting.shared or (nesting.hidden is not None and len(groups) == 1):
        return FeatureSelector(nesting, budget)
    return NestedSelector(nesting, budget) if nesting.outer else Selector(groups, costs, budget)
