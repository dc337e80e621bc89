"""A pool: groups that share one budget.

The units of each group are put in order of score and taken in chunks of `multiple_of`; chunks are kept, best first, as
long as the budget lasts. The best layer of every stack, and of each sort in it, stays in any case.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patchers.units import LAYERS, Group, Kind
from sparse_trainer.budget.options import Budget

# Shape legend: N = units of a pool, C = chunks of a pool, G = groups of a pool, U = units of a group, L = layers of a
# stack.


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The outcome of one selection; tensors stay on the device of the scores."""

    keep: dict[str, Tensor]
    """Boolean per unit, shape [U], by group name."""
    threshold: Tensor
    """Lowest score that was kept, scalar (of the largest pool)."""


class Pool:
    """Groups under one budget, as flat index tensors that are built once."""

    def __init__(
        self,
        groups: Sequence[Group],
        costs: Sequence[int],
        budget: Budget,
        shared: Sequence[int] | None = None,
        spared: Collection[tuple[str, str]] = (),
    ) -> None:
        """Build the index.

        Args:
            shared: What of a unit's cost is proportional to the share of hidden features that stay.
            spared: Peers (stack and sort) of which a layer stays elsewhere.
        """
        self.groups = groups
        self.density = budget.density_of(groups[0].kind)
        sizes = [g.num_units for g in groups]
        steps = [budget.step_of(g) for g in groups]
        chunks = [-(-size // step) for size, step in zip(sizes, steps, strict=True)]
        starts = torch.tensor([0, *chunks[:-1]]).cumsum(0)
        self.group_N = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor(sizes))
        self.first_N = torch.tensor([0, *sizes[:-1]]).cumsum(0)[self.group_N]
        self.step_N = torch.tensor(steps)[self.group_N]
        self.first_chunk_N = starts[self.group_N]
        self.cost_N = torch.tensor(costs, dtype=torch.float64)[self.group_N]
        self.group_C = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor(chunks))
        self.num_chunks = sum(chunks)
        floors = [
            -(-min(max(budget.floor_of(g.kind), g.min_units), g.num_units) // step)
            for g, step in zip(groups, steps, strict=True)
        ]
        self.is_floor_C = torch.zeros(self.num_chunks, dtype=torch.bool)
        for start, floor in zip(starts.tolist(), floors, strict=True):
            self.is_floor_C[start : start + floor] = True
        self.total = float(self.cost_N.sum())
        full_costs = torch.tensor([c * s for c, s in zip(costs, steps, strict=True)], dtype=torch.float64)
        self.full_cost_C = torch.repeat_interleave(full_costs, torch.tensor(chunks))
        shared = [0] * len(costs) if shared is None else shared
        self.shared_N = torch.tensor(shared, dtype=torch.float64)[self.group_N]
        full_shared = torch.tensor([c * s for c, s in zip(shared, steps, strict=True)], dtype=torch.float64)
        self.full_shared_C = torch.repeat_interleave(full_shared, torch.tensor(chunks))
        self.num_costs = len(set(zip(full_costs.tolist(), full_shared.tolist(), strict=True)))
        self.step_cost = float(full_costs[0])
        chunk_cost_C = self._chunk_costs()
        self.stacks = _layers_of_stacks(groups, starts, spared)
        self.floor = float(chunk_cost_C[self.is_floor_C].sum())
        # The best layer of a stack may be its largest.
        self.floor += sum(float(chunk_cost_C[chunk_L].max()) for chunk_L in self.stacks)
        self.rounds = budget.scope == "uniform" or (budget.scope == "layer" and len(groups) == 1)

    @property
    def kind(self) -> Kind:
        """Kind of the first group; of all groups where pools are made by kind."""
        return self.groups[0].kind

    def rounded(self, density: float) -> float:
        """Return the cost that a pool of one group keeps at `density`."""
        kept = self.step_cost * int(density * self.total / self.step_cost + 0.5 + 1e-9)
        return min(self.total, max(self.floor, kept))

    @property
    def label(self) -> str:
        """Name the pool in an error."""
        return self.groups[0].name if len(self.groups) == 1 else f"{len(self.groups)} groups"

    def _chunk_costs(self) -> Tensor:
        """Return the cost of each chunk, shape [C]: the units of a group cost the same, so any order will do."""
        rank_N = torch.arange(len(self.group_N)) - self.first_N
        chunk_N = self.first_chunk_N + rank_N // self.step_N
        return torch.zeros(self.num_chunks, dtype=torch.float64).index_add_(0, chunk_N, self.cost_N)

    def _to(self, device: torch.device) -> None:
        if self.group_N.device != device:
            for name, value in vars(self).items():
                if isinstance(value, Tensor):
                    setattr(self, name, value.to(device))
            self.stacks = [chunk_L.to(device) for chunk_L in self.stacks]

    def select(
        self,
        scores: Mapping[str, Tensor],
        density: float | Tensor,
        open_G: Tensor | None = None,
        gone: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the kept units by group, and the lowest score kept.

        Args:
            density: Of the whole pool, a number or a scalar.
            open_G: The groups that take part, booleans; of the others nothing stays. None = all.
            gone: Share of the hidden features that do not stay, a scalar. None = all stay.
        """
        score_N = torch.cat([scores[g.name].detach().float().flatten() for g in self.groups])
        self._to(score_N.device)
        by_score = score_N.argsort(descending=True, stable=True)
        order_N = by_score[self.group_N[by_score].argsort(stable=True)]
        rank_N = torch.arange(len(order_N), device=order_N.device) - self.first_N
        chunk_N = self.first_chunk_N + rank_N // self.step_N
        empty_C = score_N.new_zeros(self.num_chunks)
        size_C = empty_C.index_add(0, chunk_N, torch.ones_like(score_N))
        mean_C = empty_C.index_add(0, chunk_N, score_N[order_N]) / size_C
        cost_N, full_cost_C = self.cost_N, self.full_cost_C
        if gone is not None:
            cost_N, full_cost_C = cost_N - gone * self.shared_N, full_cost_C - gone * self.full_shared_C
        cost_C = empty_C.double().index_add(0, chunk_N, cost_N)
        is_floor_C = self.is_floor_C
        for chunk_L in self.stacks:
            best = chunk_L.gather(0, mean_C.gather(0, chunk_L).argmax().view(1))
            is_floor_C = is_floor_C.scatter(0, best, True)
        if open_G is not None:
            open_C = open_G[self.group_C]
            is_floor_C = is_floor_C & open_C
            mean_C, cost_C = mean_C.masked_fill(~open_C, -torch.inf), cost_C * open_C
        rank_C = mean_C.masked_fill(is_floor_C, torch.inf).argsort(descending=True, stable=True)
        kept_C = torch.zeros(self.num_chunks, dtype=torch.bool, device=score_N.device)
        kept_C[rank_C] = self._afford(cost_C[rank_C], full_cost_C[rank_C], density) | is_floor_C[rank_C]
        if open_G is not None:
            kept_C &= open_C
        keep_N = torch.zeros_like(kept_C[chunk_N])
        keep_N[order_N] = kept_C[chunk_N]
        threshold = score_N.masked_fill(~keep_N, torch.inf).min()
        sizes = [g.num_units for g in self.groups]
        return dict(zip([g.name for g in self.groups], keep_N.split(sizes), strict=True)), threshold

    def _afford(self, cost_C: Tensor, full_cost_C: Tensor, density: float | Tensor) -> Tensor:
        """Return which chunks, given best first, the budget pays for, shape [C].

        Once a large unit does not fit, smaller ones behind it still may: one more pass for each distinct cost. A short
        chunk at the end of a group counts as a full one, so that it never stays without those before it.
        """
        budget = density * self.total + 1e-9 * self.total
        if self.rounds:
            return cost_C.cumsum(0) <= budget + 0.5 * cost_C
        taken_C = cost_C.cumsum(0) <= budget
        for _ in range(self.num_costs - 1):
            left = budget - (cost_C * taken_C).sum()
            fits_C = ~taken_C & (full_cost_C <= left)
            taken_C |= fits_C & ((cost_C * fits_C).cumsum(0) <= left)
        return taken_C


def _layers_of_stacks(
    groups: Sequence[Group], starts: Tensor, spared: Collection[tuple[str, str]]
) -> list[Tensor]:
    """Return the chunks of the layers of each stack and sort, shape [L] each, but for those spared elsewhere."""
    found: dict[tuple[str, str], list[int]] = {}
    for group, start in zip(groups, starts.tolist(), strict=True):
        if group.kind == LAYERS and group.peers not in spared:
            found.setdefault(group.peers, []).append(start)
    return [torch.tensor(chunks) for chunks in found.values()]
