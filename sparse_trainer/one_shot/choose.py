"""One round of choosing: what the criterion said of every unit, and which units stay."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from patchers.units import Structure
from sparse_trainer.budget.selection import Selector
from sparse_trainer.budget.standardize import fitting
from sparse_trainer.budget.ties import tied, warn_of_ties, warn_of_whole_groups
from sparse_trainer.criteria.calibration.base import Evidence, scores_of
from sparse_trainer.criteria.calibration.mixture import criterion_of, name_of
from sparse_trainer.one_shot.allocation import select
from sparse_trainer.one_shot.options import Options
from sparse_trainer.statistics.blockwise import Blockwise
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.requests import Statistic

# Shape legend: U = units of a group.


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the criteria say, by group name, shape [U], higher = keep."""

    ranks: Mapping[str, Tensor]
    """Of `criterion`: which units of a group stay."""
    shares: Mapping[str, Tensor]
    """Of `allocation`, or of `criterion` where there is none: how many units of a group stay."""


def score(evidence: Evidence, options: Options) -> Scores:
    """Score the units of what there is evidence of.

    Raises:
        CriterionError: scores that are not one finite number per unit.
    """
    asked = [options.criterion, *(() if options.allocation is None else (options.allocation,))]
    found = [scores_of(criterion_of(one, options.normalize), evidence, name_of(one)) for one in asked]
    return Scores(ranks=found[0], shares=found[-1])


def score_by_block(model: Any, structure: Structure, batches: Batches | None, options: Options) -> Scores:
    """Score block after block, so that the statistics of one block are in memory."""
    assert batches is not None
    ranks: dict[str, Tensor] = {}
    shares: dict[str, Tensor] = {}
    walk = Blockwise(model, structure, batches, changing=False, device=options.device)
    for groups in walk:
        part = replace(structure, groups=groups)
        statistics = walk.collect(groups, criteria_requests(options))
        scores = score(Evidence(model=model, structure=part, statistics=statistics), options)
        ranks |= {name: score_U.cpu() for name, score_U in scores.ranks.items()}
        shares |= {name: score_U.cpu() for name, score_U in scores.shares.items()}
    return Scores(ranks=ranks, shares=shares)


def criteria_requests(options: Options) -> tuple[Statistic[Any], ...]:
    """Return what the criteria have to know."""
    requests = criterion_of(options.criterion, options.normalize).requests()
    if options.allocation is not None:
        requests += criterion_of(options.allocation, options.normalize).requests()
    return requests


def choose(
    structure: Structure, scores: Scores, costs: Mapping[str, int], selector: Selector, options: Options
) -> dict[str, Tensor]:
    """Return the units that stay under the budget; warn where scores do not tell units, or whole layers, apart."""
    for one, found in ((options.criterion, scores.ranks), (options.allocation, scores.shares)):
        if one is not None:
            warn_of_ties(found, tied(found, structure.kinds), name_of(one))
    asked = options.criterion if options.allocation is None else options.allocation
    own = criterion_of(asked, options.normalize).standardize
    standardize = options.budget.standardize or fitting(own, {g.kind for g in structure.groups})
    keep = select(
        structure,
        costs,
        selector,
        scores=scores.shares,
        standardize=standardize,
        ranks=None if options.allocation is None else scores.ranks,
    )
    if selector.budget.scope == "global":
        warn_of_whole_groups(keep, structure.kinds, standardize)
    return keep
