"""Greedy removal of a linear's input units, the columns that stay refitted: the error of every unit, round by round.

OBS for whole units (ZipLM, SlimGPT): with y = W x and H = E[x x^T], a unit S costs tr(W_S ((H^-1)_SS)^-1 W_S^T).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

# Shape legend: O = outputs, I = input features, U = units, W = features of a unit, R = units that remain, G = those of
# them that go now; K = rows of a triangle, C = columns of a strip.

_STRIP: Final = 256
"""Columns of an inverse factor that are solved at once."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round found."""

    remaining_R: Tensor
    """Numbers of the units that are left, ascending."""
    cost_R: Tensor
    """What each of them would cost if it went now, the others refitted."""
    going_G: Tensor
    """Places in `remaining_R` of those that do go, the cheapest first."""


def rounds_of_removal(weight_OI: Tensor, second_II: Tensor, index_UW: Tensor, rounds: int) -> Iterator[Round]:
    """Remove all units in this many rounds, the cheapest of each round at once, and yield what each round found.

    Args:
        second_II: Second moments of the inputs, damped: their inverse is taken.
        index_UW: Columns of each unit; columns of no unit always stay.
        rounds: At most the number of units.
    """
    units, width = index_UW.shape
    of_none_I = torch.ones(weight_OI.shape[1], dtype=torch.bool, device=weight_OI.device)
    of_none_I[index_UW.flatten()] = False
    order_I = torch.cat([index_UW.flatten(), of_none_I.nonzero().flatten()])
    if not torch.equal(order_I, torch.arange(len(order_I), device=order_I.device)):
        second_II = second_II[order_I][:, order_I]
    lower_II = torch.linalg.cholesky(second_II)
    fitted_OI = weight_OI[:, order_I]
    remaining_R = torch.arange(units, device=weight_OI.device)
    if min(rounds, units) == 1:
        cost_R = block_costs(fitted_OI, blocks_of_inverse(lower_II, units, width))
        yield Round(remaining_R=remaining_R, cost_R=cost_R, going_G=cost_R.argsort(stable=True))
        return
    inverse_II = torch.cholesky_inverse(lower_II)
    for left in range(min(rounds, units), 0, -1):
        cost_R = block_costs(fitted_OI, _diagonal_blocks(inverse_II, len(remaining_R), width))
        going_G = cost_R.argsort(stable=True)[: -(-len(remaining_R) // left)]
        yield Round(remaining_R=remaining_R, cost_R=cost_R, going_G=going_G)
        if left == 1:
            return
        stays_R = torch.ones(len(remaining_R), dtype=torch.bool, device=going_G.device)
        stays_R[going_G] = False
        fitted_OI, inverse_II = _without(fitted_OI, inverse_II, stays_R.repeat_interleave(width))
        remaining_R = remaining_R[stays_R]


def _without(fitted_OI: Tensor, inverse_II: Tensor, stays: Tensor) -> tuple[Tensor, Tensor]:
    """Return refitted columns, and the inverse of the moments, without some of the first columns."""
    others = len(inverse_II) - len(stays)
    stays_I = torch.cat([stays, stays.new_ones(others)])
    kept, gone = stays_I.nonzero().flatten(), (~stays_I).nonzero().flatten()
    cross = inverse_II[gone][:, kept]
    factor = torch.linalg.cholesky(inverse_II[gone][:, gone])
    solved = torch.cholesky_solve(cross, factor)
    return fitted_OI[:, kept] - fitted_OI[:, gone] @ solved, inverse_II[kept][:, kept] - cross.T @ solved


def block_costs(weight_OI: Tensor, blocks_UWW: Tensor) -> Tensor:
    """Return tr(W_S B_S^-1 W_S^T) for the first blocks of columns of W.

    Args:
        blocks_UWW: B_S = (H^-1)_SS of each unit.

    >>> block_costs(torch.tensor([[2.0, 1.0]]), torch.ones(2, 1, 1))
    tensor([4., 1.])
    """
    units, width, _ = blocks_UWW.shape
    columns_UWO = weight_OI.T[: units * width].reshape(units, width, -1)
    if width == 1:
        return columns_UWO.square().sum((1, 2)) / blocks_UWW.flatten()
    cost_U: Tensor = (columns_UWO * torch.linalg.solve(blocks_UWW, columns_UWO)).sum((1, 2))
    return cost_U


def blocks_of_inverse(lower_II: Tensor, units: int, width: int) -> Tensor:
    """Return the first diagonal blocks of (L L^T)^-1, shape [U, W, W]; the inverse itself is never formed.

    Column i of L^-1 is zero above row i. So strips of its columns are solved on ever smaller triangles, which takes a
    third of the products of a whole solve, and blocks are products of columns of one strip.

    Args:
        lower_II: L, lower triangular.

    >>> blocks_of_inverse(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), 2, 1).flatten()
    tensor([0.2500, 0.0625])
    """
    size, in_strip = len(lower_II), max(1, _STRIP // width)
    blocks = []
    for first in range(0, units, in_strip):
        count, start = min(in_strip, units - first), first * width
        unit_KC = torch.eye(size - start, count * width, dtype=lower_II.dtype, device=lower_II.device)
        column_KC = torch.linalg.solve_triangular(lower_II[start:, start:], unit_KC, upper=False)
        column_CWK = column_KC.T.reshape(count, width, -1)
        blocks.append(column_CWK @ column_CWK.mT)
    return torch.cat(blocks)


def _diagonal_blocks(inverse_II: Tensor, units: int, width: int) -> Tensor:
    """Return the first diagonal blocks of a matrix, shape [U, W, W]."""
    if width == 1:
        return inverse_II.diagonal()[:units].reshape(units, 1, 1)
    starts = range(0, units * width, width)
    return torch.stack([inverse_II[a : a + width, a : a + width] for a in starts])


def damped(second_II: Tensor, damping: float) -> Tensor:
    """Return moments with something added to the diagonal, relative to its mean, so that there is an inverse."""
    # Of a consumer whose inputs are all 0 nothing is lost, and the inverse must stay finite.
    mean = second_II.diagonal().mean().clamp_min(torch.finfo(second_II.dtype).eps)
    damped_II = second_II.clone()
    damped_II.diagonal().add_(damping * mean)
    return damped_II
