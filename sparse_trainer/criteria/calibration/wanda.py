"""Wanda for whole units: |w| times the root mean square of the activation it reads (Sun et al., arXiv 2306.11695).

The structured form of FLAP's code (`wanda_sp`): mean over outputs of |W| rms(x) for every column of the consumer,
summed over the columns of a unit.
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
class Wanda:
    """Mean over outputs of |W| times rms(x), per token, so that it does not grow with the calibration set."""

    kinds: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    standardize: ClassVar[str] = "zscore_layer"

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return second moments."""
        return (Moments(),)

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return the scores."""
        found, moments = {}, evidence.of(Moments())
        for g in evidence.structure.groups:
            second_I = moments[g.name].second_I
            column_I = consumer_weight(evidence.model, g).abs().mean(0)
            found[g.name] = per_unit(column_I * second_I.sqrt(), g.consumer_slice)
        return found
