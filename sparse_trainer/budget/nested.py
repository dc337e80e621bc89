"""Exact selection for units that lie inside each other: branches and layers first, then what is inside them."""

from collections.abc import Collection, Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from patchers.units import LAYERS, Group
from sparse_trainer.budget.nesting import Constraint, Nesting
from sparse_trainer.budget.options import Budget, check_reachable
from sparse_trainer.budget.pool import Kept, Pool

# Shape legend: U = units of a group.


@final
class NestedSelector:
    """Selects under one budget over the whole model, for kinds that contain each other, without a host sync.

    Scores say of each enclosing unit whether it should stay: one below 0 goes, the lowest first. Where that misses the
    budget, fewer or more of them go. The units inside those that stay fill the budget, best first, as `Selector` does.
    One layer of every stack always stays, and of each sort in it.

    Args:
        nesting: The groups, and what their units cost; hidden features, where others share them, are left out.

    Raises:
        BudgetError: floors leave more than the budget allows.
    """

    def __init__(self, nesting: Nesting, budget: Budget) -> None:
        assert not budget.is_per_kind
        self.budget, self.density = budget, float(budget.density)
        self.nesting = nesting
        self.total = float(self.nesting.total)
        self.outer = self.nesting.outer
        taken = {g.name for g in self.outer}
        self.inner = tuple(g for g in self.nesting.groups if g.name not in taken and not nesting.is_apart(g))
        whole = Budget(density=1.0, multiple_of=budget.multiple_of, min_keep=budget.min_keep)
        shared = [nesting.shared.get(g.name, 0) for g in self.inner]
        spared = {g.peers for g in self.outer if g.kind == LAYERS}
        self._pool = Pool(self.inner, [nesting.own[g.name] for g in self.inner], whole, shared, spared)
        floors = self._floors(whole, spared)
        ordered = (*self.outer, *self.inner)
        self._tensors = {"around_GD": self._around(ordered)}
        for ending, cost in (("G", nesting.own), ("shared_G", nesting.shared)):
            own = [float(cost.get(g.name, 0)) for g in ordered]
            counts = {
                "fixed": [float(g.name in taken) for g in ordered],
                "least": [floors.get(g.name, 1.0) for g in ordered],
                "most": [float(g.num_units) for g in ordered],
            }
            for name, count in counts.items():
                values = [c * n for c, n in zip(own, count, strict=True)]
                self._tensors[f"{name}_{ending}"] = torch.tensor(values, dtype=torch.float64)
        places = {peers: [i for i, o in enumerate(self.outer) if o.kind == LAYERS and o.peers == peers]
                  for peers in spared}  # fmt: skip
        self._stacks = {f"stack {' '.join(peers)}": torch.tensor(found) for peers, found in places.items()}
        self._tensors |= self._stacks
        turn_G = self._turns(torch.zeros(len(self.outer)))
        check_reachable(self.density, float(self._left_of("least", turn_G)[-1]) / self.total)

    def _floors(self, whole: Budget, spared: Collection[tuple[str, str]]) -> dict[str, float]:
        """Return how many units of each inner group stay in any case, by name."""
        inner = {g.peers for g in self.inner if g.kind == LAYERS}
        floors = {g.name: Pool([g], [1], whole, spared=inner).floor for g in self.inner}
        for peers in inner - set(spared):
            layers = [g for g in self.inner if g.kind == LAYERS and g.peers == peers]
            floors[max(layers, key=lambda g: self.nesting.own[g.name]).name] = 1.0
        return floors

    def _around(self, ordered: Sequence[Group]) -> Tensor:
        """Return which enclosing units each group depends on, itself included; one past the end where no more do."""
        place = {g.name: number for number, g in enumerate(self.outer)}
        rows = [[place[n] for n in (g.name, *self.nesting.around[g.name]) if n in place] for g in ordered]
        depth = max(1, *map(len, rows))
        return torch.tensor([row + [len(place)] * (depth - len(row)) for row in rows])

    @property
    def constraints(self) -> list[Constraint]:
        """What must hold: one density over all groups."""
        return [self.nesting.constraint(self.density)]

    @torch.no_grad()
    def select(self, scores: Mapping[str, Tensor], remaining: float = 0.0) -> Kept:
        """Keep the best units; `remaining` as in `Selector.select`."""
        return self.at(scores, self.density + (1.0 - self.density) * remaining)

    def at(self, scores: Mapping[str, Tensor], density: float) -> Kept:
        """Keep the best units at another density than that of the budget."""
        return self.spend(scores, density * self.total)

    @torch.no_grad()
    def spend(
        self, scores: Mapping[str, Tensor], allowed: float | Tensor, gone: Tensor | None = None
    ) -> Kept:
        """Keep the best units that an amount pays for.

        Args:
            gone: Share of the hidden features that do not stay, a scalar. None = all stay.
        """
        score_E = self._scores(scores)
        turn_G = self._turns(score_E)
        count = self._count(score_E, turn_G, allowed, gone)
        stays_G = turn_G >= count
        left = allowed - self._left_of("fixed", turn_G, gone).gather(0, count)
        density = (left / self._pool.total).clamp(0.0, 1.0)
        stays = dict(zip([g.name for g in (*self.outer, *self.inner)], stays_G.unbind(), strict=True))
        keep, threshold = self._pool.select(scores, density, stays_G[len(self.outer) :], gone)
        keep |= {g.name: stays[g.name].expand(g.num_units) for g in self.outer}
        return Kept(keep=keep, threshold=threshold.nan_to_num(posinf=0.0))

    def bounds(self, scores: Mapping[str, Tensor], gone_K: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least and the most that can stay, for some shares of hidden features that do not, shape [K]."""
        turn_G = self._turns(self._scores(scores))
        ends = (("least", -1), ("most", 0))
        (least, less), (most, fewer) = (
            [self._sums(f"{name}_{ending}", turn_G)[place] for ending in ("G", "shared_G")]
            for name, place in ends
        )
        return least - gone_K * less, most - gone_K * fewer

    def _scores(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Return the scores of the enclosing units, shape [E]."""
        first = scores[(*self.outer, *self.inner)[0].name]
        self._to(first.device)
        found = [scores[g.name].detach().float().flatten() for g in self.outer]
        return torch.cat(found) if found else first.new_zeros(0, dtype=torch.float32)

    def _turns(self, score_E: Tensor) -> Tensor:
        """Return at which turn each group closes, shape [G], enclosing units closing one by one, the lowest first.

        A group closes with the first unit around it; the best layer of each stack and sort never has its turn.
        """
        spared_E = torch.zeros_like(score_E, dtype=torch.bool)
        for name in self._stacks:
            index_L = self._tensors[name]
            spared_E.scatter_(0, index_L.gather(0, score_E[index_L].argmax().view(1)), True)
        order_E = score_E.masked_fill(spared_E, torch.inf).argsort(stable=True)
        turns_E = torch.arange(len(score_E), device=score_E.device)
        turn_E = torch.empty_like(turns_E).scatter_(0, order_E, turns_E)
        # One entry more, which never closes: what nothing encloses.
        turn_E = torch.cat([turn_E.masked_fill(spared_E, len(score_E)), turn_E.new_full((1,), len(score_E))])
        return turn_E[self._tensors["around_GD"]].amin(dim=1)

    def _left_of(self, name: str, turn_G: Tensor, gone: Tensor | None = None) -> Tensor:
        """Return the cost that is left once 0, 1, 2, … enclosing units are closed, as many as can be."""
        whole = self._sums(f"{name}_G", turn_G)
        return whole if gone is None else whole - gone * self._sums(f"{name}_shared_G", turn_G)

    def _sums(self, name: str, turn_G: Tensor) -> Tensor:
        closable = len(self.outer) - len(self._stacks)
        cost_G = self._tensors[name]
        at_turn = cost_G.new_zeros(len(self.outer) + 1).index_add(0, turn_G, cost_G)
        return at_turn.flip(0).cumsum(0).flip(0)[: closable + 1]

    def _count(self, score_E: Tensor, turn_G: Tensor, allowed: float | Tensor, gone: Tensor | None) -> Tensor:
        """Return how many enclosing units close, shape [1]: those below 0, or what the budget demands."""
        slack = 1e-9 * self.total
        least, most = self._left_of("least", turn_G, gone), self._left_of("most", turn_G, gone)
        spared_E = turn_G[: len(score_E)] >= len(least) - 1
        wanted = ((score_E < 0) & ~spared_E).sum()
        enough = (least > allowed + slack).sum()
        at_most = (most >= allowed - slack).sum() - 1
        return (
            torch.maximum(enough, torch.minimum(wanted, at_most.clamp_min(0)))
            .clamp_max(len(least) - 1)
            .view(1)
        )

    def _to(self, device: torch.device) -> None:
        if self._tensors["fixed_G"].device != device:
            self._tensors = {name: tensor.to(device) for name, tensor in self._tensors.items()}
