"""Runs of consecutive layers that may go, what takes over for each, and what the model loses without it.

As in ReplaceMe (arXiv 2505.02819), the down projection in front of a run takes over the linear part of what it did: in
closed form, from one pass over the calibration text for all runs. A run is a level of its own, since the losses of its
layers do not add up: together they are easier to stand in for than as many scattered ones.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from patchers.layers import bare_linear_at, features, weight_OI
from patchers.units import LAYERS, Group, Structure
from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.inputs.bars import bar
from sparse_trainer.one_shot.repairs.runs import last_linears, taken_over
from sparse_trainer.one_shot.search.divergence import DenseOutput
from sparse_trainer.one_shot.search.ladders import Run
from sparse_trainer.one_shot.search.losses import SearchClock, check_level, spread
from sparse_trainer.one_shot.search.stitched import Stitched, Width
from sparse_trainer.statistics.batch import Batch
from sparse_trainer.statistics.blockwise import Blockwise
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.replay import Replay
from sparse_trainer.statistics.run_targets import RunTargets
from sparse_trainer.statistics.targets import StateTargets, Target

_AT_ONCE: Final = 1 << 28
"""Numbers that are held of runs in one pass over the calibration text."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Depth:
    """How runs are looked for."""

    found: Structure
    """All groups of the model."""
    repaired: bool
    damping: float
    bias: bool | None
    """Whether biases of what takes over move; None = where there is one."""


def possible_runs(structure: Structure, depth: Depth, longest: int) -> tuple[Run, ...]:
    """Return the runs of up to so many layers that may go.

    Args:
        structure: The groups that may go.
    """
    layers = {(g.stack, g.layer): g for g in structure.of((LAYERS,))}
    fronts = {(g.stack, g.layer): g for g in last_linears(depth.found)}
    runs = []
    for stack, first in layers:
        front = fronts.get((stack, first - 1)) if depth.repaired else None
        if depth.repaired and front is None:
            continue
        for length in range(1, longest + 1):
            places = [(stack, first + step) for step in range(length)]
            if any(place not in layers for place in places):
                break
            runs.append(Run(layers=tuple(layers[place] for place in places), front=front))
    return tuple(runs)


def with_one_left(runs: Sequence[Run], found: Structure) -> tuple[Run, ...]:
    """Return the runs after which of every stack and sort the layer stays that is missed most.

    Args:
        runs: With losses.
    """
    of_peers: dict[tuple[str, str], set[str]] = {}
    for group in found.of((LAYERS,)):
        of_peers.setdefault(group.peers, set()).add(group.name)
    alone = {run.layers[0].name: run.loss for run in runs if len(run.layers) == 1}
    stays = {max(names, key=alone.__getitem__) for names in of_peers.values() if names <= alone.keys()}
    return tuple(run for run in runs if not stays & {group.name for group in run.layers})


def check_taken_over(model: Any, runs: Sequence[Run], tried: Sequence[Batch], depth: Depth) -> None:
    """Raise `UnsupportedModelError` where no linear can take over for a run: a norm stands behind it, say.

    Args:
        tried: Of which one batch is run.
    """
    fronts = {run.front.name: run.front for run in runs if run.front is not None}
    if not fronts:
        if depth.repaired:
            raise UnsupportedModelError(
                type(model).__name__,
                "no layer that may go has one in front that could take over what it did.",
                "Set no reconstruct.",
            )
        return
    groups = tuple(sorted(fronts.values(), key=lambda group: (group.stack, group.layer)))
    batches = Batches(model, [tried[0].inputs])
    walk = Blockwise(model, replace(depth.found, groups=groups[:1]), batches, changing=False)
    for group in next(iter(walk)):
        walk.collect(
            [group],
            [StateTargets(states=Blockwise(model, walk.structure, batches, changing=False).outputs(group))],
        )


@torch.no_grad()
def run_losses(
    model: Stitched,
    replay: Replay,
    tried: Sequence[Batch],
    batches: Batches,
    runs: Sequence[Run],
    depth: Depth,
    clock: SearchClock,
    rough: AbstractContextManager[Any],
) -> tuple[Run, ...]:
    """Return runs with the mean divergence from the dense model without them; those that were reached in time.

    Args:
        tried: What losses are measured on.
        batches: What linears are fitted on.
        rough: Measures faster and less exactly.

    Raises:
        NonFiniteError: the model says NaN or infinity, or moments cannot be solved.
    """
    by_block: dict[str, list[Run]] = {}
    for run in runs:
        by_block.setdefault(_first_changed(run), []).append(run)
    found: list[Run] = []
    ordered = [by_block[block] for block in spread(list(by_block))]
    for part in _parts(model.model, ordered):
        if found and clock.is_up:
            break
        widths = _widths(model.model, [run for same in part for run in same], batches, depth)
        for same in bar(part, "trying runs of layers"):
            if found and clock.is_up:
                break
            with replay.steered(), rough:
                found += _measured(model, replay, tried, same, widths)
    if len(found) < len(runs):
        logger.warning("search: time was up when %d of %d runs of layers were tried.", len(found), len(runs))
    return tuple(found)


def _first_changed(run: Run) -> str:
    return (run.front or run.layers[0]).block


def _parts(model: Any, by_front: Sequence[list[Run]]) -> Iterator[list[list[Run]]]:
    """Yield runs, together with those behind the same linear, for each pass over the calibration text."""
    part: list[list[Run]] = []
    held = 0
    for same in by_front:
        size = 0
        if same[0].front is not None:
            outputs, inputs = features(bare_linear_at(model, same[0].front.consumer))
            size = inputs * (inputs + outputs * len(same))
        if part and held + size > _AT_ONCE:
            yield part
            part, held = [], 0
        part.append(same)
        held += size
    yield part


def _widths(model: Any, runs: Sequence[Run], batches: Batches, depth: Depth) -> dict[str, Width]:
    """Return the linears in front of runs as they take over, by name of the run."""
    fronts = {run.front.name: run.front for run in runs if run.front is not None}
    if not fronts:
        return {}
    request = RunTargets(longest=max(len(run.layers) for run in runs))
    groups = tuple(sorted(fronts.values(), key=lambda group: (group.stack, group.layer)))
    targets = collect(model, replace(depth.found, groups=groups), batches, [request]).of(request)
    return {
        run.name: _width(model, run.front, targets[run.front.consumer][len(run.layers)], depth)
        for run in runs
        if run.front is not None
    }


def _width(model: Any, front: Group, target: Target, depth: Depth) -> Width:
    linear = bare_linear_at(model, front.consumer)
    weight, bias = taken_over(
        weight_OI(linear), linear.bias, front, None, target, damping=depth.damping, bias=depth.bias
    )
    keep_U = torch.ones(front.num_units, dtype=torch.bool)
    return Width(group=front, keep_U=keep_U, weight_OI=weight, bias_O=bias)


def _measured(
    model: Stitched, replay: Replay, tried: Sequence[Batch], runs: Sequence[Run], widths: dict[str, Width]
) -> list[Run]:
    sums, positions = torch.zeros(len(runs), dtype=torch.float64), 0
    for batch in tried:
        dense = DenseOutput(replay.record(batch), batch)
        for number, run in enumerate(runs):
            if run.name in widths:
                model.put(widths[run.name])
            said = replay.rerun(batch, _first_changed(run), [group.block for group in run.layers])
            lost = dense.divergence(said)
            check_level(lost, run.name, "without it")
            sums[number] += lost
        for front in {run.front.name: run.front for run in runs if run.front is not None}.values():
            model.restore(front)
        positions += dense.positions
    return [replace(run, loss=float(total) / positions) for run, total in zip(runs, sums, strict=True)]
