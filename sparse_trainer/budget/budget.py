"""What must remain of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from patchers.units import Group, Kind
from sparse_trainer.errors import ArgumentError, BudgetError

Scope = Literal["global", "layer", "uniform"]
SCOPES: tuple[Scope, ...] = ("global", "layer", "uniform")
Density = float | Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What must remain."""

    density: Density
    """Fraction of the prunable cost to keep, in (0, 1]; or one fraction per kind, counted in units of that kind."""
    scope: Scope = "global"
    multiple_of: Mapping[Kind, int]
    """Kept counts are multiples of this, or the whole group. Kinds that are not named: what their kernels read."""
    min_keep: Mapping[Kind, int]
    """Units that every group keeps."""

    def density_of(self, kind: Kind) -> float:
        """Return the fraction asked of a kind."""
        return self.density if isinstance(self.density, float | int) else self.density.get(kind, 1.0)

    def step_of(self, group: Group) -> int:
        """Return how many units of a group stay or go together.

        Raises:
            ArgumentError: the kernels of the group do not take the multiples asked for.
        """
        step = min(self.multiple_of.get(group.kind, group.multiple_of), group.num_units)
        if not group.fits(step):
            raise ArgumentError(
                "multiple_of",
                f"{step} for {group.kind}, but the kernels of {group.name} take multiples of {group.least_multiple}.",
                f"Leave it out, or give {group.multiple_of}; or call model.set_experts_implementation('eager') first, "
                "and load the result with experts_implementation='eager'.",
            )
        return step


def check_counted(groups: Sequence[Group], costs: Mapping[str, int], density: Density) -> None:
    """Raise `ArgumentError` for kinds of unit that cost nothing: no budget could tell one of them from all.

    Args:
        costs: Cost of one unit, by group name.
    """
    kinds = list(dict.fromkeys(g.kind for g in groups))
    free = [kind for kind in kinds if not any(costs[g.name] for g in groups if g.kind == kind)]
    # One density per kind counts units; what is reached is told in costs nevertheless.
    if free and (free == kinds or isinstance(density, float | int)):
        raise ArgumentError(
            "target",
            f"{', '.join(free)} cost nothing by this count: a token meets as many whichever are gone.",
            "Take `target='params'` or 'units'.",
        )


def check_reachable(asked: float, least: float, where: str = "") -> None:
    """Raise `BudgetError`, with the feasible range, for a density below what floors keep.

    Args:
        asked: The density of a budget, in (0, 1].
        least: The share of the cost that floors keep.
        where: What of the model the budget is for, to follow the density in the message.
    """
    if asked < least - 1e-9:
        raise BudgetError(
            "density",
            f"{asked:g} is not reachable{where}: `min_keep`, `multiple_of` and one layer of every stack and sort "
            f"keep at least {least:.4g}.",
            f"Ask for a density in [{least:.4g}, 1], or lower `min_keep` or `multiple_of`.",
        )
