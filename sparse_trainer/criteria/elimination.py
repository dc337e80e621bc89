"""Greedy removal of a linear's input units, the columns that stay refitted: the error of every unit, round by round.

OBS for whole units (ZipLM, SlimGPT): with y = W x and H = E[x x^T], a unit S costs tr(W_S ((H^-1)_SS)^-1 W_S^T).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Shape legend: O = outputs, I = input features, U = units, W = features of a unit, R = units that remain, G = those of
# them that go now.


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
    inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(second_II[order_I][:, order_I]))
    fitted_OI = weight_OI[:, order_I]
    remaining_R = torch.arange(units, device=weight_OI.device)
    for left in range(min(rounds, units), 0, -1):
        cost_R = block_costs(fitted_OI, inverse_II, len(remaining_R), width)
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


def damped(second_II: Tensor, damping: float) -> Tensor:
    """Return moments with something added to the diagonal, relative to its mean, so that there is an inverse."""
    # Of a consumer whose inputs are all 0 nothing is lost, and the inverse must stay finite.
    mean = second_II.diagonal().mean().clamp_min(torch.finfo(second_II.dtype).eps)
    return second_II + damping * mean * torch.eye(len(second_II), dtype=second_II.dtype, device=mean.device)
