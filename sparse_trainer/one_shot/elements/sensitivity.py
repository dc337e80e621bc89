"""Sensitivities of single weights: |w dL/dw| of one sequence, summed over sequences."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, final

import torch
from torch import Tensor

from sparse_trainer.errors import ArgumentError
from sparse_trainer.one_shot.elements.base import Compare, found_for
from sparse_trainer.statistics.elements import WeightProducts
from sparse_trainer.statistics.requests import Statistic, Statistics

# Shape legend: O x I = a weight, outputs by inputs.

_OF_LABELS: Final = WeightProducts(loss="labels")
_OF_OUTPUTS: Final = WeightProducts(loss="output_norm")


@final
@dataclass(frozen=True, kw_only=True)
class SnipOfWeights:
    """SNIP (Lee et al., arXiv 1810.02340): of the loss. The division by the total moves no rank, and is left out."""

    compare: ClassVar[Compare] = "global"

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return sums of |w dL/dw|."""
        return (_OF_LABELS,)

    def scores(self, weights: Mapping[str, Tensor], statistics: Statistics) -> dict[str, Tensor]:
        """Return the scores."""
        return {path: found_for(path, _OF_LABELS, statistics) for path in weights}


@final
@dataclass(frozen=True, kw_only=True)
class ReferSvdOfWeights:
    """ReFer-SVD (AFR-St's code): of the sum of the output norms of the linears, without labels."""

    compare: ClassVar[Compare] = "global"

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return sums of |w dF/dw|."""
        return (_OF_OUTPUTS,)

    def scores(self, weights: Mapping[str, Tensor], statistics: Statistics) -> dict[str, Tensor]:
        """Return the scores."""
        return {path: found_for(path, _OF_OUTPUTS, statistics) for path in weights}


@final
@dataclass(frozen=True, kw_only=True)
class AfrOfWeights:
    """AFR (AFR-St's code): z(ReFer-SVD) + z(SNIP), each over all weights that are masked."""

    compare: ClassVar[Compare] = "global"
    power: float = 1.0
    """Exponent of the loss's sensitivity; 2 in the form for whole units."""

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise ArgumentError("afr.power", f"{self.power!r} is not positive.", "Give e.g. 1.")

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return what both parts need: one forward, two backward passes."""
        return (_OF_LABELS, _OF_OUTPUTS)

    def scores(self, weights: Mapping[str, Tensor], statistics: Statistics) -> dict[str, Tensor]:
        """Return the scores."""
        refer = ReferSvdOfWeights().scores(weights, statistics)
        snip = SnipOfWeights().scores(weights, statistics)
        if self.power != 1.0:
            snip = {path: score_OI.pow(self.power) for path, score_OI in snip.items()}
        first, second = _moments(refer), _moments(snip)
        return {
            path: (refer[path] - first[0]) / first[1] + (snip[path] - second[0]) / second[1]
            for path in weights
        }


def _moments(scores: Mapping[str, Tensor]) -> tuple[float, float]:
    """Return mean and standard deviation of all scores; 1 in the place of a deviation of 0."""
    count = sum(score_OI.numel() for score_OI in scores.values())
    mean = sum(float(score_OI.sum(dtype=torch.float64)) for score_OI in scores.values()) / count
    squares = sum(float((score_OI.double() - mean).square().sum()) for score_OI in scores.values())
    return mean, (squares / count) ** 0.5 or 1.0
