"""Widths by measured loss: what each level of each group costs the model, and the best levels under the budget.

As in ZipLM (arXiv 2302.04089), DarwinLM (arXiv 2502.07780) and Tyr-the-Pruner (arXiv 2503.09657): levels are nested,
their consumers refitted, the loss of each is the divergence of the whole model from the dense one, all else whole.
Runs of whole layers may be levels, too.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from patchers.units import LAYERS, WIDTH_KINDS, Structure
from sparse_trainer.budget.options import Budget
from sparse_trainer.errors import BudgetError
from sparse_trainer.inputs.evaluating import evaluating
from sparse_trainer.one_shot.allocation import highest
from sparse_trainer.one_shot.repairs.base import Repair
from sparse_trainer.one_shot.search.ladders import (
    Allowance,
    LevelCost,
    Run,
    allowances,
    refined,
    single_ladders,
    with_losses,
)
from sparse_trainer.one_shot.search.losses import SearchClock, first_batches, level_losses
from sparse_trainer.one_shot.search.options import SearchOptions
from sparse_trainer.one_shot.search.program import Choice, best_choice
from sparse_trainer.one_shot.search.runs import (
    Depth,
    check_taken_over,
    possible_runs,
    run_losses,
    with_one_left,
)
from sparse_trainer.one_shot.search.stitched import Stitched, stitched
from sparse_trainer.one_shot.search.switches import Switching, loss_at
from sparse_trainer.plan.searched import Searched
from sparse_trainer.statistics.batch import Batch
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.replay import Replay
from sparse_trainer.statistics.requests import Statistics

# Shape legend: U = units of a group.

logger = logging.getLogger(__name__)

_LONGEST: Final = 8
"""Layers of the longest run that is tried."""


def search_widths(
    model: Any,
    structure: Structure,
    ranks: Mapping[str, Tensor],
    batches: Batches,
    statistics: Statistics,
    *,
    budget: Budget,
    cost_of: LevelCost,
    repair: Repair | None,
    options: SearchOptions,
    depth: Depth | None = None,
) -> tuple[dict[str, Tensor], Searched]:
    """Return the units that stay, booleans of shape [U] by group name, and the record of the search.

    Args:
        ranks: Scores of the units of heads, channels and experts, shape [U], by group name: of a group the highest
            stay, whatever its width.
        statistics: What the repair asks for.
        cost_of: What a group costs with so many units: any falling function of the count, so that measured times do.
        depth: How whole layers are looked for, where they may go.

    Raises:
        BudgetError: nothing is cheap enough.
        DataError: the calibration set does not fit the model.
        NonFiniteError: the model says NaN or infinity.
        UnsupportedModelError: a block runs more than once in a forward pass, or nothing can take over what it does.
    """
    clock = SearchClock(options.time_limit)
    widths = replace(structure, groups=structure.of(WIDTH_KINDS))
    ladders = single_ladders(widths.groups, budget, options.levels)
    tried = first_batches(batches, options.tokens)
    replay = Replay(model, structure, batches)
    runs: tuple[Run, ...] = ()
    if depth is not None:
        runs = possible_runs(structure, depth, _longest(structure, budget))
        _chosen(_with_runs(allowances(ladders, budget, cost_of), structure, runs, budget, cost_of))
        check_taken_over(model, runs, tried, depth)
    fronts = {
        run.front.name: run.front for run in runs if run.front is not None and run.front.name not in widths
    }
    gated = replace(widths, groups=(*widths.groups, *fronts.values()))
    rough = torch.autocast(batches.device.type, torch.bfloat16, enabled=options.bfloat16)
    with stitched(model, gated, ranks, repair, statistics) as whole, evaluating(model):
        if depth is not None:
            runs = run_losses(whole, replay, tried, batches, runs, depth, clock.half, rough)
            runs = with_one_left(runs, depth.found)
        with replay.steered(), rough:
            ladders = with_losses(ladders, level_losses(whole, replay, tried, ladders, clock))
        shares = allowances(ladders, budget, cost_of)
        if depth is not None:
            shares = _with_runs(shares, structure, runs, budget, cost_of)
        choices = _chosen(shares)
        measured = None
        if options.method == "evolve":
            with replay.steered(), rough:
                measured = _switch(whole, replay, tried, shares, choices, clock)
        replay.forget()
    record = Searched(
        method=options.method,
        tokens=sum(int(batch.count_real()) for batch in tried),
        seconds=round(clock.seconds, 1),
        expected=sum(_expected(share, choice) for share, choice in zip(shares, choices, strict=True)),
        measured=measured,
        losses={
            ladder.groups[0].name: list(zip(ladder.counts, ladder.loss_G.tolist(), strict=True))
            for ladder in ladders
        }
        | {run.name: [(1, 0.0), (0, run.loss)] for run in runs},
    )
    gone = {layer.name for choice in choices for run in choice.runs for layer in run.layers}
    keep = {g.name: torch.tensor([g.name not in gone]) for g in structure.of((LAYERS,))}
    for share, choice in zip(shares, choices, strict=True):
        for ladder, count in zip(share.ladders, choice.counts, strict=True):
            keep |= {group.name: highest(ranks[group.name].cpu(), count) for group in ladder.groups}
    return keep, record


def _switch(
    model: Stitched,
    replay: Replay,
    batches: Sequence[Batch],
    shares: Sequence[Allowance],
    choices: Sequence[Choice],
    clock: SearchClock,
) -> float | None:
    """Switch widths under one budget after the other, in place; return what the model with all of them loses.

    None where the time is up before it is known.
    """
    measured = None
    for number, (share, choice) in enumerate(zip(shares, choices, strict=True)):
        others = [
            each
            for place, (other, chosen) in enumerate(zip(shares, choices, strict=True))
            if place != number
            for each in zip(other.ladders, chosen.counts, strict=True)
        ]
        switching = Switching(model, replay, batches, share, choice.counts, others)
        choice.counts[:] = switching.run(clock)
        measured = measured if switching.best is None else switching.best
    if measured is None:
        logger.warning("search: time was up before a switch was tried; widths are those of `dp`.")
    return measured


def _longest(structure: Structure, budget: Budget) -> int:
    """Return how many layers may go together: no more than the budget asks for, if all were alike."""
    layers = len(structure.of((LAYERS,)))
    return min(_LONGEST, math.ceil((1.0 - float(budget.density_of(LAYERS))) * layers - 1e-9) or 1)


def _with_runs(
    shares: Sequence[Allowance],
    structure: Structure,
    runs: tuple[Run, ...],
    budget: Budget,
    cost_of: LevelCost,
) -> list[Allowance]:
    """Return the one budget with layers in it: each costs what lies in it, and something beside."""
    (share,) = shares
    inside: dict[tuple[str, int], float] = {}
    for ladder in share.ladders:
        group = ladder.groups[0]
        place = group.stack, group.layer
        inside[place] = inside.get(place, 0.0) + ladder.cost(ladder.counts[0], cost_of)
    fixed = {
        (g.stack, g.layer): max(0.0, cost_of(g, 1) - inside.get((g.stack, g.layer), 0.0))
        for g in structure.of((LAYERS,))
    }
    total = sum(inside.values()) + sum(fixed.values())
    allowed = float(budget.density_of(LAYERS)) * total * (1 + 1e-12)
    return [replace(share, fixed=fixed, runs=runs, allowed=allowed)]


def _chosen(shares: Sequence[Allowance]) -> list[Choice]:
    """Return what stays under each budget."""
    choices = [best_choice(share) for share in shares]
    found = [choice for choice in choices if choice is not None]
    if len(found) < len(choices):
        raise BudgetError(
            "density",
            "is not reachable: `min_keep`, `multiple_of`, protected layers and one layer of every stack and sort "
            "keep more.",
            "Ask for more, lower `min_keep` or protect less.",
        )
    return found


def _expected(share: Allowance, choice: Choice) -> float:
    """Return the sum of the losses of what was chosen; a ladder whose layer goes is whole, and loses nothing."""
    widths = zip(share.ladders, choice.counts, strict=True)
    return sum(loss_at(refined(ladder), count) for ladder, count in widths) + sum(r.loss for r in choice.runs)
