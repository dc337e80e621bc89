"""One round of one-shot pruning: score the units, choose under the budget, refit what reads those that go."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from patchers.units import LAYERS, WIDTH_KINDS, Group, Structure
from sparse_trainer.budget.cost import unit_cost
from sparse_trainer.budget.latency.selector import TimedSelector
from sparse_trainer.budget.options import Budget
from sparse_trainer.budget.selection import Selector
from sparse_trainer.criteria.calibration.base import ChoosesRun, Evidence, OwnDensity, Searches
from sparse_trainer.cut.decision import Decision, Request
from sparse_trainer.cut.speed import Timed
from sparse_trainer.one_shot.allocation import comparable
from sparse_trainer.one_shot.choose import Scores, choose, runs, score, score_by_block, standardize_of
from sparse_trainer.one_shot.options import PruneOptions
from sparse_trainer.one_shot.progress import Progress
from sparse_trainer.one_shot.protect import prunable
from sparse_trainer.one_shot.repairs.refit import prepare_biases, refit, refit_by_block
from sparse_trainer.one_shot.repairs.runs import take_over
from sparse_trainer.one_shot.search.runs import Depth
from sparse_trainer.one_shot.search.search import search_widths
from sparse_trainer.one_shot.timed import TimedPruning
from sparse_trainer.one_shot.tried import Tried
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.requests import Statistics

Watch = Callable[[Decision], None]
AnySelector = Selector | TimedSelector


@dataclass(frozen=True, kw_only=True)
class Source:
    """What criteria and repair look at."""

    batches: Batches | None
    """None where they look at weights only, or at `statistics`."""
    statistics: Statistics | None
    """What was collected before, of the model as it is."""
    device: torch.device | str | None
    """Where blocks are run, with `by_block`; None = where the model is."""


def run_round(
    model: Any,
    found: Structure,
    source: Source,
    options: PruneOptions,
    progress: Progress,
    done: float,
    watch: Watch | None,
    timed: TimedPruning | None = None,
) -> Decision | None:
    """Decide which units stay, and refit the consumers of the others, in place; None where nothing can go any more.

    Args:
        found: All groups of the model as it is now.
        done: Part of the way to the budget that lies behind after this round.
        watch: Called with the decision before anything is refitted.
        timed: What the model takes, where the budget is one of time.
    """
    asked, begun = options.budget, begin(model, found, options, progress, done, timed)
    if begun is None:
        return None
    structure, costs, budget, selector = begun.structure, begun.costs, begun.budget, begun.selector
    if options.search is not None:
        structure = replace(structure, groups=structure.of(WIDTH_KINDS))
    statistics = _statistics(model, structure, source, options)
    scores = _scores(model, structure, source, options, statistics, costs, selector)
    own = options.criteria[-1]
    if isinstance(own, OwnDensity):
        stays = own.density(scores.shares, budget.density_of(LAYERS))
        selector = Selector(structure.groups, costs, replace(budget, density={LAYERS: stays}))

    def chosen(selector: AnySelector) -> dict[str, Tensor]:
        if options.widths is not None:
            return _searched(model, found, begun, source, options, progress, statistics, scores, selector)
        keep = choose(structure, scores, costs, selector, options)
        if not isinstance(own, ChoosesRun):
            return keep
        return runs(Evidence(model=model, structure=structure, statistics=statistics), own, keep)

    if timed is not None and isinstance(selector, TimedSelector) and done == 1:
        keep = timed.tried(model, found, selector, chosen, again=options.widths is None)
    else:
        keep = chosen(selector)
    request = Request(
        method=options.method,
        target=asked.target,
        scope=asked.scope,
        density=None if timed is not None else budget.density_asked,
        sequence_length=asked.sequence_length,
        timing=None if timed is None else Timed(timed.timing),
    )
    standardize = standardize_of(structure, options)
    decision = Decision(
        structure=found,
        keep=keep,
        request=request,
        scores=scores.ranks,
        compared=comparable(structure, costs, scores.shares, standardize) if options.widths is None else {},
        standardize=standardize,
    )
    if watch is not None:
        watch(decision)
    _repair(model, structure, source, options, statistics, decision)
    progress.kept.update({name: int(keep_U.sum()) for name, keep_U in keep.items()})
    return decision


@dataclass(frozen=True, kw_only=True)
class Begun:
    """What a round chooses from, and under what."""

    structure: Structure
    """What can be pruned now."""
    costs: Mapping[str, int]
    """Of one unit, by group name."""
    budget: Budget
    """Of this round."""
    selector: AnySelector
    """Under it."""


def begin(
    model: Any,
    found: Structure,
    options: PruneOptions,
    progress: Progress,
    done: float,
    timed: TimedPruning | None,
) -> Begun | None:
    """Return what a round chooses from, None where nothing can go any more; a model without numbers will do.

    Args: as of `run_round`.

    Raises:
        ArgumentError: a pattern that matches nothing, or units that cost nothing.
        BudgetError: the budget cannot be met, or everything is protected.
    """
    asked = options.budget
    structure = prunable(model, found, asked.kinds, options.protect, options.include)
    costs = _costs(model, structure, options, timed)
    structure = progress.begin(structure, costs)
    if not structure.groups:
        return None
    budget = replace(asked, density=progress.density(structure, asked.density_asked, done))
    budget = progress.capped(budget, options.max_prune)
    if timed is not None:
        selector: AnySelector = timed.selector(structure.groups, budget, done, progress.kept)
        budget = selector.budget
    elif options.search is not None and LAYERS in asked.kinds:
        # What is reachable with layers is told by the search.
        selector = Selector(structure.of(WIDTH_KINDS), costs, replace(budget, density=1.0))
    else:
        selector = Selector(structure.groups, costs, budget)
    return Begun(structure=structure, costs=costs, budget=budget, selector=selector)


def _searched(
    model: Any,
    found: Structure,
    begun: Begun,
    source: Source,
    options: PruneOptions,
    progress: Progress,
    statistics: Statistics,
    scores: Scores,
    selector: AnySelector,
) -> dict[str, Tensor]:
    """Return the units that a search leaves under the budget of a round.

    Args:
        found: All groups of the model.
        selector: Of that budget; of a time, what it is now.
    """
    assert source.batches is not None
    assert options.widths is not None
    structure, budget, costs = begun.structure, begun.budget, begun.costs

    def cost_of(group: Group, count: int) -> float:
        if isinstance(selector, TimedSelector):
            return selector.cost_of(group, count) if group.kind.is_width else 1e-9 * costs[group.name] * count
        return costs[group.name] * count

    if isinstance(selector, TimedSelector):
        budget = replace(budget, density=selector.share)
        structure = replace(structure, groups=selector.groups)
    depth = None
    if structure.of((LAYERS,)):
        repaired, bias = options.repairs_runs, options.reconstruct_bias
        depth = Depth(found=found, repaired=repaired, damping=options.damping, bias=bias)
    keep, searched = search_widths(
        model, structure, scores.ranks, source.batches, statistics,
        budget=budget, cost_of=cost_of, repair=options.repair, options=options.widths, depth=depth,
    )  # fmt: skip
    progress.searches.append(searched)
    return keep


def _costs(
    model: Any, structure: Structure, options: PruneOptions, timed: TimedPruning | None
) -> dict[str, int]:
    """Return the cost of one unit, by group name."""
    budget = options.budget
    if timed is not None:
        return {g.name: timed.timing.time.unit_of(g) for g in structure.groups}
    return {g.name: unit_cost(model, g, budget.target, budget.sequence_length) for g in structure.groups}


def _statistics(model: Any, structure: Structure, source: Source, options: PruneOptions) -> Statistics:
    """Return what one pass over all blocks at once tells."""
    if source.statistics is not None:
        return source.statistics
    if source.batches is None or options.by_block:
        return Statistics()
    only_criteria = (options.sequential or options.refit_behind) and options.search is None
    requests = options.criteria_requests if only_criteria else options.requests
    if only_criteria or not options.repairs_runs or options.search is not None:
        return collect(model, structure, source.batches, requests)
    # Moments exist for what widths feed only.
    widths = replace(structure, groups=structure.of(WIDTH_KINDS))
    of_all = collect(model, structure, source.batches, options.criteria_requests)
    of_widths = collect(model, widths, source.batches, [options.repair.request] if options.repair else [])
    return replace(of_all, found={**of_widths.found, **of_all.found})


def _scores(
    model: Any,
    structure: Structure,
    source: Source,
    options: PruneOptions,
    statistics: Statistics,
    costs: Mapping[str, int],
    selector: AnySelector,
) -> Scores:
    criterion = options.criteria[0]
    evidence = Evidence(model=model, structure=structure, statistics=statistics)
    if isinstance(criterion, Searches):
        assert source.batches is not None
        same = {group.name: torch.zeros(group.num_units) for group in structure.groups}
        stays = {name: bool(keep_U.all()) for name, keep_U in selector.select(same).keep.items()}
        density = sum(costs[name] for name, stay in stays.items() if stay) / sum(costs.values())
        trials = Tried(model, structure, source.batches, costs, density)
        found = criterion.search(structure, trials, sum(not stay for stay in stays.values()))
        return Scores(ranks=found, shares=found)
    if options.by_block and options.criteria_requests:
        assert source.batches is not None
        return score_by_block(model, structure, source.batches, options, source.device)
    return score(evidence, options)


def _repair(
    model: Any,
    structure: Structure,
    source: Source,
    options: PruneOptions,
    statistics: Statistics,
    decision: Decision,
) -> None:
    repair, keep = options.repair, decision.keep
    if repair is None:
        return
    if not options.refit_behind:
        widths = replace(structure, groups=structure.of(WIDTH_KINDS))
        prepare_biases(model, widths, repair)
        if options.sequential or options.by_block:
            assert source.batches is not None
            refit_by_block(
                model,
                widths,
                keep,
                repair,
                source.batches,
                sequential=options.sequential,
                device=source.device,
            )
        else:
            refit(model, widths, keep, repair, statistics)
    if options.repairs_runs:
        assert source.batches is not None
        take_over(
            model,
            decision,
            repair,
            source.batches,
            behind=options.refit_behind,
            damping=options.damping,
            bias=options.reconstruct_bias,
            device=source.device,
        )
