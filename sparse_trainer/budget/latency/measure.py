"""Measure what the blocks of a model take at several widths: real blocks, cut, as the model calls them."""

import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from transformers import PreTrainedModel

from patchers.units import CHANNELS, Group, Structure
from sparse_trainer.budget.latency.calls import Call, Caller, compiling, narrowed
from sparse_trainer.budget.latency.clock import LOUD, Times, time_calls
from sparse_trainer.budget.latency.conditions import TimingConditions
from sparse_trainer.budget.latency.curve import Curve
from sparse_trainer.budget.latency.sorts import Block, largest_of_sorts, spare_layers, timed_blocks
from sparse_trainer.budget.latency.table import LatencyTable
from sparse_trainer.budget.time_target import TimeTarget
from sparse_trainer.inputs.evaluating import evaluating

logger = logging.getLogger(__name__)

ROUNDS: Final = 5
SECONDS: Final = 20.0
"""Of timing: the rounds that fit into it, `ROUNDS` at least."""
_STEPS: Final = (1, 2, 4, 8, 16, 32, 64)
"""Multiples that kernels may like."""
_WIDE: Final = 256
"""Channels from which it is worth to ask which multiples those are."""
_SLOWER: Final = 0.02
"""What counts as slower, relative to the block."""


@dataclass(frozen=True)
class _Width:
    """A group at one number of units."""

    sort: str
    units: int
    is_probe: bool = False
    """Whether it only tells how fast an odd number of units is."""


def measure_table(
    model: PreTrainedModel, structure: Structure, target: TimeTarget, *, seconds: float = SECONDS
) -> LatencyTable:
    """Time blocks of a model at several widths, and what lies outside its blocks.

    Every width is cut into another layer where there are several, so that one call does not find the weights of the
    last in the cache.

    Args:
        structure: All that was found in the model.
        seconds: Of timing, roughly; cutting and compiling come on top.

    Raises:
        ArgumentError: the model cannot be timed in this way.
    """
    blocks, caller = timed_blocks(model, structure), Caller(target)
    with evaluating(model), compiling(target):
        calls = dict(_calls(model, structure, blocks, caller))
        times = time_calls(list(calls.values()), model.device, rounds=ROUNDS, seconds=seconds)
    if times.noise > LOUD:
        logger.warning(
            "Times are uncertain by up to %.0f %% after %d rounds: something else keeps the machine busy.",
            100 * times.noise,
            times.rounds,
        )
    return _tabulated(model, structure, blocks, dict(zip(calls, times.seconds, strict=True)), times, target)


_MODEL, _SMALL = "the model", "the model with as few layers as can be"


def _calls(
    model: PreTrainedModel, structure: Structure, blocks: tuple[Block, ...], caller: Caller
) -> Iterator[tuple[str | _Width, Call]]:
    """Yield what is timed: the model, the model with few layers, a block of each sort, and blocks at other widths."""
    yield _MODEL, caller.of_model(model)
    gone = {group.name: torch.zeros(1, dtype=torch.bool) for group in spare_layers(structure)}
    yield _SMALL, caller.of_model(narrowed(model, structure, gone))
    arguments = caller.of_blocks(model, [block.path for block in blocks])
    for sort, block in {block.sort: block for block in reversed(blocks)}.items():
        yield sort, arguments[block.path].call(model.get_submodule(block.path), caller.target)
    for sort, members in largest_of_sorts(blocks).items():
        turns = itertools.cycle(members)
        for width in _widths(sort, members[0][1]):
            block, group = next(turns)
            keep = {group.name: torch.arange(group.num_units) < width.units}
            twin = narrowed(model, structure, keep).get_submodule(block.path)
            yield width, arguments[block.path].call(twin, caller.target)


def _widths(sort: str, group: Group) -> list[_Width]:
    """Return the numbers of units at which a group is timed.

    >>> from patchers.units import HEADS
    >>> heads = Group(name="", kind=HEADS, layer=0, stack="", block="", num_units=12, consumer="")
    >>> [width.units for width in _widths("", heads)]
    [0, 2, 3, 5, 6, 8, 9, 11, 12]
    """
    size = group.num_units
    shares = {-(-size * eighth // 8) for eighth in range(9)}
    probed = size // 2 // 128 * 128 if group.kind == CHANNELS and size >= _WIDE else 0
    shares |= {probed} if probed else set()
    fitting = [n for n in sorted(shares) if n >= group.min_units and group.fits(n)]
    probes = [probed - step for step in _STEPS if probed and group.fits(probed - step)]
    return [_Width(sort, n) for n in fitting] + [_Width(sort, n, is_probe=True) for n in probes]


def _tabulated(
    model: PreTrainedModel,
    structure: Structure,
    blocks: tuple[Block, ...],
    seconds: Mapping[str | _Width, float],
    times: Times,
    target: TimeTarget,
) -> LatencyTable:
    """Return the table that follows from the times of all calls."""
    curves, steps = {}, {}
    for sort in largest_of_sorts(blocks):
        found = {w: s for w, s in seconds.items() if isinstance(w, _Width) and w.sort == sort}
        curves[sort] = Curve.through({w.units: s for w, s in found.items() if not w.is_probe})
        steps[sort] = _step({w.units: s for w, s in found.items()}, [w.units for w in found if w.is_probe])
    alone = {
        block.sort: max(0.0, seconds[block.sort] - _of_units(block, curves)) for block in reversed(blocks)
    }
    gone = {(group.stack, group.layer) for group in spare_layers(structure)}
    left = sum(seconds[block.sort] for block in blocks if (block.stack, block.layer) not in gone)
    rest = max(0.0, seconds[_SMALL] - left)
    # By themselves, one after the other, blocks may be a little faster or slower than in the model.
    factor = (seconds[_MODEL] - rest) / sum(seconds[block.sort] for block in blocks)
    factor = factor if 0.5 < factor < 2 else 1.0
    return LatencyTable(
        conditions=TimingConditions.of(model, target),
        rest=rest,
        blocks={sort: value * factor for sort, value in alone.items()},
        curves={sort: curve.scaled(factor) for sort, curve in curves.items()},
        steps=steps,
        noise=times.noise,
    )


def _of_units(block: Block, curves: Mapping[str, Curve]) -> float:
    pairs = zip(block.sorts, block.groups, strict=True)
    return sum(curves[sort].at(group.num_units) for sort, group in pairs)


def _step(times: Mapping[int, float], probes: list[int]) -> int:
    """Return the least multiple of which no number of units is slower than a larger one.

    Args:
        times: Seconds of the block by number of units.
        probes: Numbers just below one that is a multiple of 128: `m - 1`, `m - 2`, `m - 4`, …

    >>> _step({256: 1.0, 255: 1.5, 254: 1.5, 252: 1.2, 248: 0.99, 240: 0.98}, [255, 254, 252, 248, 240])
    8
    """
    if not probes:
        return 1
    whole = max(probes) // 128 * 128 + 128
    slow = [whole - n for n in probes if times[n] > times[whole] * (1 + _SLOWER)]
    return 2 * max(slow) if slow else 1
