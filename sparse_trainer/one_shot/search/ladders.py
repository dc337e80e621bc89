"""Ladders: the widths that a group may take, what they cost, what the model loses by them; and runs of layers."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from patchers.units import Group
from sparse_trainer.budget.options import Budget

# Shape legend: G = levels of a ladder, U = units of a group.

_FINE: Final = 32
"""Widths of a group that the program chooses among."""
LevelCost = Callable[[Group, int], float]
"""Cost of a group of which so many units are left."""


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The levels of one group, or of several that keep equal widths; level 0 is whole."""

    groups: tuple[Group, ...]
    counts: tuple[int, ...]
    """Units that stay in each group, falling."""
    step: int
    """Units that stay or go together."""
    loss_G: Tensor
    """What the model loses by each level, all else whole: never less where fewer units stay."""

    def cost(self, count: int, cost_of: LevelCost) -> float:
        """Return the cost of all groups with so many units each."""
        return sum(cost_of(group, count) for group in self.groups)

    def costs_G(self, cost_of: LevelCost) -> Tensor:
        """Return the cost of every level, shape [G]."""
        return torch.tensor([self.cost(count, cost_of) for count in self.counts], dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Consecutive layers of one stack that go together."""

    layers: tuple[Group, ...]
    front: Group | None
    """What the linear in front of them reads, which takes over; None = nothing does."""
    loss: float = 0.0
    """What the model loses without them, all else whole."""

    @property
    def place(self) -> tuple[str, int]:
        """Return the stack and the number of the first layer."""
        return self.layers[0].stack, self.layers[0].layer

    @property
    def name(self) -> str:
        """Return the first layer's name, and the last one's."""
        names = dict.fromkeys((self.layers[0].name, self.layers[-1].name))
        return " - ".join(names)


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """Ladders that share one budget."""

    ladders: tuple[Ladder, ...]
    allowed: float
    """Cost that may stay, all ladders together."""
    cost_of: LevelCost
    fixed: Mapping[tuple[str, int], float] = field(default_factory=dict)
    """What each layer that may go costs beside its ladders, by stack and number."""
    runs: tuple[Run, ...] = ()
    """Layers that may go together."""


def level_counts(num_units: int, *, levels: int, floor: int, step: int) -> tuple[int, ...]:
    """Return widths in equal steps from all units to the floor, as multiples of `step`.

    >>> level_counts(48, levels=3, floor=1, step=8)
    (48, 32, 24, 8)
    >>> level_counts(3, levels=8, floor=0, step=1)
    (3, 2, 1, 0)
    """
    least = min(-(-floor // step) * step, num_units)
    asked = (num_units - (num_units - least) * level / levels for level in range(levels + 1))
    rounded = {num_units, *(max(least, int(count + step / 2) // step * step) for count in asked)}
    return tuple(sorted((count for count in rounded if count <= num_units), reverse=True))


def refined(ladder: Ladder) -> Ladder:
    """Return a ladder with widths between its levels, whose losses are interpolated: through all that is measured, and
    never falling (PCHIP, Fritsch and Carlson 1980).

    >>> coarse = Ladder(groups=(), counts=(8, 4, 0), step=2, loss_G=torch.tensor([0.0, 1.0, 4.0]).double())
    >>> refined(coarse).counts
    (8, 6, 4, 2, 0)
    >>> refined(coarse).loss_G
    tensor([0.0000, 0.3125, 1.0000, 2.1875, 4.0000], dtype=torch.float64)
    """
    counts = ladder.counts
    if len(counts) < 2:
        return ladder
    parts = max(1, _FINE // (len(counts) - 1))
    finer = set(counts)
    for wider, narrower in itertools.pairwise(counts):
        for part in range(1, parts):
            between = wider - (wider - narrower) * part / parts
            finer.add(max(narrower, int(between) // ladder.step * ladder.step))
    found = tuple(sorted(finer, reverse=True))
    through = PchipInterpolator(counts[::-1], ladder.loss_G.flip(0).numpy())
    return replace(ladder, counts=found, loss_G=torch.as_tensor(through(found), dtype=torch.float64))


def single_ladders(groups: Sequence[Group], budget: Budget, levels: int) -> list[Ladder]:
    """Return a ladder for each group, with no loss yet."""
    found = []
    for group in groups:
        step = budget.step_of(group)
        floor = max(budget.floor_of(group.kind), group.min_units)
        counts = level_counts(group.num_units, levels=levels, floor=floor, step=step)
        loss_G = torch.zeros(len(counts), dtype=torch.float64)
        found.append(Ladder(groups=(group,), counts=counts, step=step, loss_G=loss_G))
    return found


def with_losses(ladders: Sequence[Ladder], losses: Mapping[str, Tensor]) -> list[Ladder]:
    """Return the ladders with measured losses, by group name; noise must not make a narrower level look better."""
    return [replace(each, loss_G=losses[each.groups[0].name].cummax(0).values) for each in ladders]


def allowances(ladders: Sequence[Ladder], budget: Budget, cost_of: LevelCost) -> list[Allowance]:
    """Share the ladders out over what has a budget of its own; under scope `uniform`, let layers share a ladder."""
    by_kind = budget.is_per_kind
    if budget.scope == "uniform":
        ladders = _joined(ladders)
    pools: dict[tuple[object, ...], list[Ladder]] = {}
    for ladder in ladders:
        first = ladder.groups[0]
        place = (first.stack, first.layer) if budget.scope == "layer" else None
        pools.setdefault((first.kind if by_kind else None, place), []).append(ladder)
    counted: LevelCost = (lambda group, count: count) if by_kind else cost_of
    found = []
    for members in pools.values():
        total = sum(ladder.cost(ladder.counts[0], counted) for ladder in members)
        density = budget.density_of(members[0].groups[0].kind)
        allowed = density * total * (1 + 1e-12)
        found.append(Allowance(ladders=tuple(members), allowed=allowed, cost_of=counted))
    return found


def _joined(ladders: Sequence[Ladder]) -> list[Ladder]:
    """Join the ladders of alike groups of a stack: their losses add up."""
    alike: dict[tuple[object, ...], list[Ladder]] = {}
    for ladder in ladders:
        group = ladder.groups[0]
        alike.setdefault((group.stack, group.kind, ladder.counts, ladder.step), []).append(ladder)
    return [
        replace(
            members[0],
            groups=tuple(group for ladder in members for group in ladder.groups),
            loss_G=torch.stack([ladder.loss_G for ladder in members]).sum(0),
        )
        for members in alike.values()
    ]
