"""Dynamic programming: the levels that lose least in all under a budget, if losses add up (ZipLM, arXiv 2302.04089)."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparse_trainer.one_shot.search.ladders import Allowance, Ladder, LevelCost, refined

# Shape legend: G = levels of a ladder, B = steps of the budget.

_STEPS: Final = 1 << 16
"""Into how many steps a budget is divided where costs have no common measure."""


def best_counts(allowance: Allowance) -> list[int]:
    """Return the units that each ladder's groups keep: the best levels, and what they leave of the budget spent."""
    ladders, cost_of = [refined(ladder) for ladder in allowance.ladders], allowance.cost_of
    costs = [ladder.costs_G(cost_of) for ladder in ladders]
    chosen = best_levels(costs, [ladder.loss_G for ladder in ladders], allowance.allowed)
    return spent_whole(ladders, chosen, allowance.allowed, cost_of)


def best_levels(costs: Sequence[Tensor], losses: Sequence[Tensor], allowed: float) -> list[int]:
    """Return one level for each ladder: the smallest sum of losses whose costs do not exceed what is allowed.

    Exact where all costs are multiples of one number and few enough; else costs are rounded up, to 1/65536 of it.
    Where even the narrowest levels cost too much, those are returned.

    >>> cost, loss = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 5.0])
    >>> best_levels([cost, cost], [loss, 3 * loss], 2.0)
    [1, 1]
    >>> best_levels([cost, cost], [loss, 8 * loss], 2.0)
    [2, 0]
    """
    whole, size = _in_steps(costs, allowed)
    best_B = np.zeros(size + 1)
    choices: list[npt.NDArray[np.uint8]] = []
    for cost_G, loss_G in zip(whole, losses, strict=True):
        following_B = np.full(size + 1, np.inf)
        choice_B = np.full(size + 1, len(cost_G) - 1, dtype=np.uint8)
        for level, (cost, loss) in enumerate(zip(cost_G, loss_G.tolist(), strict=True)):
            if cost > size:
                continue
            tried_B = best_B[: size + 1 - cost] + loss
            better = tried_B < following_B[cost:]
            following_B[cost:][better] = tried_B[better]
            choice_B[cost:][better] = level
        best_B = following_B
        choices.append(choice_B)
    if not np.isfinite(best_B[size]):
        return [len(cost_G) - 1 for cost_G in whole]
    levels, left = [], size
    for cost_G, choice_B in zip(reversed(whole), reversed(choices), strict=True):
        levels.append(int(choice_B[left]))
        left -= cost_G[levels[-1]]
    return levels[::-1]


def _in_steps(costs: Sequence[Tensor], allowed: float) -> tuple[list[list[int]], int]:
    """Return costs in whole steps, and how many steps the budget has."""
    every = torch.cat([cost_G.double() for cost_G in costs])
    if bool((every == every.round()).all()) and float(every.max()) < 2**52:
        step = max(1, int(np.gcd.reduce(every.long().numpy())))
        if allowed / step <= 2 * _STEPS:
            return [(cost_G.double() / step).round().long().tolist() for cost_G in costs], int(
                allowed // step
            )
    unit = max(allowed, 1e-300) / _STEPS
    return [(cost_G.double() / unit - 1e-9).ceil().long().tolist() for cost_G in costs], _STEPS


def spent_whole(
    ladders: Sequence[Ladder], chosen: Sequence[int], allowed: float, cost_of: LevelCost
) -> list[int]:
    """Return the units that stay where the rest of a budget buys units between levels, where they help most first."""
    counts = [ladder.counts[level] for ladder, level in zip(ladders, chosen, strict=True)]
    left = allowed - sum(ladder.cost(count, cost_of) for ladder, count in zip(ladders, counts, strict=True))
    gains = {}
    for number, (ladder, level) in enumerate(zip(ladders, chosen, strict=True)):
        if level > 0:
            gain = float(ladder.loss_G[level] - ladder.loss_G[level - 1])
            price = ladder.cost(ladder.counts[level - 1], cost_of) - ladder.cost(counts[number], cost_of)
            gains[number] = gain / max(price, 1e-300)
    for number in sorted(gains, key=lambda n: -gains[n]):
        ladder, now = ladders[number], counts[number]
        start, most = ladder.cost(now, cost_of), ladder.counts[chosen[number] - 1]
        possible = [*range(now + ladder.step, most, ladder.step), most]
        affordable = [count for count in possible if ladder.cost(count, cost_of) - start <= left]
        if affordable:
            counts[number] = affordable[-1]
            left -= ladder.cost(affordable[-1], cost_of) - start
    return counts
