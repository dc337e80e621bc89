"""Magnitude: keep the largest weights of every linear (Han et al., arXiv 1506.02626)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from sparse_trainer.one_shot.elements.base import Compare
from sparse_trainer.statistics.requests import Statistic, Statistics


@final
@dataclass(frozen=True, kw_only=True)
class MagnitudeOfWeights:
    """|w|."""

    compare: ClassVar[Compare] = "tensor"

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return nothing: weights are enough."""
        return ()

    def scores(self, weights: Mapping[str, Tensor], statistics: Statistics) -> dict[str, Tensor]:
        """Return the magnitudes."""
        return {path: weight_OI.abs() for path, weight_OI in weights.items()}
