"""Units that a second run may not close: the survivors of a first one, by its plan."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from patchers.discovery.discover import discover
from patchers.units import KINDS, Structure
from sparse_trainer.errors import BudgetError
from sparse_trainer.plan.document import Plan

# Shape legend: U = units of a group.

_FIRST = 1e30
"""Above every score, and small enough that sums of it stay finite."""


@dataclass(frozen=True, kw_only=True)
class Protection:
    """Whose survivors may not close."""

    plan: str
    """Of the first run: a file, or a folder with a plan in it."""
    kinds: tuple[str, ...]
    """Kinds of unit that are protected."""


def protected_units(
    protection: Protection | None, model: nn.Module, structure: Structure
) -> dict[str, Tensor]:
    """Return what the plan of a first run kept, shape [U], by name, for the groups of the protected kinds.

    Raises:
        CheckpointError: the plan is damaged, or was made for another model.
    """
    if protection is None:
        return {}
    keep = Plan.load(protection.plan).keep_for(discover(model, KINDS))
    return {g.name: keep[g.name] for g in structure.of(protection.kinds) if g.name in keep}


def put_first(scores: Mapping[str, Tensor], protected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return scores that put the protected units before all others, each in its group and its pool.

    `protected` moves to the device of the scores, once.

    >>> put_first({"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([True, False])})["a"] > 2
    tensor([ True, False])
    """
    first = dict(scores)
    for name, keep_U in protected.items():
        score_U = scores[name]
        if keep_U.device != score_U.device:
            protected[name] = keep_U.to(score_U.device)
        first[name] = score_U.masked_fill(protected[name], _FIRST)
    return first


def check_affordable(
    protected: dict[str, Tensor],
    structure: Structure,
    select: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
) -> None:
    """Raise `BudgetError` unless the budget pays for all protected units.

    Args:
        select: Returns what the budget keeps under some scores.
    """
    scores = put_first({g.name: torch.zeros(g.num_units) for g in structure.groups}, protected)
    keep = select(scores)
    lost = [name for name, keep_U in protected.items() if not bool(keep[name][keep_U].all())]
    if lost:
        raise BudgetError(
            "protect_plan",
            f"the budget does not pay for the protected units, of {lost[0]} for one.",
            "Ask for a larger `density`, or protect fewer kinds (`protect_kinds`).",
        )
