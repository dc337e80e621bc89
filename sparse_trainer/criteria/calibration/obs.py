"""OBS for whole units (ZipLM, SlimGPT): the least-squares error that the consumer suffers when the unit goes.

score_S = tr(W_S ((H^-1)_SS)^-1 W_S^T), H = C + damping. It assumes the repair: use it with `least_squares`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from patchers.units import CHANNELS, HEADS, Kind
from sparse_trainer.criteria.calibration.base import Evidence, consumer_weight
from sparse_trainer.criteria.elimination import damped, rounds_of_removal
from sparse_trainer.errors import ArgumentError
from sparse_trainer.statistics.moments import Moments
from sparse_trainer.statistics.requests import Statistic

# Shape legend: O = outputs, I = input features, U = units, W = features of a unit.


@final
@dataclass(frozen=True, kw_only=True)
class Obs:
    """Exact increase of the consumer's squared error, the other columns refitted."""

    kinds: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    standardize: ClassVar[str] = "zscore_layer"
    centred: bool = False
    """Use the covariance, for a repair with bias; else the second moments."""
    damping: float = 0.01
    """Added to the diagonal, relative to its mean."""
    rounds: int = 1
    """1 = all units against the dense layer. More: in every round the cheapest 1/rounds of the units go, and the
    others are scored again without them, by the error of all that is gone by then."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or not self.damping > 0:
            raise ArgumentError(
                "obs", f"rounds={self.rounds}, damping={self.damping}.", "Give positive numbers."
            )

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return covariances."""
        return (Moments(covariance=True),)

    @torch.no_grad()
    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return the scores."""
        found, found_moments = {}, evidence.of(Moments(covariance=True))
        for g in evidence.structure.groups:
            moments = found_moments[g.name]
            weight_OI = consumer_weight(evidence.model, g).to(moments.mean_I.dtype)
            assert moments.centred_II is not None
            second_II = moments.centred_II.to(weight_OI.dtype) if self.centred else moments.second_II
            index_UW = g.consumer_slice.index_UW.to(weight_OI.device)
            found[g.name] = self._of_group(weight_OI, damped(second_II, self.damping), index_UW)
        return found

    def _of_group(self, weight_OI: Tensor, second_II: Tensor, index_UW: Tensor) -> Tensor:
        score_U = weight_OI.new_zeros(len(index_UW))
        gone = weight_OI.new_zeros(())
        for now in rounds_of_removal(weight_OI, second_II, index_UW, self.rounds):
            score_U[now.remaining_R] = gone + now.cost_R
            gone = gone + now.cost_R[now.going_G].sum()
        return score_U
