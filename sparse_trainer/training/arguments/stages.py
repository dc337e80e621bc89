"""What a user can ask of a training that meets several budgets in turn."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparse_trainer.budget.stages import Stages
from sparse_trainer.errors import ArgumentError
from sparse_trainer.fields import option


@dataclass(kw_only=True)
class StageArguments:
    """Options of a family: budgets in turn, instead of one."""

    speedups: list[float] | None = option(
        None, "Several, increasing, instead of speedup: one training meets them in turn, and holds at each."
    )
    densities: list[float] | None = option(
        None, "Likewise instead of density: decreasing fractions of the prunable part."
    )

    @property
    def stages(self) -> Stages | None:
        """Budgets that are met in turn; None = there is one."""
        if self.speedups is None and self.densities is None:
            return None
        return Stages(speedups=tuple(self.speedups or ()), densities=tuple(self.densities or ()))

    def check_stages(self, changed: frozenset[str], given: Mapping[str, Any]) -> None:
        """Raise `ArgumentError` for stages that cannot be meant, or one budget beside them.

        Args:
            changed: Options that differ from their defaults.
            given: All options.
        """
        if self.stages is None:
            return
        option = "speedups" if self.stages.speedups else "densities"
        double = next((name for name in ("speedup", "milliseconds", "density") if name in changed), None)
        if double is not None:
            raise ArgumentError(
                double, f"{given[double]} beside {option}={given[option]}.", "Drop one of the two."
            )
