"""Relative norm: a layer counts for as much as it adds to hidden states, for their length."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from patchers.units import LAYERS, Kind
from sparse_trainer.criteria.calibration.base import Evidence
from sparse_trainer.statistics.block_states import BlockStates
from sparse_trainer.statistics.requests import Statistic


@final
@dataclass(frozen=True, kw_only=True)
class RelativeNorm:
    """Mean of |y - x| / |x| over tokens, x what a block reads and y what it returns."""

    kinds: ClassVar[tuple[Kind, ...]] = (LAYERS,)
    standardize: ClassVar[str] = "none"

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return the comparison of states before and behind blocks."""
        return (BlockStates(),)

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return one number per layer."""
        return {
            name: means.relative_change.unsqueeze(0) for name, means in evidence.of(BlockStates()).items()
        }
