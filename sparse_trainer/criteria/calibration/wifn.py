"""WIFN, the weighted norm of FLAP (arXiv 2312.11983): mean |W| times the norm of x over all tokens.

The same order as structured Wanda; unlike it, the score grows with the square root of the number of tokens.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from patchers.units import CHANNELS, HEADS, Kind
from sparse_trainer.criteria.calibration.base import Evidence
from sparse_trainer.criteria.calibration.wanda import Wanda
from sparse_trainer.statistics.moments import Moments
from sparse_trainer.statistics.requests import Statistic


@final
@dataclass(frozen=True, kw_only=True)
class Wifn:
    """Mean over outputs of |W| times the norm of the input feature."""

    kinds: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    standardize: ClassVar[str] = "zscore_layer"

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return second moments."""
        return (Moments(),)

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return the scores."""
        moments = evidence.of(Moments())
        return {name: s_U * moments[name].tokens.sqrt() for name, s_U in Wanda().scores(evidence).items()}
