"""K-FAC OBS: how much the loss rises when the unit goes and the consumer is refitted.

score_S = 1/2 tr(G W_S ((H^-1)_SS)^-1 W_S^T), with H the damped second moments of what the consumer reads and
G = E[g g^T] of the loss gradient at its output: the second-order rise of the loss in K-FAC's approximation
(arXiv 1503.05671). `obs` knows no loss, and `fisher` no refit; this knows both, in nats per token, so that layers and
kinds compare. It assumes the repair: use it with `least_squares`.
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
from sparse_trainer.statistics.output_gradients import OutputGradients
from sparse_trainer.statistics.requests import Statistic

# Shape legend: O = outputs, I = input features, U = units, W = features of a unit.


@final
@dataclass(frozen=True, kw_only=True)
class KfacObs:
    """Second-order rise of the loss, the other columns refitted."""

    kinds: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    standardize: ClassVar[str] = "cost"
    damping: float = 0.01
    """Added to the diagonal of H, relative to its mean."""
    rounds: int = 16
    """In every round the cheapest 1/rounds of a group's units go, and the others are scored again without them; what
    went later never counts less than what went before. 1 = all units against the dense layer."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or not self.damping > 0:
            raise ArgumentError(
                "kfac_obs", f"rounds={self.rounds}, damping={self.damping}.", "Give positive numbers."
            )

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return covariances, and gradients at outputs."""
        return (Moments(covariance=True), OutputGradients())

    @torch.no_grad()
    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return the scores, in nats per token."""
        found = {}
        moments, gradients = evidence.of(Moments(covariance=True)), evidence.of(OutputGradients())
        for g in evidence.structure.groups:
            second_II = damped(moments[g.name].second_II, self.damping)
            weight_OI = consumer_weight(evidence.model, g).to(second_II.dtype)
            felt_OI = _root(gradients[g.name].second_OO.to(second_II.dtype)) @ weight_OI
            index_UW = g.consumer_slice.index_UW.to(weight_OI.device)
            found[g.name] = 0.5 * self._of_group(felt_OI, second_II, index_UW)
        return found

    def _of_group(self, weight_OI: Tensor, second_II: Tensor, index_UW: Tensor) -> Tensor:
        score_U = weight_OI.new_zeros(len(index_UW))
        least = weight_OI.new_zeros(())
        for now in rounds_of_removal(weight_OI, second_II, index_UW, self.rounds):
            score_U[now.remaining_R] = torch.maximum(now.cost_R, least)
            least = torch.maximum(now.cost_R[now.going_G].max(), least)
        return score_U


def _root(second_OO: Tensor) -> Tensor:
    """Return S with S^T S = G, for a G that may be singular."""
    value_O, vector_OO = torch.linalg.eigh(second_OO)
    root_OO: Tensor = value_O.clamp_min(0).sqrt().unsqueeze(-1) * vector_OO.T
    return root_OO
