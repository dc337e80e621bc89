"""Fine-pruning under a budget of time: a table of the model as it will be, and a selector that reads it."""

import logging
from dataclasses import replace
from typing import Any

from torch import Tensor

from patchers.discovery.discover import discover
from patchers.patching.merging import has_adapters
from patchers.units import Structure
from sparse_trainer.budget.latency.calls import narrowed
from sparse_trainer.budget.latency.model_time import ModelTime
from sparse_trainer.budget.latency.selector import TimedSelector
from sparse_trainer.budget.latency.store import timing_of
from sparse_trainer.budget.latency.timing import Timing
from sparse_trainer.budget.latency.trial import time_pair
from sparse_trainer.budget.options import Budget
from sparse_trainer.cut.bare import bare
from sparse_trainer.errors import ArgumentError
from sparse_trainer.training.agreement import several_processes

logger = logging.getLogger(__name__)


def timed_selector(model: Any, structure: Structure, budget: Budget) -> tuple[TimedSelector, Timing]:
    """Return what selects under a budget of time, and what the model takes: without gates, adapters merged.

    What the table says of a model with so many units is tried once, and the goal moved by what it is off.

    Args:
        model: Before gates hang in it.
        structure: What may be pruned.

    Raises:
        ArgumentError: several processes, each of which would measure other times.
        BudgetError: the time cannot be met.
    """
    target = budget.time
    assert target is not None
    if several_processes() and target.table is None:
        raise ArgumentError(
            "latency_table",
            "each of several processes would measure other times.",
            "Measure in one process first (sparse-trainer timing MODEL --out table.json), and give the file.",
        )
    plain: Any = bare(model, inplace=False)[0] if has_adapters(model) else model
    found = discover(plain)
    timing = timing_of(plain, found, target)
    if plain is not model:
        # The same times by the names that the groups have now.
        timing = replace(timing, time=ModelTime(timing.time.table, model, discover(model)))
    selector = TimedSelector(structure.groups, budget, timing.time, timing.goal)
    if not timing.measures or several_processes() or plain is not model:
        return selector, timing
    keep = selector.select(selector.any_scores).keep
    pair = time_pair(plain, narrowed(plain, found, keep), target)
    if pair.misses(target):
        logger.info("the table is off by %.0f %%: the goal is moved", 100 * pair.excess(target))
        selector = selector.aiming(selector.goal / (1.0 + pair.excess(target)))
    return selector, timing


def speedup_of(timing: Timing, selector: TimedSelector, keep: dict[str, Tensor]) -> float:
    """Return how many times faster the model is with these units, by the table."""
    return timing.time.dense / selector.seconds({name: keep_U > 0 for name, keep_U in keep.items()})
