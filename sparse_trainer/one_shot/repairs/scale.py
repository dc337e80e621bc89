"""Repair by one factor per unit."""

from dataclasses import dataclass
from typing import ClassVar, final

from sparse_trainer.one_shot.repairs.base import DAMPING, Consumer, Repaired
from sparse_trainer.one_shot.repairs.solve import check_tokens, solve
from sparse_trainer.statistics.moments import Moments

# Shape legend: O = outputs, I = input features, K = kept features, U = kept units.


@final
@dataclass(frozen=True, kw_only=True)
class Scale:
    """`scale`: every kept unit gets the factor that makes the output error least (Kwon et al., arXiv 2204.09656)."""

    repairs_runs: ClassVar[bool] = False
    request: ClassVar[Moments] = Moments(covariance=True)
    adds_bias: ClassVar[bool] = False
    damping: float = DAMPING
    """Pull towards 1, relative to the mean of the normal equations' diagonal."""

    def refit(self, consumer: Consumer) -> Repaired:
        """Return the kept columns, each unit's by its factor."""
        weight_OI, keep_I = consumer.weight_OI, consumer.keep_I
        check_tokens(consumer.moments, int(keep_I.sum()), consumer.name)
        second_II = consumer.moments.second_II.to(weight_OI.dtype)
        gram_KI = weight_OI[:, keep_I].T @ weight_OI * second_II[keep_I]
        units, of_K = consumer.unit_I[keep_I].unique(return_inverse=True)
        size = len(units)
        rows = gram_KI.new_zeros(size, gram_KI.shape[1]).index_add_(0, of_K, gram_KI)
        normal_UU = rows.new_zeros(size, size).index_add_(1, of_K, rows[:, keep_I])
        removed_U = rows[:, ~keep_I].sum(1, keepdim=True)
        gain_U = solve(normal_UU, removed_U, self.damping, consumer.name).squeeze(1)
        return Repaired(weight_OK=weight_OI[:, keep_I] * (1.0 + gain_U[of_K]))
