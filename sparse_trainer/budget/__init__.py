"""From scores and costs to what stays: functions on tensors."""

from sparse_trainer.budget.nested import make_selector
from sparse_trainer.budget.selection import Budget, Selection, Selector

__all__ = ["Budget", "Selection", "Selector", "make_selector"]
