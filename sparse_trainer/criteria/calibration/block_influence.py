"""Block Influence (ShortGPT, Men et al., arXiv 2403.03853): a layer counts for as much as it turns hidden states."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from patchers.units import LAYERS, Kind
from sparse_trainer.criteria.calibration.base import Evidence
from sparse_trainer.statistics.block_states import BlockStates
from sparse_trainer.statistics.requests import Statistic


@final
@dataclass(frozen=True, kw_only=True)
class BlockInfluence:
    """1 - the mean cosine similarity of what a block reads and what it returns, token by token."""

    kinds: ClassVar[tuple[Kind, ...]] = (LAYERS,)
    standardize: ClassVar[str] = "none"

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return the comparison of states before and behind blocks."""
        return (BlockStates(),)

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return one number per layer, in [0, 2]."""
        return {name: (1 - means.cosine).unsqueeze(0) for name, means in evidence.of(BlockStates()).items()}
