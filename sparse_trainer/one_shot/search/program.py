"""Dynamic programming: the levels that lose least in all under a budget, if losses add up (ZipLM, arXiv 2302.04089).

Widths of every layer are a knapsack; whole layers that go in runs make it a shortest path through the layers.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparse_trainer.one_shot.search.ladders import Allowance, Ladder, LevelCost, Run, refined

# Shape legend: G = levels of a ladder, B = steps of the budget.

_STEPS: Final = 1 << 16
"""Into how many steps a budget is divided where costs have no common measure."""
Line = npt.NDArray[np.float64]
"""The least loss for each part of the budget."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A layer, or some ladders that share nothing with one: widths for each ladder, or all of it goes in a run."""

    costs: Sequence[Tensor]
    """Of the levels of each ladder."""
    losses: Sequence[Tensor]
    fixed: float = 0.0
    """What the layer costs beside its ladders, while it stays."""
    runs: Mapping[int, float] = field(default_factory=dict)
    """What the model loses without the run of so many stages that starts here."""
    follows: bool = False
    """Whether the stage in front is the layer in front: where that has gone, no run starts here."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What stays under one budget."""

    counts: list[int]
    """Units that the groups of each ladder keep; those of layers that go, all of them."""
    runs: tuple[Run, ...]
    """Layers that go."""


def best_choice(allowance: Allowance) -> Choice | None:
    """Return the best levels and runs, what they leave of the budget spent; None where none are cheap enough."""
    ladders, cost_of = [refined(ladder) for ladder in allowance.ladders], allowance.cost_of
    at = _stages_of(ladders, allowance)
    costs = [ladder.costs_G(cost_of) for ladder in ladders]
    stages = [
        Stage(
            costs=[costs[number] for number in members],
            losses=[ladders[number].loss_G for number in members],
            fixed=allowance.fixed.get(place, 0.0),
            runs={len(run.layers): run.loss for run in allowance.runs if run.place == place},
            follows=before == (place[0], place[1] - 1),
        )
        for before, (place, members) in zip([None, *at], at.items(), strict=False)
    ]
    path = best_path(stages, allowance.allowed)
    if path is None:
        return None
    gone = {place for place, levels in zip(at, path, strict=True) if levels is None}
    runs = _chosen(allowance.runs, gone)
    left = allowance.allowed - sum(fixed for place, fixed in allowance.fixed.items() if place not in gone)
    chosen = {
        number: level
        for members, levels in zip(at.values(), path, strict=True)
        if levels is not None
        for number, level in zip(members, levels, strict=True)
    }
    spent = spent_whole([ladders[number] for number in chosen], list(chosen.values()), left, cost_of)
    counts = dict(zip(chosen, spent, strict=True))
    whole = [ladder.counts[0] for ladder in ladders]
    return Choice(counts=[counts.get(number, count) for number, count in enumerate(whole)], runs=runs)


def _stages_of(ladders: Sequence[Ladder], allowance: Allowance) -> dict[tuple[str, int], list[int]]:
    """Return the numbers of the ladders of each layer, in model order: ladders of many layers are a stage each."""
    found: dict[tuple[str, int], list[int]] = {place: [] for place in allowance.fixed}
    for number, ladder in enumerate(ladders):
        group = ladder.groups[0]
        place = (group.stack, group.layer) if len(ladder.groups) == 1 else ("", number)
        found.setdefault(place, []).append(number)
    return dict(sorted(found.items()))


def _chosen(runs: Sequence[Run], gone: Collection[tuple[str, int]]) -> tuple[Run, ...]:
    """Return the runs that are gone: no two of them stand side by side."""

    def is_whole(run: Run) -> bool:
        stack, first = run.place
        end = first + len(run.layers)
        inside = all((stack, layer) in gone for layer in range(first, end))
        return inside and (stack, first - 1) not in gone and (stack, end) not in gone

    return tuple(run for run in runs if is_whole(run))


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
    path = best_path([Stage(costs=costs, losses=losses)], allowed)
    if path is None or path[0] is None:
        return [len(cost_G) - 1 for cost_G in costs]
    return path[0]


def best_path(stages: Sequence[Stage], allowed: float) -> list[list[int] | None] | None:
    """Return a level of each ladder of each stage, None for stages that go in runs: the smallest sum of losses.

    Costs are rounded as those of `best_levels`. Runs have a stage between them.

    Returns:
        None where nothing is cheap enough.

    >>> from dataclasses import replace
    >>> stage = Stage(costs=[torch.tensor([2.0, 1.0])], losses=[torch.tensor([0.0, 1.0])])
    >>> best_path([stage, replace(stage, runs={1: 0.5}), replace(stage, follows=True)], 4.0)
    [[0], None, [0]]
    """
    whole, size = _in_steps(stages, allowed)
    nothing = np.full(size + 1, np.inf)
    # Least loss of the stages in front of each place, for each part of the budget: the last of them kept, or gone.
    kept, gone = [np.zeros(size + 1)], [nothing] * (len(stages) + 1)
    lengths = [np.zeros(size + 1, dtype=np.uint8) for _ in range(len(stages) + 1)]
    levels: list[list[npt.NDArray[np.uint8]]] = []
    for place, stage in enumerate(stages):
        best_B = np.minimum(kept[place], gone[place])
        start_B = kept[place] if stage.follows else best_B
        for length, loss in stage.runs.items():
            better = start_B + loss < gone[place + length]
            gone[place + length] = np.where(better, start_B + loss, gone[place + length])
            lengths[place + length][better] = length
        fixed, *ladders = whole[place]
        following_B, choices = _moved(best_B, fixed[0]), []
        for cost_G, loss_G in zip(ladders, stage.losses, strict=True):
            following_B, choice_B = _widened(following_B, cost_G, loss_G.tolist())
            choices.append(choice_B)
        kept.append(following_B)
        levels.append(choices)
    return _traced(stages, whole, kept, gone, lengths, levels)


def _traced(
    stages: Sequence[Stage],
    whole: Sequence[list[list[int]]],
    kept: Sequence[Line],
    gone: Sequence[Line],
    lengths: Sequence[npt.NDArray[np.uint8]],
    levels: Sequence[list[npt.NDArray[np.uint8]]],
) -> list[list[int] | None] | None:
    """Return what was chosen on the way to the end of the budget."""
    place, left = len(stages), len(kept[0]) - 1
    if not np.isfinite(min(kept[place][left], gone[place][left])):
        return None
    path: list[list[int] | None] = []
    must_stay = False
    while place > 0:
        if not must_stay and gone[place][left] < kept[place][left]:
            length = int(lengths[place][left])
            path += [None] * length
            place -= length
            must_stay = stages[place].follows
            continue
        place -= 1
        must_stay = False
        fixed, *ladders = whole[place]
        chosen = []
        for cost_G, choice_B in zip(reversed(ladders), reversed(levels[place]), strict=True):
            chosen.append(int(choice_B[left]))
            left -= cost_G[chosen[-1]]
        left -= fixed[0]
        path.append(chosen[::-1])
    return path[::-1]


def _moved(best_B: Line, cost: int) -> Line:
    """Return the least losses where so much of the budget is spent first."""
    moved_B = np.full_like(best_B, np.inf)
    if cost < len(best_B):
        moved_B[cost:] = best_B[: len(best_B) - cost]
    return moved_B


def _widened(
    best_B: Line, cost_G: Sequence[int], losses: Sequence[float]
) -> tuple[Line, npt.NDArray[np.uint8]]:
    """Return the least losses with one ladder more, and its levels, for each part of the budget."""
    size = len(best_B) - 1
    following_B = np.full(size + 1, np.inf)
    choice_B = np.full(size + 1, len(cost_G) - 1, dtype=np.uint8)
    for level, (cost, loss) in enumerate(zip(cost_G, losses, strict=True)):
        if cost > size:
            continue
        tried_B = best_B[: size + 1 - cost] + loss
        better = tried_B < following_B[cost:]
        following_B[cost:][better] = tried_B[better]
        choice_B[cost:][better] = level
    return following_B, choice_B


def _in_steps(stages: Sequence[Stage], allowed: float) -> tuple[list[list[list[int]]], int]:
    """Return the costs of each stage, the fixed one first, in whole steps; and how many steps the budget has."""
    costs = [[torch.tensor([stage.fixed]).double(), *stage.costs] for stage in stages]
    every = torch.cat([cost_G.double() for of_stage in costs for cost_G in of_stage])
    if bool((every == every.round()).all()) and float(every.max()) < 2**52:
        step = max(1, int(np.gcd.reduce(every.long().numpy())))
        if allowed / step <= 2 * _STEPS:
            exact = [[(cost_G.double() / step).round().long().tolist() for cost_G in s] for s in costs]
            return exact, int(allowed // step)
    unit = max(allowed, 1e-300) / _STEPS
    rounded = [[(cost_G.double() / unit - 1e-9).ceil().long().tolist() for cost_G in s] for s in costs]
    return rounded, _STEPS


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
