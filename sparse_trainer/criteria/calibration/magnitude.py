"""Magnitude: keep what is large. Needs no data; a control, and a bad choice for channels of language models."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from sparse_trainer.criteria.calibration.base import Evidence
from sparse_trainer.criteria.magnitude import magnitude
from sparse_trainer.errors import ArgumentError
from sparse_trainer.statistics.requests import Statistic


@final
@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """Sum of |w| or w^2 over every weight of a unit."""

    standardize: ClassVar[str] = "cost"
    norm: int = 2
    """1 or 2."""

    def __post_init__(self) -> None:
        if self.norm not in (1, 2):
            raise ArgumentError("magnitude.norm", f"{self.norm!r} is neither 1 nor 2.", "Give 1 or 2.")

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return nothing: weights are enough."""
        return ()

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return the magnitudes."""
        return {g.name: magnitude(evidence.model, g, self.norm) for g in evidence.structure.groups}
