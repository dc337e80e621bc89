"""Which criterion can score which units of a model: asked before any work is done."""

from collections.abc import Sequence
from typing import Any

from patchers.units import Group
from sparse_trainer.criteria.calibration.registry import WIDTH_CRITERIA
from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.statistics.requests import Statistic, unsupported_reason


def check_scorable(groups: Sequence[Group], requests: Sequence[Statistic[Any]], name: str) -> None:
    """Raise `UnsupportedModelError` where a criterion cannot look at a group; names those that can.

    Args:
        requests: What the criterion has to know.
        name: What the user calls it.
    """
    for group in groups:
        reason = unsupported_reason(group, requests)
        if reason is not None:
            able = [
                n
                for n, known in WIDTH_CRITERIA.items()
                if not any(unsupported_reason(g, known().requests()) for g in groups)
            ]
            raise UnsupportedModelError(
                group.name, f"{name} cannot score it: {reason}.", f"Take {', '.join(able)}; or leave it out."
            )
