"""ReFer-SVD: sensitivity of the size of the representations, without labels (AFR-St's code, `structured_refer_svd`).

The original takes the mean singular value of a module's output, one sequence at a time, flattened to one row: that is
its Frobenius norm, and so is this. We look at the linears of the pruned groups; the original counts containers twice.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from patchers.units import CHANNELS, HEADS, Kind
from sparse_trainer.criteria.calibration.base import Evidence
from sparse_trainer.errors import ArgumentError
from sparse_trainer.statistics.elements import Elements
from sparse_trainer.statistics.requests import Statistic


@final
@dataclass(frozen=True, kw_only=True)
class ReferSvd:
    """|mean over hidden features of w dF/dw|, per sequence, where F is the sum of the output norms."""

    kinds: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    standardize: ClassVar[str] = "cost"
    trim: float = 0.0
    """Share of the hidden features left out on either side."""

    def __post_init__(self) -> None:
        if not 0 <= self.trim < 0.5:
            raise ArgumentError("refer_svd.trim", f"{self.trim} is not in [0, 0.5).", "Give e.g. 0.1.")

    @property
    def _request(self) -> Elements:
        return Elements(loss="output_norm", form="trimmed", trim=self.trim)

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return element sums of the output norms."""
        return (self._request,)

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return the scores."""
        return {name: sums_TU.sum(0) for name, sums_TU in evidence.of(self._request).items()}
