"""The linear systems of repairs, damped until they can be solved."""

import logging
from typing import Final

import torch
from torch import Tensor

from sparse_trainer.errors import DataError, NonFiniteError
from sparse_trainer.statistics.moments import MomentSums

# Shape legend: O = outputs, K = kept features or units.

_MOST_DAMPING: Final = 10.0
logger = logging.getLogger(__name__)


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


def solve(matrix_KK: Tensor, right_KO: Tensor, damping: float, name: str) -> Tensor:
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
