"""Where learned scores start: at the order in which a criterion of one-shot pruning puts the units."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparse_trainer.budget.nesting import Constraint
from sparse_trainer.budget.standardize import STANDARDIZERS, fitting
from sparse_trainer.criteria.calibration.base import Evidence, scores_of
from sparse_trainer.criteria.training.base import Gates, StartsAt
from sparse_trainer.criteria.training.one_shot import OneShot

# Shape legend: U = units of a group, N = units under one constraint.


def start_scores(
    criterion: StartsAt,
    at: OneShot,
    evidence: Evidence,
    gates: Gates,
    *,
    costs: Mapping[str, int],
    constraints: Sequence[Constraint],
) -> None:
    """Let the learned scores of gates start in the order of a criterion of one-shot pruning.

    Args:
        evidence: What `at` asked for.
        costs: Cost of one unit, by group name.
        constraints: What the budget demands.
    """
    raw, kinds = scores_of(at.criterion, evidence, at.name), evidence.structure.kinds
    way = fitting(at.standardize, set(kinds.values()))
    criterion.start(gates, odds_of_ranks(STANDARDIZERS[way](raw, costs, kinds), constraints))


def odds_of_ranks(scores: Mapping[str, Tensor], constraints: Sequence[Constraint]) -> dict[str, Tensor]:
    """Return log-odds of each unit's rank, 0 where the budget ends: above it units would stay, below they would go.

    Ranks, because scores of one-shot criteria lie over many orders of magnitude. Units compete with those under the
    same constraint; the budget ends where the cost of all that rank higher is what may stay.

    Args:
        scores: Shape [U], comparable across the groups of a constraint, by group name.
        constraints: What the budget demands.

    >>> four = Constraint(costs={"a": 1.0, "b": 1.0}, total=4.0, density=0.5)
    >>> odds_of_ranks({"a": torch.tensor([0.1, 9.0]), "b": torch.tensor([3.0, 2.0])}, [four])["b"] > 0
    tensor([ True, False])
    """
    found: dict[str, Tensor] = {}
    for constraint in constraints:
        names = list(constraint.costs)
        sizes = [scores[name].numel() for name in names]
        score_N = torch.cat([scores[name].float() for name in names])
        cost_N = torch.cat([torch.full_like(scores[name].float(), constraint.costs[name]) for name in names])
        order_N = score_N.argsort(stable=True)
        share_N = torch.empty_like(score_N)
        share_N[order_N] = (cost_N[order_N].cumsum(0) - 0.5 * cost_N[order_N]) / cost_N.sum()
        odds_N = share_N.logit(eps=1e-6) - torch.logit(score_N.new_tensor(1.0 - constraint.density), eps=1e-6)
        found.update(zip(names, odds_N.split(sizes), strict=True))
    return found
