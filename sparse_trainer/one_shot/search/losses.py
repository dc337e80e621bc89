"""What the model loses by each level of each group, all else whole: measured on calibration text, block by block."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final, final

import numpy as np
import torch
from torch import Tensor

from sparse_trainer.errors import NonFiniteError
from sparse_trainer.inputs.bars import bar
from sparse_trainer.one_shot.search.divergence import DenseOutput
from sparse_trainer.one_shot.search.ladders import Ladder
from sparse_trainer.one_shot.search.stitched import Stitched, Width
from sparse_trainer.statistics.batch import Batch
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.replay import Replay

# Shape legend: G = levels of a ladder.

_AT_ONCE: Final = 1 << 26
"""Numbers of refitted linears that are held in one pass over the batches."""
logger = logging.getLogger(__name__)


@final
class SearchClock:
    """Counts the seconds of a search, and tells when its time is up."""

    def __init__(self, limit: float | None) -> None:
        self.limit, self._start = limit, time.monotonic()

    @property
    def seconds(self) -> float:
        """Return the seconds that have passed."""
        return time.monotonic() - self._start

    @property
    def half(self) -> "SearchClock":
        """Return a clock for the first half of the time."""
        return SearchClock(None if self.limit is None else self.limit / 2)

    @property
    def is_up(self) -> bool:
        """Tell whether the time is up."""
        return self.limit is not None and self.seconds > self.limit


def first_batches(batches: Batches, tokens: int) -> list[Batch]:
    """Return batches, in order, until they hold so many tokens."""
    found: list[Batch] = []
    held = 0
    for batch in batches.read(labelled=False):
        found.append(batch)
        held += int(batch.count_real())
        if held >= tokens:
            break
    return found


@torch.no_grad()
def level_losses(
    model: Stitched, replay: Replay, batches: Sequence[Batch], ladders: Sequence[Ladder], clock: SearchClock
) -> dict[str, Tensor]:
    """Return the mean divergence from the dense model at each level, shape [G], by group name.

    Blocks are visited in an order that is spread over the depth. Those that are not reached in time are given what
    their neighbours lose.

    Args:
        ladders: One for each group.

    Raises:
        NonFiniteError: the model says NaN or infinity.
    """
    by_block: dict[str, list[Ladder]] = {}
    for ladder in ladders:
        by_block.setdefault(ladder.groups[0].block, []).append(ladder)
    found: dict[str, Tensor] = {}
    at_once = _blocks_at_once(model, ladders, len(by_block)) if clock.limit is None else 1
    order = spread(list(by_block))
    for start in bar(range(0, len(order), at_once), "measuring levels"):
        if found and clock.is_up:
            break
        together = [ladder for block in order[start : start + at_once] for ladder in by_block[block]]
        found |= _of_ladders(model, replay, batches, together)
    if len(found) < len(ladders):
        logger.warning(
            "search: time was up when %d of %d groups were measured; others are given what their neighbours lose.",
            len(found),
            len(ladders),
        )  # fmt: skip
    return found | _from_neighbours(ladders, found)


def _blocks_at_once(model: Stitched, ladders: Sequence[Ladder], blocks: int) -> int:
    """Return of how many blocks levels are measured in one pass over the batches, all their refitted linears held."""
    held = sum(model.size(ladder.groups[0]) * (len(ladder.counts) - 1) for ladder in ladders)
    return max(1, blocks * _AT_ONCE // max(held, 1))


def _of_ladders(
    model: Stitched, replay: Replay, batches: Sequence[Batch], ladders: Sequence[Ladder]
) -> dict[str, Tensor]:
    widths = {
        ladder.groups[0].name: [model.width(ladder.groups[0], count) for count in ladder.counts[1:]]
        for ladder in ladders
    }
    sums = {name: torch.zeros(len(levels) + 1, dtype=torch.float64) for name, levels in widths.items()}
    positions = 0
    for batch in batches:
        dense = DenseOutput(replay.record(batch), batch)
        for ladder in ladders:
            group = ladder.groups[0]
            for level, width in enumerate(widths[group.name], 1):
                sums[group.name][level] += _lost(model, replay, dense, width)
            model.restore(group)
        positions += dense.positions
    return {name: sum_G / positions for name, sum_G in sums.items()}


def _lost(model: Stitched, replay: Replay, dense: DenseOutput, width: Width) -> Tensor:
    model.put(width)
    lost = dense.divergence(replay.rerun(dense.batch, width.group.block))
    check_level(lost, width.group.name, f"with {int(width.keep_U.sum())} units")
    return lost


def check_level(lost: Tensor, name: str, when: str) -> None:
    """Raise `NonFiniteError` unless a loss is a number."""
    if not bool(torch.isfinite(lost)):
        raise NonFiniteError(name, f"{when} the model says NaN or infinity.", "Calibrate in float32.")


def spread(blocks: Sequence[str]) -> list[str]:
    """Return the blocks in an order in which any beginning covers the whole depth.

    >>> spread(["0", "1", "2", "3", "4"])
    ['0', '4', '2', '1', '3']
    """
    order = [0, len(blocks) - 1] if len(blocks) > 1 else [0]
    stride = 1 << max(len(blocks) - 1, 1).bit_length()
    while stride > 1:
        stride //= 2
        order += [place for place in range(0, len(blocks), stride) if place not in order]
    return [blocks[place] for place in order]


def _from_neighbours(ladders: Sequence[Ladder], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return, for groups that were not measured, the mean loss of the nearest ones of their kind at the same shares.

    Where none of the kind was measured, it is that of all groups.
    """
    measured = [ladder for ladder in ladders if ladder.groups[0].name in found]
    guessed = {}
    for ladder in ladders:
        group = ladder.groups[0]
        if group.name in found:
            continue
        alike = [other for other in measured if other.groups[0].kind == group.kind] or measured
        nearest = sorted(alike, key=lambda other: abs(other.groups[0].layer - group.layer))
        nearest = nearest[:2] if alike is not measured else nearest
        shares = [count / group.num_units for count in ladder.counts]
        guesses = [_at_shares(other, found[other.groups[0].name], shares) for other in nearest]
        guessed[group.name] = torch.stack(guesses).mean(0)
    return guessed


def _at_shares(ladder: Ladder, loss_G: Tensor, shares: Sequence[float]) -> Tensor:
    """Return the losses of a ladder, interpolated, where these shares of its units stay.

    >>> half = Ladder(groups=(), counts=(8, 4, 0), step=1, loss_G=torch.zeros(3))
    >>> _at_shares(half, torch.tensor([0.0, 1.0, 3.0]), [1.0, 0.75, 0.25])
    tensor([0.0000, 0.5000, 2.0000], dtype=torch.float64)
    """
    whole = ladder.counts[0]
    known = [count / whole for count in ladder.counts[::-1]]
    return torch.as_tensor(np.interp(shares, known, loss_G.flip(0).tolist()), dtype=torch.float64)
