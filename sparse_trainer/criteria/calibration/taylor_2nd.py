"""Taylor, second order: dL = -w g + w^2 h / 2 when a weight or a unit goes, with h = g^2 of a sequence.

LLM-Pruner's `param_mix` is |w g - w^2 h / 2|, the absolute value of that change; others add two positive terms.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final, get_args

from torch import Tensor

from patchers.units import BLOCK_KINDS, Kind
from sparse_trainer.criteria.calibration.base import Evidence
from sparse_trainer.errors import one_of
from sparse_trainer.statistics.elements import Elements
from sparse_trainer.statistics.mask_gradients import MaskGradients, MaskGradientSums
from sparse_trainer.statistics.requests import Statistic

# Shape legend: U = units.

Sign = Literal["upper", "removal", "signed_removal"]
Level = Literal["element", "unit"]


@final
@dataclass(frozen=True, kw_only=True)
class TaylorSecond:
    """Second-order change of the loss, per weight and summed, or of the unit's gate as a whole."""

    kinds: ClassVar[tuple[Kind, ...]] = BLOCK_KINDS
    standardize: ClassVar[str] = "cost"
    sign: Sign = "upper"
    """upper: |w g| + w^2 h / 2, no cancellation; removal: |w g - w^2 h / 2| per sequence; signed_removal:
    -w g + w^2 h / 2, summed with its sign over weights and sequences."""
    level: Level = "element"
    """element: every weight by itself. unit: the gate, w = 1 and g = the mask gradient; `removal` is then not known
    per sequence and means the absolute value of the sum."""

    def __post_init__(self) -> None:
        one_of("taylor_2nd.sign", self.sign, get_args(Sign))
        one_of("taylor_2nd.level", self.level, get_args(Level))

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return element sums, or mask gradients."""
        return (MaskGradients(),) if self.level == "unit" else (Elements(form=self.sign),)

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return the scores."""
        if self.level == "unit":
            return {name: self._of_unit(sums) for name, sums in evidence.of(MaskGradients()).items()}
        return {name: sums_TU.sum(0) for name, sums_TU in evidence.of(Elements(form=self.sign)).items()}

    def _of_unit(self, sums: MaskGradientSums) -> Tensor:
        curvature_U = 0.5 * sums.square_U
        if self.sign == "upper":
            return sums.absolute_U + curvature_U
        change_U = curvature_U - sums.sum_U
        return change_U.abs() if self.sign == "removal" else change_U
