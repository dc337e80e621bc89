"""IFV, the plain fluctuation of FLAP (arXiv 2312.11983): the variance of what a unit feeds its consumer."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from patchers.units import CHANNELS, HEADS, Kind
from sparse_trainer.criteria.calibration.base import Evidence, per_unit
from sparse_trainer.statistics.moments import Moments
from sparse_trainer.statistics.requests import Statistic


@final
@dataclass(frozen=True, kw_only=True)
class Ifv:
    """Variance of the consumer's input."""

    kinds: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    standardize: ClassVar[str] = "zscore_layer"

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return means and second moments."""
        return (Moments(),)

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return the scores."""
        moments = evidence.of(Moments())
        return {
            g.name: per_unit(moments[g.name].variance_I, g.consumer_slice) for g in evidence.structure.groups
        }
