"""AFR, structured (AFR-St, arXiv 2607.08027): z(ReFer-SVD) + z(SNIP^p), each trimmed, signed within a sequence.

The published code asks the model for the current last token; here the loss is the ordinary one over all tokens.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from patchers.units import CHANNELS, HEADS, Kind
from sparse_trainer.budget.standardize import STANDARDIZERS
from sparse_trainer.criteria.calibration.base import Evidence
from sparse_trainer.criteria.calibration.refer_svd import ReferSvd
from sparse_trainer.criteria.calibration.snip import Snip
from sparse_trainer.errors import ArgumentError, one_of
from sparse_trainer.statistics.requests import Statistic


@final
@dataclass(frozen=True, kw_only=True)
class Afr:
    """Sum of two standardised sensitivities: of the representations and of the loss."""

    kinds: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    standardize: ClassVar[str] = "none"
    power: float = 2.0
    """Exponent of the loss's sensitivity."""
    trim: float = 0.02
    """Share of the hidden features left out on either side; nothing is left out where that is less than one."""
    within: str = "zscore_global"
    """Normaliser of either part: zscore_global, over all units of a kind, or zscore_layer."""

    def __post_init__(self) -> None:
        one_of("afr.within", self.within, ("zscore_global", "zscore_layer"))
        if not 0 <= self.trim < 0.5:
            raise ArgumentError(
                "afr.trim", f"{self.trim!r} is not in [0, 0.5).", "Give the share to leave out."
            )

    @property
    def _parts(self) -> tuple[ReferSvd, Snip]:
        return ReferSvd(trim=self.trim), Snip(trim=self.trim)

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return what the two parts need."""
        refer, snip = self._parts
        return refer.requests() + snip.requests()

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return the scores."""
        refer, snip = (part.scores(evidence) for part in self._parts)
        costs, kinds = dict.fromkeys(refer, 1), evidence.structure.kinds
        standardized = STANDARDIZERS[self.within]
        first = standardized(refer, costs, kinds)
        second = standardized({name: s_U.pow(self.power) for name, s_U in snip.items()}, costs, kinds)
        return {name: first[name] + second[name] for name in first}
