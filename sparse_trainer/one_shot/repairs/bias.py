"""Repair by the bias alone."""

from dataclasses import dataclass
from typing import ClassVar, final

from sparse_trainer.one_shot.repairs.base import Consumer, Repaired
from sparse_trainer.statistics.moments import Moments

# Shape legend: P = removed features.


@final
@dataclass(frozen=True, kw_only=True)
class FoldMean:
    """`bias`: what the removed features were on average goes into the bias, b + W_P m_P (FLAP, arXiv 2312.11983)."""

    repairs_runs: ClassVar[bool] = False
    request: ClassVar[Moments] = Moments(covariance=False)
    adds_bias: ClassVar[bool] = True

    def refit(self, consumer: Consumer) -> Repaired:
        """Return the kept columns as they are, and what the bias gains."""
        weight_OI, keep_I = consumer.weight_OI, consumer.keep_I
        mean_P = consumer.moments.mean_I[~keep_I].to(weight_OI.dtype)
        return Repaired(weight_OK=weight_OI[:, keep_I], shift_O=weight_OI[:, ~keep_I] @ mean_P)
