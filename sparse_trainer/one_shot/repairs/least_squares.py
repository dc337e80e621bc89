"""Repair by least squares: all kept columns are refitted."""

from dataclasses import dataclass
from typing import ClassVar, final

from sparse_trainer.one_shot.repairs.base import DAMPING, Consumer, Repaired
from sparse_trainer.one_shot.repairs.solve import check_tokens, solve
from sparse_trainer.statistics.moments import Moments

# Shape legend: O = outputs, I = input features, K = kept, P = removed features.


@final
@dataclass(frozen=True, kw_only=True)
class LeastSquares:
    """`least_squares`: the kept columns become W_K + W_P C_PK (C_KK + d mean(diag C_KK))^-1.

    The damping d pulls towards W_K, not towards 0. With a bias moments are centred, and the bias takes the rest.
    """

    repairs_runs: ClassVar[bool] = True
    request: ClassVar[Moments] = Moments(covariance=True)
    damping: float = DAMPING
    reconstruct_bias: bool | None = None
    """Whether the bias moves too; None = where there is one."""

    @property
    def adds_bias(self) -> bool:
        """Where a moving bias was asked for."""
        return bool(self.reconstruct_bias)

    def refit(self, consumer: Consumer) -> Repaired:
        """Return the refitted columns and what the bias gains."""
        weight_OI, keep_I, moments = consumer.weight_OI, consumer.keep_I, consumer.moments
        check_tokens(moments, int(keep_I.sum()), consumer.name)
        assert moments.centred_II is not None
        bias = consumer.has_bias if self.reconstruct_bias is None else self.reconstruct_bias
        second_II = (moments.centred_II.double() if bias else moments.second_II).to(weight_OI.dtype)
        kept_OK, removed_OP = weight_OI[:, keep_I], weight_OI[:, ~keep_I]
        if kept_OK.shape[1] == 0:
            update_OK = kept_OK
        else:
            cross_KO = second_II[keep_I][:, ~keep_I] @ removed_OP.T
            update_OK = solve(second_II[keep_I][:, keep_I], cross_KO, self.damping, consumer.name).T
        if not bias:
            return Repaired(weight_OK=kept_OK + update_OK)
        mean_I = moments.mean_I.to(weight_OI.dtype)
        shift_O = removed_OP @ mean_I[~keep_I] - update_OK @ mean_I[keep_I]
        return Repaired(weight_OK=kept_OK + update_OK, shift_O=shift_O)
