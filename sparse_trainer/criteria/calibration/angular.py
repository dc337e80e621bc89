"""Angular distance (Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers", arXiv 2403.17887).

A run of n consecutive layers counts for the angle between the hidden states in front of it and behind it. The run with
the smallest angle goes as a whole.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from patchers.units import LAYERS, Group, Kind
from sparse_trainer.criteria.calibration.base import Evidence, leaves_one
from sparse_trainer.errors import BudgetError
from sparse_trainer.statistics.block_angles import BlockAngles
from sparse_trainer.statistics.requests import Statistic

# Shape legend: S = places between the blocks of a stack, the one behind the last block included.


@final
@dataclass(frozen=True, kw_only=True)
class Angular:
    """Mean angle between the states in front of and behind a run of layers, as a share of half a turn."""

    kinds: ClassVar[tuple[Kind, ...]] = (LAYERS,)
    standardize: ClassVar[str] = "none"
    last_token: bool = False
    """Look at the last token of each sequence only, as published; default: at all of them."""

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return the angles between all places."""
        return (BlockAngles(last_token=self.last_token),)

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return the angle by which each layer alone turns the states."""
        angles = evidence.of(self.requests()[0])
        layer = {group.name: group.layer for group in evidence.structure.groups}
        return {
            name: angles_SS[layer[name], layer[name] + 1].unsqueeze(0) for name, angles_SS in angles.items()
        }

    def run(self, evidence: Evidence, stack: str, count: int) -> list[Group]:
        """Return the layers of the run that turns the states least.

        Raises:
            BudgetError: protected layers, or the only one of its sort, stand in every run of this length.
        """
        layers = {g.layer: g for g in evidence.structure.of((LAYERS,)) if g.stack == stack}
        runs = [
            [layers[layer] for layer in range(first, first + count)]
            for first in sorted(layers)
            if all(layer in layers for layer in range(first, first + count))
        ]
        possible = [run for run in runs if leaves_one(run, evidence.structure)]
        if not possible:
            raise BudgetError(
                "density",
                f"no run of {count} layers of {stack} may go: each holds a protected layer, or all of a sort.",
                "Ask for a higher density, protect less, or take block_influence.",
            )
        angles = evidence.of(self.requests()[0])
        return min(possible, key=lambda run: float(angles[run[0].name][run[0].layer, run[-1].layer + 1]))
