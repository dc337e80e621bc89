"""WIFV, the weighted fluctuation of FLAP (An et al., arXiv 2312.11983): Var(x) times the squared norm of the column.

It assumes that the mean is made up for, by a bias or by least squares.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from patchers.units import CHANNELS, HEADS, Kind
from sparse_trainer.criteria.calibration.base import Evidence, consumer_weight, per_unit
from sparse_trainer.statistics.moments import Moments
from sparse_trainer.statistics.requests import Statistic


@final
@dataclass(frozen=True, kw_only=True)
class Wifv:
    """Variance of what a unit feeds its consumer, weighted by the consumer's columns."""

    kinds: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    standardize: ClassVar[str] = "zscore_layer"
    square_heads: bool = False
    """Square the column scores of heads before they are summed, as FLAP's code does."""

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return means and second moments."""
        return (Moments(),)

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return the scores."""
        found, moments = {}, evidence.of(Moments())
        for g in evidence.structure.groups:
            variance_I = moments[g.name].variance_I
            score_I = variance_I * consumer_weight(evidence.model, g).square().sum(0)
            if self.square_heads and g.kind == HEADS:
                score_I = score_I.square()
            found[g.name] = per_unit(score_I, g.consumer_slice)
        return found
