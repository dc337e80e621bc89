"""Which criterion can score which units of a model: asked before any work is done."""

from collections.abc import Sequence

from patchers.units import Group
from sparse_trainer.criteria.calibration.registry import WIDTH_CRITERIA
from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.statistics.needs import Need, lacks


def check_scorable(groups: Sequence[Group], needs: Sequence[Need], name: str) -> None:
    """Raise `UnsupportedModelError` where a criterion cannot look at a group; names those that can.

    Args:
        needs: What the criterion has to know.
        name: What the user calls it.
    """
    for group in groups:
        reason = lacks(group, needs)
        if reason is not None:
            able = [
                n for n, known in WIDTH_CRITERIA.items() if not any(lacks(g, known().needs()) for g in groups)
            ]
            raise UnsupportedModelError(
                group.name, f"{name} cannot score it: {reason}.", f"Take {', '.join(able)}; or leave it out."
            )
