"""Widths by measured loss: what each level of each group costs the model, and the best levels under the budget.

As in ZipLM (arXiv 2302.04089), DarwinLM (arXiv 2502.07780) and Tyr-the-Pruner (arXiv 2503.09657): levels are nested,
their consumers refitted, the loss of each is the divergence of the whole model from the dense one, all else whole.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from patchers.units import Structure
from sparse_trainer.budget.options import Budget
from sparse_trainer.inputs.evaluating import evaluating
from sparse_trainer.one_shot.allocation import highest
from sparse_trainer.one_shot.repairs.base import Repair
from sparse_trainer.one_shot.search.ladders import (
    Allowance,
    LevelCost,
    allowances,
    refined,
    single_ladders,
    with_losses,
)
from sparse_trainer.one_shot.search.losses import SearchClock, first_batches, level_losses
from sparse_trainer.one_shot.search.options import SearchOptions
from sparse_trainer.one_shot.search.program import best_counts
from sparse_trainer.one_shot.search.stitched import stitched
from sparse_trainer.one_shot.search.switches import Switching, loss_at
from sparse_trainer.plan.searched import Searched
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.replay import Replay
from sparse_trainer.statistics.requests import Statistics

# Shape legend: U = units of a group.


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
) -> tuple[dict[str, Tensor], Searched]:
    """Return the units that stay, booleans of shape [U] by group name, and the record of the search.

    Args:
        ranks: Scores of the units, shape [U], by group name: of a group the highest stay, whatever its width.
        statistics: What the repair asks for.
        cost_of: What a group costs with so many units: any falling function of the count, so that measured times do.

    Raises:
        DataError: the calibration set does not fit the model.
        NonFiniteError: the model says NaN or infinity.
        UnsupportedModelError: a block runs more than once in a forward pass.
    """
    clock = SearchClock(options.time_limit)
    ladders = single_ladders(structure.groups, budget, options.levels)
    tried = first_batches(batches, options.tokens)
    replay = Replay(model, structure, batches)
    with stitched(model, structure, ranks, repair, statistics) as whole, evaluating(model), replay.steered():
        ladders = with_losses(ladders, level_losses(whole, replay, tried, ladders, clock))
        shares = allowances(ladders, budget, cost_of)
        counts = [best_counts(share) for share in shares]
        measured = None
        if options.method == "evolve":
            for number, share in enumerate(shares):
                switching = Switching(whole, replay, tried, share, counts[number])
                counts[number] = switching.run(clock)
                measured = switching.best
        replay.forget()
    record = Searched(
        method=options.method,
        tokens=sum(int(batch.count_real()) for batch in tried),
        seconds=round(clock.seconds, 1),
        expected=_expected(shares, counts),
        measured=measured,
        losses={
            ladder.groups[0].name: list(zip(ladder.counts, ladder.loss_G.tolist(), strict=True))
            for ladder in ladders
        },
    )
    keep = {
        group.name: highest(ranks[group.name].cpu(), count)
        for share, found in zip(shares, counts, strict=True)
        for ladder, count in zip(share.ladders, found, strict=True)
        for group in ladder.groups
    }
    return keep, record


def _expected(shares: Sequence[Allowance], counts: Sequence[Sequence[int]]) -> float:
    return sum(
        loss_at(refined(ladder), count)
        for share, found in zip(shares, counts, strict=True)
        for ladder, count in zip(share.ladders, found, strict=True)
    )
