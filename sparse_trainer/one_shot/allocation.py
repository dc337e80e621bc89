"""Who stays: widths by one criterion, units inside a layer by the same or by another."""

from collections.abc import Mapping

import torch
from torch import Tensor

from patchers.units import Structure
from sparse_trainer.budget.latency.selector import TimedSelector
from sparse_trainer.budget.selection import Selector
from sparse_trainer.budget.standardize import STANDARDIZERS

# Shape legend: U = units of a group.


def select(
    structure: Structure,
    costs: Mapping[str, int],
    selector: Selector | TimedSelector,
    *,
    scores: Mapping[str, Tensor],
    standardize: str,
    ranks: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return the kept units, booleans of shape [U] by group name.

    Args:
        scores: Decide how much every group keeps.
        standardize: Makes `scores` comparable across groups.
        ranks: Decide which units a group keeps; None = `scores` do.
    """
    # The selector reads float32: scores far apart in scale must not overflow or vanish there.
    keep = selector.select(_scaled(comparable(structure, costs, scores, standardize))).keep
    if ranks is None:
        return keep
    return {name: highest(ranks[name].cpu(), int(keep_U.sum())) for name, keep_U in keep.items()}


def comparable(
    structure: Structure, costs: Mapping[str, int], scores: Mapping[str, Tensor], standardize: str
) -> dict[str, Tensor]:
    """Return the scores of all groups, shape [U], as `standardize` makes them comparable."""
    flat = {g.name: scores[g.name].cpu() for g in structure.groups}
    return STANDARDIZERS[standardize](flat, costs, structure.kinds)


def highest(score_U: Tensor, count: int) -> Tensor:
    """Mark the `count` highest scores; of equal ones the first.

    >>> highest(torch.tensor([1.0, 3.0, 1.0]), 2)
    tensor([ True,  True, False])
    """
    keep_U = torch.zeros(len(score_U), dtype=torch.bool)
    keep_U[score_U.argsort(descending=True, stable=True)[:count]] = True
    return keep_U


def _scaled(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Divide all scores by the largest absolute one, which keeps their order."""
    largest = max((float(score_U.abs().max()) for score_U in scores.values() if len(score_U)), default=0.0)
    return {name: score_U / largest if largest > 0 else score_U for name, score_U in scores.items()}
