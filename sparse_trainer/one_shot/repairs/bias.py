"""Repair by the bias alone."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from sparse_trainer.one_shot.repairs.base import Consumer, Repaired
from sparse_trainer.statistics.moments import Moments, MomentSums

# Shape legend: O = outputs, I = input features, K = kept, P = removed features.


@final
@dataclass(frozen=True, kw_only=True)
class FoldMean:
    """`bias`: what the removed features were on average goes into the bias; weights stay."""

    @property
    def adds_bias(self) -> bool:
        """Always: there is nowhere else to write."""
        return True

    def request(self) -> Moments:
        """Return the means."""
        return Moments(covariance=False)

    def refit(self, consumer: Consumer) -> Repaired:
        """Return the kept columns and what the bias gains."""
        return fold_mean(consumer.weight_OI, consumer.moments, consumer.keep_I)


def fold_mean(weight_OI: Tensor, moments: MomentSums, keep_I: Tensor) -> Repaired:
    """Put what the removed features were on average into the bias: b + W_P m_P (FLAP, arXiv 2312.11983).

    >>> import torch
    >>> sums = MomentSums(tokens=torch.tensor(9.0), mean_I=torch.tensor([0.0, 2.0]), variance_I=torch.ones(2))
    >>> fold_mean(torch.tensor([[1.0, 3.0]]), sums, torch.tensor([True, False])).shift_O
    tensor([6.])
    """
    mean_P = moments.mean_I[~keep_I].to(weight_OI.dtype)
    return Repaired(weight_OK=weight_OI[:, keep_I], shift_O=weight_OI[:, ~keep_I] @ mean_P)
