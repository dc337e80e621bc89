"""OBS for whole units (ZipLM, SlimGPT): the least-squares error that the consumer suffers when the unit goes.

score_S = tr(W_S ((H^-1)_SS)^-1 W_S^T), H = C + damping. It assumes the repair: use it with `least_squares`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from patchers.units import CHANNELS, HEADS, Kind
from sparse_trainer.criteria.calibration.base import Evidence, consumer_weight
from sparse_trainer.errors import ArgumentError
from sparse_trainer.statistics.moments import Moments, MomentSums
from sparse_trainer.statistics.requests import Statistic

# Shape legend: O = outputs, I = input features, U = units, W = features of a unit, R = units that remain.


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
            index_UW = g.consumer_slice.index_UW.to(weight_OI.device)
            found[g.name] = self._of_group(weight_OI, self._second(moments), index_UW)
        return found

    def _second(self, moments: MomentSums) -> Tensor:
        assert moments.centred_II is not None
        second_II = moments.centred_II.to(moments.mean_I.dtype) if self.centred else moments.second_II
        # Of a consumer whose inputs are all 0 nothing is lost, and the inverse must stay finite.
        mean = second_II.diagonal().mean().clamp_min(torch.finfo(second_II.dtype).eps)
        return second_II + self.damping * mean * torch.eye(
            len(second_II), dtype=second_II.dtype, device=mean.device
        )

    def _of_group(self, weight_OI: Tensor, second_II: Tensor, index_UW: Tensor) -> Tensor:
        units, width = index_UW.shape
        score_U = weight_OI.new_zeros(units)
        remaining_R = torch.arange(units, device=weight_OI.device)
        of_none_I = torch.ones(weight_OI.shape[1], dtype=torch.bool, device=weight_OI.device)
        of_none_I[index_UW.flatten()] = False
        gone = weight_OI.new_zeros(())
        target_OI = weight_OI @ second_II
        for left in range(min(self.rounds, units), 0, -1):
            kept_I = torch.cat([index_UW[remaining_R].flatten(), of_none_I.nonzero().flatten()])
            inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(second_II[kept_I][:, kept_I]))
            fitted_OI = target_OI[:, kept_I] @ inverse_II
            cost_R = block_costs(fitted_OI, inverse_II, len(remaining_R), width)
            score_U[remaining_R] = gone + cost_R
            going = -(-len(remaining_R) // left)
            order_R = cost_R.argsort(stable=True)
            gone = gone + cost_R[order_R[:going]].sum()
            remaining_R = remaining_R[order_R[going:].sort().values]
        return score_U


def block_costs(weight_OI: Tensor, inverse_II: Tensor, units: int, width: int) -> Tensor:
    """Return tr(W_S ((H^-1)_SS)^-1 W_S^T) for the first `units` blocks of `width` columns.

    >>> block_costs(torch.tensor([[2.0, 1.0]]), torch.eye(2), 2, 1)
    tensor([4., 1.])
    """
    columns_UWO = weight_OI.T[: units * width].reshape(units, width, -1)
    if width == 1:
        return columns_UWO.square().sum((1, 2)) / inverse_II.diagonal()[:units]
    starts = range(0, units * width, width)
    blocks_UWW = torch.stack([inverse_II[a : a + width, a : a + width] for a in starts])
    cost_U: Tensor = (columns_UWO * torch.linalg.solve(blocks_UWW, columns_UWO)).sum((1, 2))
    return cost_U
