"""Which criterion can score which units of a model: asked before any work is done."""

from collections.abc import Collection, Sequence

from patchers.units import KINDS, Group, Kind
from sparse_trainer.criteria.calibration.base import WidthCriterion
from sparse_trainer.criteria.calibration.registry import WIDTH_CRITERIA
from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.statistics.requests import unsupported_reason


def scored_kinds(criterion: WidthCriterion) -> tuple[Kind, ...]:
    """Return the kinds of unit that a criterion scores: those it knows a score for, and can get the statistics of."""
    requests = criterion.requests()
    return tuple(kind for kind in KINDS if kind in criterion.kinds and all(kind in r.kinds for r in requests))


def criteria_for(kinds: Collection[Kind]) -> list[str]:
    """Return the names of the criteria that score all of these kinds of unit."""
    return [name for name, known in WIDTH_CRITERIA.items() if set(kinds) <= set(scored_kinds(known()))]


def check_scorable(groups: Sequence[Group], criterion: WidthCriterion, name: str) -> None:
    """Raise `UnsupportedModelError` where a criterion cannot look at a group; names those that can.

    Args:
        name: What the user calls the criterion.
    """
    for group in groups:
        reason = _reason(group, criterion)
        if reason is not None:
            able = [n for n, known in WIDTH_CRITERIA.items() if not any(_reason(g, known()) for g in groups)]
            raise UnsupportedModelError(
                group.name, f"{name} cannot score it: {reason}.", f"Take {', '.join(able)}; or leave it out."
            )


def _reason(group: Group, criterion: WidthCriterion) -> str | None:
    """Return why a criterion cannot score the units of a group, None where it can."""
    reason = unsupported_reason(group, criterion.requests())
    return f"it scores no {group.kind}" if reason is None and group.kind not in criterion.kinds else reason
