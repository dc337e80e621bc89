"""Fisher: the diagonal Fisher information of the gates (Kwon et al., arXiv 2204.09656), sum over sequences of g^2.

Half of it is the second-order cost of removing the unit: additive, and comparable across layers and kinds.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from patchers.units import BLOCK_KINDS, Kind
from sparse_trainer.criteria.calibration.base import Evidence
from sparse_trainer.statistics.mask_gradients import MaskGradients
from sparse_trainer.statistics.requests import Statistic


@final
@dataclass(frozen=True, kw_only=True)
class Fisher:
    """Squared mask gradients, summed over sequences."""

    kinds: ClassVar[tuple[Kind, ...]] = BLOCK_KINDS
    standardize: ClassVar[str] = "cost"

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return mask gradients."""
        return (MaskGradients(),)

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return the Fisher information of every gate."""
        return {name: sums.square_U for name, sums in evidence.of(MaskGradients()).items()}
