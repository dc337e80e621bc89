"""Switches: one group takes a wider level and another a narrower one, wherever the whole model says better for it.

Losses of single levels do not know what groups do to each other. Every switch is judged by the model that has all its
widths, as in the search of DarwinLM (arXiv 2502.07780) and Tyr (arXiv 2503.09657), but for being greedy.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch

from sparse_trainer.one_shot.search.divergence import DenseOutput
from sparse_trainer.one_shot.search.ladders import Allowance, Ladder
from sparse_trainer.one_shot.search.losses import SearchClock, check_level
from sparse_trainer.one_shot.search.stitched import Stitched, Width
from sparse_trainer.statistics.batch import Batch
from sparse_trainer.statistics.replay import Replay

_AT_ONCE: Final = 8
"""Switches that are judged in one pass over the batches."""
_VAIN_PASSES: Final = 4
"""Passes without a gain after which the search ends."""


@dataclass(frozen=True, kw_only=True)
class Switch:
    """Two ladders whose groups change their widths."""

    ladders: tuple[int, int]
    """Numbers of the ladder that widens and of the one that narrows."""
    counts: tuple[int, int]
    """Units that their groups keep then."""
    expected: float
    """What the losses of single levels say that it brings."""


@final
class Switching:
    """Looks for switches within one budget.

    Args:
        counts: Units that each ladder's groups keep now.
        others: Ladders under other budgets, and the units that their groups keep.
    """

    def __init__(
        self,
        model: Stitched,
        replay: Replay,
        batches: Sequence[Batch],
        allowance: Allowance,
        counts: Sequence[int],
        others: Sequence[tuple[Ladder, int]] = (),
    ) -> None:
        self.model, self.replay, self.batches = model, replay, batches
        self.allowance, self.counts, self.others = allowance, list(counts), others
        self.best: float | None = None
        """Mean divergence of the model as it is; None where there was no time to measure it."""
        self._now: dict[str, Width] = {}
        self._tried: set[tuple[tuple[int, int], tuple[int, int]]] = set()

    @torch.no_grad()
    def run(self, clock: SearchClock) -> list[int]:
        """Switch until the time is up or nothing is gained; return the units that each ladder's groups keep."""
        own = zip(self.allowance.ladders, self.counts, strict=True)
        self._now = {w.group.name: w for w in self._widths((*self.others, *own))}
        vain = 0
        while vain < _VAIN_PASSES and not clock.is_up:
            switches = [s for s in self._possible() if (s.ladders, s.counts) not in self._tried][:_AT_ONCE]
            widths = [self._switched(switch) for switch in switches]
            now, losses = self._judge(widths)
            self.best = now
            self._tried |= {(s.ladders, s.counts) for s in switches}
            vain += 1
            best = min(range(len(switches)), key=losses.__getitem__, default=None)
            if best is None:
                break
            if losses[best] < now:
                self.best, vain = losses[best], 0
                self._now |= {width.group.name: width for width in widths[best]}
                for number, count in zip(switches[best].ladders, switches[best].counts, strict=True):
                    self.counts[number] = count
        return self.counts

    def _possible(self) -> list[Switch]:
        """Return the switches that the budget allows, the most promising first."""
        return sorted(self._pairs(), key=lambda switch: -switch.expected)

    def _pairs(self) -> Iterator[Switch]:
        ladders, cost_of = self.allowance.ladders, self.allowance.cost_of
        costs = [ladder.cost(count, cost_of) for ladder, count in zip(ladders, self.counts, strict=True)]
        left = self.allowance.allowed - sum(costs)
        for a, wider in enumerate(ladders):
            more = min((count for count in wider.counts if count > self.counts[a]), default=None)
            if more is None:
                continue
            price = wider.cost(more, cost_of) - costs[a]
            for b, narrower in enumerate(ladders):
                fewer = [count for count in narrower.counts if count < self.counts[b]]
                freed = (count for count in fewer if costs[b] - narrower.cost(count, cost_of) + left >= price)
                less = next(freed, None)
                if a != b and less is not None:
                    gain = loss_at(wider, self.counts[a]) - loss_at(wider, more)
                    lost = loss_at(narrower, less) - loss_at(narrower, self.counts[b])
                    yield Switch(ladders=(a, b), counts=(more, less), expected=gain - lost)

    def _judge(self, trials: Sequence[Sequence[Width]]) -> tuple[float, list[float]]:
        """Return the mean divergence from the dense model as it is, and with each of these widths.

        Raises:
            NonFiniteError: the model says NaN or infinity as it is.
        """
        sums, as_it_is, positions = [0.0] * len(trials), 0.0, 0
        for batch in self.batches:
            self._restore()
            dense = DenseOutput(self.replay.record(batch), batch)
            self._put(self._now.values())
            lost = dense.divergence(self.replay.record(batch))
            check_level(lost, "search", "with all widths that were found")
            as_it_is += float(lost)
            positions += dense.positions
            for number, widths in enumerate(trials):
                self._put(widths)
                first = min((width.group.block for width in widths), key=self.replay.place)
                sums[number] += float(dense.divergence(self.replay.rerun(batch, first)))
                self._put(self._now[width.group.name] for width in widths)
        self._restore()
        return as_it_is / positions, [
            total / positions if math.isfinite(total) else math.inf for total in sums
        ]

    def _switched(self, switch: Switch) -> list[Width]:
        ladders = (self.allowance.ladders[number] for number in switch.ladders)
        return self._widths(zip(ladders, switch.counts, strict=True))

    def _widths(self, ladders: Iterable[tuple[Ladder, int]]) -> list[Width]:
        return [self.model.width(group, count) for ladder, count in ladders for group in ladder.groups]

    def _put(self, widths: Iterable[Width]) -> None:
        for width in widths:
            self.model.put(width)

    def _restore(self) -> None:
        for width in self._now.values():
            self.model.restore(width.group)


def loss_at(ladder: Ladder, count: int) -> float:
    """Return what a width loses, between two levels in proportion.

    >>> from sparse_trainer.one_shot.search.ladders import Ladder
    >>> loss_at(Ladder(groups=(), counts=(4, 2, 0), step=1, loss_G=torch.tensor([0.0, 2.0, 8.0])), 1)
    5.0
    """
    counts = ladder.counts
    place = next(number for number, known in enumerate(counts) if known <= count)
    if counts[place] == count:
        return float(ladder.loss_G[place])
    share = (count - counts[place]) / (counts[place - 1] - counts[place])
    return float(ladder.loss_G[place] + share * (ladder.loss_G[place - 1] - ladder.loss_G[place]))
