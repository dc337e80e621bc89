"""Repair by one factor per unit."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sparse_trainer.one_shot.repairs.base import DAMPING, Consumer, Repaired
from sparse_trainer.one_shot.repairs.solve import check_tokens, solve
from sparse_trainer.statistics.moments import Moments, MomentSums

# Shape legend: O = outputs, I = input features, K = kept features, U = units, W = features of a unit.


@final
@dataclass(frozen=True, kw_only=True)
class Scale:
    """`scale`: every kept unit gets the factor that makes the error of the output least."""

    damping: float = DAMPING

    @property
    def adds_bias(self) -> bool:
        """Never."""
        return False

    def request(self) -> Moments:
        """Return means and covariances."""
        return Moments(covariance=True)

    def refit(self, consumer: Consumer) -> Repaired:
        """Return the kept columns, each unit's by its factor; features of no unit are units of their own."""
        units, width = consumer.index_UW.shape
        device = consumer.keep_I.device
        unit_I = torch.arange(units, units + len(consumer.keep_I), device=device)
        unit_I[consumer.index_UW.flatten()] = torch.arange(units, device=device).repeat_interleave(width)
        return scale(
            consumer.weight_OI,
            consumer.moments,
            consumer.keep_I,
            unit_I,
            damping=self.damping,
            name=consumer.name,
        )


def scale(
    weight_OI: Tensor,
    moments: MomentSums,
    keep_I: Tensor,
    unit_I: Tensor,
    *,
    damping: float,
    name: str = "scale",
) -> Repaired:
    """Rescale every kept unit so that the output error is least (mask tuning of Kwon et al., arXiv 2204.09656).

    Args:
        unit_I: Unit of every feature.
        damping: Pull towards 1, relative to the mean of the normal equations' diagonal.
    """
    check_tokens(moments, int(keep_I.sum()), name)
    second_II = moments.second_II.to(weight_OI.dtype)
    gram_KI = weight_OI[:, keep_I].T @ weight_OI * second_II[keep_I]
    units, of_K = unit_I[keep_I].unique(return_inverse=True)
    size = len(units)
    rows = gram_KI.new_zeros(size, gram_KI.shape[1]).index_add_(0, of_K, gram_KI)
    normal_UU = rows.new_zeros(size, size).index_add_(1, of_K, rows[:, keep_I])
    gain_U = solve(normal_UU, rows[:, ~keep_I].sum(1, keepdim=True), damping, name).squeeze(1)
    return Repaired(weight_OK=weight_OI[:, keep_I] * (1.0 + gain_U[of_K]))
