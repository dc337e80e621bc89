"""Closed-form repair of a consumer that lost some of its input features: pure functions on a weight and moments.

y = W x + b is the consumer, K the kept and P the removed features of x, C = E[x x^T], S the covariance, m the mean.
"""

import logging
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from sparse_trainer.errors import DataError, NonFiniteError
from sparse_trainer.statistics.moments import MomentSums

# Shape legend: O = outputs, I = input features, K = kept, P = removed features, U = kept units.

Repair = Literal["bias", "scale", "least_squares"]
REPAIRS: Final[tuple[Repair, ...]] = ("bias", "scale", "least_squares")
_MOST_DAMPING: Final = 10.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """What a consumer becomes."""

    weight_OK: Tensor
    """Columns of the kept features."""
    shift_O: Tensor | None = None
    """What the bias gains; None = nothing."""


def fold_mean(weight_OI: Tensor, moments: MomentSums, keep_I: Tensor) -> Repaired:
    """Put what the removed features were on average into the bias: b + W_P m_P (FLAP, arXiv 2312.11983).

    >>> sums = MomentSums(tokens=torch.tensor(9.0), mean_I=torch.tensor([0.0, 2.0]), variance_I=torch.ones(2))
    >>> fold_mean(torch.tensor([[1.0, 3.0]]), sums, torch.tensor([True, False])).shift_O
    tensor([6.])
    """
    mean_P = moments.mean_I[~keep_I].to(weight_OI.dtype)
    return Repaired(weight_OK=weight_OI[:, keep_I], shift_O=weight_OI[:, ~keep_I] @ mean_P)


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
    gain_U = _solve(normal_UU, rows[:, ~keep_I].sum(1, keepdim=True), damping, name).squeeze(1)
    return Repaired(weight_OK=weight_OI[:, keep_I] * (1.0 + gain_U[of_K]))


def least_squares(
    weight_OI: Tensor,
    moments: MomentSums,
    keep_I: Tensor,
    *,
    damping: float,
    bias: bool,
    name: str = "least_squares",
) -> Repaired:
    """Refit the kept columns to the dense output: W_K + W_P C_PK (C_KK + d mean(diag C_KK))^-1.

    The damping d pulls towards W_K, not towards 0. With `bias` moments are centred, and the bias takes the rest.

    Raises:
        DataError: fewer tokens than kept features.
        NonFiniteError: the moments cannot be solved even with large damping.
    """
    check_tokens(moments, int(keep_I.sum()), name)
    assert moments.centred_II is not None
    second_II = (moments.centred_II.double() if bias else moments.second_II).to(weight_OI.dtype)
    kept_OK, removed_OP = weight_OI[:, keep_I], weight_OI[:, ~keep_I]
    if kept_OK.shape[1] == 0:
        update_OK = kept_OK
    else:
        cross_KO = second_II[keep_I][:, ~keep_I] @ removed_OP.T
        update_OK = _solve(second_II[keep_I][:, keep_I], cross_KO, damping, name).T
    if not bias:
        return Repaired(weight_OK=kept_OK + update_OK)
    mean_I = moments.mean_I.to(weight_OI.dtype)
    shift_O = removed_OP @ mean_I[~keep_I] - update_OK @ mean_I[keep_I]
    return Repaired(weight_OK=kept_OK + update_OK, shift_O=shift_O)


def check_tokens(moments: MomentSums, kept: int, name: str) -> None:
    """Raise `DataError` unless there are at least as many tokens as unknowns per output."""
    tokens = int(moments.tokens)
    if tokens < max(kept, 2):
        raise DataError(
            name, f"{tokens} calibration tokens for {kept} kept features.",
            f"Repair needs at least {max(kept, 2)}, and {10 * kept} or more to be good: calibrate with more text.",
        )  # fmt: skip
    if tokens < 10 * kept:
        logger.info("%s: %d tokens for %d kept features; %d would be better.", name, tokens, kept, 10 * kept)


def error(weight_OI: Tensor, moments: MomentSums, keep_I: Tensor, repaired: Repaired) -> Tensor:
    """Return the mean squared distance of the repaired consumer's output from the dense one, summed over outputs."""
    change_OI = weight_OI.clone()
    change_OI[:, keep_I] -= repaired.weight_OK
    second_II = moments.second_II.to(weight_OI.dtype)
    squared = ((change_OI @ second_II) * change_OI).sum()
    if repaired.shift_O is None:
        return squared
    mean_O = change_OI @ moments.mean_I.to(weight_OI.dtype)
    return squared + (repaired.shift_O.square() - 2.0 * repaired.shift_O * mean_O).sum()


def _solve(matrix_KK: Tensor, right_KO: Tensor, damping: float, name: str) -> Tensor:
    """Solve (A + d mean(diag A)) X = R; where A is too ill-conditioned, with ten times the damping, and say so."""
    mean = matrix_KK.diagonal().mean()
    if float(mean) == 0.0:
        return torch.zeros_like(right_KO)
    used = damping
    while True:
        damped_KK = matrix_KK.clone()
        damped_KK.diagonal().add_(used * mean)
        factor_KK, info = torch.linalg.cholesky_ex(damped_KK)
        if int(info) == 0 and _is_conditioned(factor_KK):
            if used != damping:
                logger.warning(
                    "%s: ill-conditioned moments; damping raised from %g to %g.", name, damping, used
                )
            return torch.cholesky_solve(right_KO, factor_KK)
        if used >= _MOST_DAMPING or not bool(torch.isfinite(mean)):
            raise NonFiniteError(
                name,
                "the moments of its input cannot be solved.",
                "Look for NaN weights; or repair by 'bias'.",
            )
        used = max(10.0 * used, 1e-6)


def _is_conditioned(factor_KK: Tensor) -> bool:
    """Tell whether a Cholesky factor has digits left: its diagonal bounds the condition number from below."""
    diagonal_K = factor_KK.diagonal()
    limit = torch.finfo(factor_KK.dtype).eps * len(diagonal_K)
    return bool(diagonal_K.min().square() > limit * diagonal_K.max().square())
