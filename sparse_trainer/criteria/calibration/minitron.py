"""Minitron's activation norm (Muralidharan et al., arXiv 2407.14679): what a unit says on average, sign aside."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from patchers.units import CHANNELS, HEADS, Kind
from sparse_trainer.criteria.calibration.base import Evidence, per_unit
from sparse_trainer.statistics.requests import Statistic
from sparse_trainer.statistics.sequence_means import SequenceMeans


@final
@dataclass(frozen=True, kw_only=True)
class Minitron:
    """sqrt(sum over sequences of (mean over tokens of |x|)^2); of a head, the L2 norm over its features."""

    kinds: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    standardize: ClassVar[str] = "zscore_layer"

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return means per sequence."""
        return (SequenceMeans(),)

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return the scores."""
        means = evidence.of(SequenceMeans())
        return {g.name: per_unit(means[g.name], g.consumer_slice).sqrt() for g in evidence.structure.groups}
