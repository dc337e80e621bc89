"""SNIP (Lee et al., arXiv 1810.02340) for whole units: sensitivity of the loss to a unit's weights.

The structured form of AFR-St's code: over the linears of a unit the signed products w g meet at each hidden feature;
their mean over the hidden features, absolute per sequence. The original sums |w g| over the weights, divided by the
total.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from patchers.units import CHANNELS, HEADS, Kind
from sparse_trainer.criteria.calibration.base import Evidence
from sparse_trainer.statistics.elements import Elements
from sparse_trainer.statistics.requests import Statistic


@final
@dataclass(frozen=True, kw_only=True)
class Snip:
    """Sensitivity of the loss, per sequence."""

    kinds: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    standardize: ClassVar[str] = "cost"
    signed: bool = True
    """True = the structured form, with signs; False = absolute value of every weight, a share of the model's total."""
    trim: float = 0.0
    """Of the signed form: share of the hidden features left out on either side."""

    @property
    def _request(self) -> Elements:
        return Elements(form="trimmed", trim=self.trim) if self.signed else Elements(form="absolute")

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return element sums."""
        return (self._request,)

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return the scores."""
        found = {name: sums_TU.sum(0) for name, sums_TU in evidence.of(self._request).items()}
        if self.signed:
            return found
        total = torch.stack([score_U.sum() for score_U in found.values()]).sum()
        return {name: score_U / total for name, score_U in found.items()}
