"""Fine-pruning under a budget of time: a table of the model as it will be, and a selector that reads it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from patchers.discovery.discover import discover
from patchers.patching.merging import has_adapters
from patchers.patching.patch import unpatch
from patchers.units import Structure
from sparse_trainer.budget.latency.calls import narrowed
from sparse_trainer.budget.latency.model_time import ModelTime
from sparse_trainer.budget.latency.selector import TimedSelector
from sparse_trainer.budget.latency.store import known_table, timing_by, timing_of
from sparse_trainer.budget.latency.timing import Timing
from sparse_trainer.budget.latency.trial import time_pair
from sparse_trainer.budget.options import Budget
from sparse_trainer.cut.bare import bare
from sparse_trainer.errors import ArgumentError
from sparse_trainer.inputs.limits import check_positions, positions_of
from sparse_trainer.training.agreement import several_processes

logger = logging.getLogger(__name__)


def timed_selectors(
    model: Any, structure: Structure, budgets: Sequence[Budget]
) -> list[tuple[TimedSelector, Timing]]:
    """Return what selects under each budget of time, and what the model takes: without gates, adapters merged.

    What the table says of a model with so many units is tried once, and the goal moved by what it is off.

    Args:
        model: Before gates hang in it.
        structure: What may be pruned.
        budgets: Of the same conditions, the slowest model first.

    Raises:
        ArgumentError: several processes, each of which would measure other times.
        BudgetError: a time cannot be met.
    """
    targets = [budget.time for budget in budgets if budget.time is not None]
    if several_processes() and targets[0].table is None:
        raise ArgumentError(
            "latency_table",
            "each of several processes would measure other times.",
            "Measure in one process first (sparse-trainer timing MODEL --out table.json), and give the file.",
        )
    plain: Any = bare(model, inplace=False)[0] if has_adapters(model) else model
    found = discover(plain)
    timing = timing_of(plain, found, targets[-1])
    if plain is not model:
        # The same times by the names that the groups have now.
        timing = replace(timing, time=ModelTime(timing.time.table, model, discover(model)))
    timings = [replace(timing, target=target) for target in targets]
    # The fastest model first: what cannot be met is told before anything is tried.
    made = [
        TimedSelector(structure.groups, budget, each.time, each.goal)
        for budget, each in zip(reversed(budgets), reversed(timings), strict=True)
    ]
    selectors = made[::-1]
    if timing.measures and not several_processes() and plain is model:
        selectors = [_tried(plain, found, *each) for each in zip(selectors, timings, strict=True)]
    return list(zip(selectors, timings, strict=True))


def check_times(shape: PreTrainedModel, budgets: Sequence[Budget]) -> None:
    """Refuse times that a model cannot reach on another device, before its weights are read.

    Times of this machine are looked at once the model is there: head and number type may differ.

    Args:
        shape: The model on the meta device, with any head.
        budgets: Of the same conditions, the slowest model first.

    Raises:
        ArgumentError, CheckpointError, DataError: the table that is named cannot be read.
        BudgetError: a time cannot be met.
    """
    times = [budget.time for budget in budgets if budget.time is not None]
    if not times:
        return
    if not times[0].is_foreign:
        check_positions("sequence_length", times[0].sequence_length, positions_of(shape.config))
        return
    found = discover(shape)
    table = known_table(shape, found, times[0], None)
    assert table is not None
    for budget, target in zip(reversed(budgets), reversed(times), strict=True):
        groups = discover(shape, budget.kinds, budget.exclude, budget.include).groups
        timing = timing_by(table, shape, found, target)
        TimedSelector(groups, budget, timing.time, timing.goal)


def tried_on(
    model: Any, keep: Mapping[str, Tensor], selector: TimedSelector, timing: Timing
) -> TimedSelector:
    """Return the selector, its goal moved by what the table is off for the model that gates leave now.

    Scores share units out over layers otherwise than the trial before training could know. Nothing is tried where the
    times are another device's, in several processes, or under adapters.

    Args:
        model: With its gates; a copy is timed.
        keep: What is open, by group name.
    """
    if not timing.measures or several_processes() or has_adapters(model):
        return selector
    plain = bare(model, inplace=False)[0]
    unpatch(plain)
    open_units = {name: keep_U > 0 for name, keep_U in keep.items()}
    with torch.random.fork_rng():  # training goes on as if nothing was timed
        return _moved(plain, discover(plain), open_units, selector, timing)


def _tried(plain: Any, found: Structure, selector: TimedSelector, timing: Timing) -> TimedSelector:
    """Return the selector, its goal moved by what the table is off where scores favour no layer."""
    return _moved(plain, found, selector.select(selector.any_scores).keep, selector, timing)


def _moved(
    plain: Any, found: Structure, keep: Mapping[str, Tensor], selector: TimedSelector, timing: Timing
) -> TimedSelector:
    pair = time_pair(plain, narrowed(plain, found, keep), timing.target)
    if not pair.misses(timing.target):
        return selector
    logger.info("the table is off by %.0f %%: the goal is moved", 100 * pair.excess(timing.target))
    return selector.aiming(selector.goal / (1.0 + pair.excess(timing.target)))


def speedup_of(timing: Timing, selector: TimedSelector, keep: dict[str, Tensor]) -> float:
    """Return how many times faster the model is with these units, by the table."""
    return timing.time.dense / selector.seconds({name: keep_U > 0 for name, keep_U in keep.items()})
