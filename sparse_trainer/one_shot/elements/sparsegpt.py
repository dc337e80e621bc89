"""SparseGPT (Frantar & Alistarh, arXiv 2301.00774): zeros column by column, the weights behind them refitted.

With H = E[x xᵀ] + d mean(diag H) I and U the upper Cholesky factor of H⁻¹, a weight that goes costs w² / U_ii², and
what its output lacks is made up for by the inputs after it: w_j -= w_i / U_ii U_ij for j > i (algorithm 1).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Final, final

import torch
from torch import Tensor

from sparse_trainer.budget.masks import largest, largest_of_rows, n_of_m
from sparse_trainer.errors import ArgumentError, NonFiniteError
from sparse_trainer.one_shot.elements.base import Ask, Compare, found_for
from sparse_trainer.one_shot.elements.counts import kept_of
from sparse_trainer.statistics.moments import Moments
from sparse_trainer.statistics.requests import Statistic, Statistics

# Shape legend: O x I = a weight, outputs by inputs; C = columns of one strip.

_INPUTS: Final = Moments(every_linear=True, covariance=True)


@final
@dataclass(frozen=True, kw_only=True)
class SparseGPT:
    """Optimal brain surgeon over rows that share one order of inputs."""

    compare: ClassVar[Compare] = "tensor"
    columns: int = 128
    """Inputs whose zeros are chosen at once, by what the strips before them have left."""
    damping: float = 0.01
    """Of H, relative to the mean of its diagonal."""

    def __post_init__(self) -> None:
        if self.columns < 1:
            raise ArgumentError("obs.columns", f"{self.columns} is not positive.", "Give e.g. 128.")
        if not (math.isfinite(self.damping) and self.damping > 0):
            raise ArgumentError(
                "obs.damping", f"{self.damping} is not positive, or endless.", "Give e.g. 0.01."
            )

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return second moments of what the linears read, with all products."""
        return (_INPUTS,)

    def check(self, ask: Ask) -> None:
        """Refuse a comparison of all linears, and strips that cut the pattern in two."""
        if ask.compare == "global":
            raise ArgumentError(
                "compare", "obs refits one linear after the other.", "Take 'tensor' or 'row', or wanda."
            )
        if ask.pattern is not None and self.columns % ask.pattern.m:
            raise ArgumentError(
                "obs.columns",
                f"{self.columns} columns are no multiple of {ask.pattern.m}.",
                f"Give e.g. {32 * ask.pattern.m}.",
            )

    def refit(self, weight_OI: Tensor, path: str, statistics: Statistics, ask: Ask) -> Tensor:
        """Return the refitted weight with zeros.

        Raises:
            NonFiniteError: H cannot be inverted.
        """
        second_II = found_for(path, _INPUTS, statistics).second_II
        return pruned(weight_OI, self._factor(second_II, path).to(weight_OI), ask, self.columns)

    def _factor(self, second_II: Tensor, path: str) -> Tensor:
        """Return U, upper triangular, with Uᵀ U = H⁻¹."""
        least = torch.finfo(second_II.dtype).eps
        added = self.damping * second_II.diagonal().mean().clamp_min(least)
        second_II.diagonal().add_(added)
        lower_II, failed = torch.linalg.cholesky_ex(second_II)
        if int(failed):
            raise NonFiniteError(
                path,
                "the moments of its inputs cannot be inverted.",
                "Give obs more damping: obs(damping=0.1).",
            )
        upper_II: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower_II), upper=True)
        return upper_II


def pruned(weight_OI: Tensor, factor_II: Tensor, ask: Ask, columns: int) -> Tensor:
    """Return a weight with its zeros, chosen and made up for strip by strip.

    Args:
        factor_II: Upper triangular U with Uᵀ U = H⁻¹.
        columns: Width of a strip.
    """
    left_OI, inputs = weight_OI.clone(), weight_OI.shape[1]
    done = 0
    for start in range(0, inputs, columns):
        end = min(start + columns, inputs)
        strip_CC = factor_II[start:end, start:end]
        keep_OC = None
        if ask.pattern is None:
            score_OC = (left_OI[:, start:end] / strip_CC.diagonal()).square()
            keep_OC, done = _best(score_OC, ask, done, end)
        error_OC = _strip(left_OI[:, start:end], strip_CC, keep_OC, ask)
        left_OI[:, end:] -= error_OC @ factor_II[start:end, end:]
    return left_OI


def _best(score_OC: Tensor, ask: Ask, done: int, end: int) -> tuple[Tensor, int]:
    """Return which weights of a strip stay, and how many stay up to its end: of a row, or of the linear."""
    rows, columns = score_OC.shape
    per_row = ask.compare == "row"
    total = kept_of(end if per_row else end * rows, ask.density)
    # What rounding takes from one strip it gives to the next.
    count = min(total - done, columns if per_row else score_OC.numel())
    if count <= 0:
        return torch.zeros_like(score_OC, dtype=torch.bool), done
    keep_OC = largest_of_rows(score_OC, count) if per_row else largest(score_OC, count)
    return keep_OC, done + count


def _strip(left_OC: Tensor, factor_CC: Tensor, keep_OC: Tensor | None, ask: Ask) -> Tensor:
    """Prune the columns of a strip in place, one after the other; return w / U_ii of the weights that went, else 0."""
    error_OC = torch.zeros_like(left_OC)
    chosen_OC = torch.ones_like(left_OC, dtype=torch.bool) if keep_OC is None else keep_OC
    for column in range(left_OC.shape[1]):
        pattern = ask.pattern
        if pattern is not None and column % pattern.m == 0:
            run = slice(column, column + pattern.m)
            score_OM = (left_OC[:, run] / factor_CC.diagonal()[run]).square()
            chosen_OC[:, run] = n_of_m(score_OM, pattern.n, pattern.m)
        keep_O, weight_O = chosen_OC[:, column], left_OC[:, column].clone()
        error_O = torch.where(keep_O, 0.0, weight_O / factor_CC[column, column])
        left_OC[:, column:] -= torch.outer(error_O, factor_CC[column, column:])
        left_OC[:, column] = torch.where(keep_O, weight_O, 0.0)
        error_OC[:, column] = error_O
    return error_OC
