"""One round of choosing: what the criterion said of every unit, and which units stay."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from patchers.units import LAYERS, Structure
from sparse_trainer.budget.latency.selector import TimedSelector
from sparse_trainer.budget.selection import Selector
from sparse_trainer.budget.standardize import fitting
from sparse_trainer.budget.ties import tied, warn_of_ties, warn_of_whole_groups
from sparse_trainer.criteria.calibration.base import ChoosesRun, Evidence, scores_of
from sparse_trainer.criteria.calibration.mixture import name_of
from sparse_trainer.one_shot.allocation import select
from sparse_trainer.one_shot.options import PruneOptions
from sparse_trainer.statistics.blockwise import Blockwise
from sparse_trainer.statistics.calibration import Batches

# Shape legend: U = units of a group.


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the criteria say, by group name, shape [U], higher = keep."""

    ranks: Mapping[str, Tensor]
    """Of `criterion`: which units of a group stay."""
    shares: Mapping[str, Tensor]
    """Of `allocation`, or of `criterion` where there is none: how many units of a group stay."""


def score(evidence: Evidence, options: PruneOptions) -> Scores:
    """Score the units of what there is evidence of.

    Raises:
        CriterionError: scores that are not one finite number per unit.
    """
    asked = zip(options.criteria, options.asked.values(), strict=True)
    found = [scores_of(criterion, evidence, name_of(one)) for criterion, one in asked]
    return Scores(ranks=found[0], shares=found[-1])


def score_by_block(
    model: Any,
    structure: Structure,
    batches: Batches,
    options: PruneOptions,
    device: torch.device | str | None,
) -> Scores:
    """Score block after block, so that the statistics of one block are in memory; blocks are run on the device."""
    ranks: dict[str, Tensor] = {}
    shares: dict[str, Tensor] = {}
    walk = Blockwise(model, structure, batches, changing=False, device=device)
    for groups in walk:
        part = replace(structure, groups=groups)
        statistics = walk.collect(groups, options.criteria_requests)
        scores = score(Evidence(model=model, structure=part, statistics=statistics), options)
        ranks |= {name: score_U.cpu() for name, score_U in scores.ranks.items()}
        shares |= {name: score_U.cpu() for name, score_U in scores.shares.items()}
    return Scores(ranks=ranks, shares=shares)


def choose(
    structure: Structure,
    scores: Scores,
    costs: Mapping[str, int],
    selector: Selector | TimedSelector,
    options: PruneOptions,
) -> dict[str, Tensor]:
    """Return the units that stay under the budget; warn where scores do not tell units, or whole layers, apart."""
    for one, found in zip(options.asked.values(), (scores.ranks, scores.shares), strict=False):
        warn_of_ties(found, tied(found, structure.kinds), name_of(one))
    standardize = standardize_of(structure, options)
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


def standardize_of(structure: Structure, options: PruneOptions) -> str:
    """Return the name of what makes the scores comparable across layers."""
    own = options.criteria[-1].standardize
    return options.standardize or fitting(own, {g.kind for g in structure.groups})


def runs(evidence: Evidence, criterion: ChoosesRun, keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what stays where as many layers of each stack go as `keep` says, and those stand side by side."""
    layers = evidence.structure.of((LAYERS,))
    counts = Counter(group.stack for group in layers if not bool(keep[group.name].all()))
    gone = {group.name for stack, count in counts.items() for group in criterion.run(evidence, stack, count)}
    return dict(keep) | {g.name: torch.tensor([g.name not in gone]) for g in layers}
