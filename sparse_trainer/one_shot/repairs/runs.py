"""Repair of a cut in depth: the blocks that stay take over the linear part of what the removed ones did.

ReplaceMe (arXiv 2505.02819) replaces a run of blocks by a linear map, fitted in closed form and merged into the down
projection in front of it. Here that projection itself is refitted: with x its input and t what its block's output lacks
to be what the whole model had behind the run, W becomes W + E[t x^T] (E[x x^T] + d mean(diag E[x x^T]))^-1. The damping
d pulls towards W. With a bias moments are centred, and the bias takes the rest. No parameter is added.

Inputs come from the model as it is cut and repaired so far, so a second run mends what the first one left. The blocks
behind the runs can be refitted in the same way, each to what the whole model had at its place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from patchers.layers import bare_linear_at, weight_OI
from patchers.units import CHANNELS, LAYERS, Group, Structure
from sparse_trainer.cut.decision import Decision
from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.one_shot.repairs.base import DAMPING, Repair
from sparse_trainer.one_shot.repairs.refit import prepare_biases
from sparse_trainer.one_shot.repairs.solve import check_tokens, solve
from sparse_trainer.statistics.blockwise import Blockwise
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.targets import StateTargets, Target


@dataclass(frozen=True, kw_only=True)
class Heir:
    """A block that stays, and how far it has to bring the hidden states."""

    channels: Group
    """Those that its last linear reads."""
    until: Group
    """A group of the last removed block behind it; of itself where none is removed."""


def heirs(found: Structure, keep: Mapping[str, Tensor], *, behind: bool) -> list[Heir]:
    """Return the blocks to refit, in model order: those in front of removed runs.

    Args:
        behind: Also all others behind the first run of their stack that have a last linear of their own.

    Raises:
        UnsupportedModelError: no layer stands in front of a run, or its feed-forward part has no last linear.
    """
    gone = {(g.stack, g.layer): g for g in found.of((LAYERS,)) if _goes(g, keep)}
    fronts: dict[tuple[str, int], Group] = {}
    for (stack, layer), group in sorted(gone.items()):
        front = layer - 1
        while (stack, front) in gone:
            front -= 1
        fronts[stack, front] = group
    linears = {(g.stack, g.layer): g for g in last_linears(found)}
    for stack, front in fronts:
        if (stack, front) not in linears:
            reason = "it is the first" if front < 0 else "the layer in front has no last linear of its own"
            raise UnsupportedModelError(
                gone[stack, front + 1].name,
                f"nothing can take over what it did: {reason}.",
                "Protect it, or set no reconstruct.",
            )
    first = {stack: min(front for other, front in fronts if other == stack) for stack, _ in fronts}
    return [
        Heir(channels=channels, until=fronts.get(place, channels))
        for place, channels in linears.items()
        if place in fronts or (behind and place not in gone and place[1] > first.get(place[0], place[1]))
    ]


def _goes(block: Group, keep: Mapping[str, Tensor]) -> bool:
    return block.name in keep and not bool(keep[block.name].all())


def last_linears(found: Structure) -> tuple[Group, ...]:
    """Return the groups whose consumer is the last linear of a layer: of feed-forward channels, but in no experts."""
    return tuple(g for g in found.of((CHANNELS,)) if g.consumer_tensor is None)


def take_over(
    model: Any,
    decision: Decision,
    repair: Repair,
    batches: Batches,
    *,
    behind: bool = False,
    damping: float = DAMPING,
    bias: bool | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Refit the linears in front of removed runs, one after the other, in place.

    Two streams of hidden states go through the blocks: those of the whole model, always a step ahead, and those of the
    model as it is cut and repaired so far.

    Args:
        behind: Refit those of the blocks behind them as well.
        bias: Whether biases move too; None = where there is one.
        device: Where blocks are run, one at a time; None = where the model is.
    """
    found = decision.structure
    chosen = heirs(found, decision.keep, behind=behind)
    if not chosen:
        return
    blocks = replace(found, groups=tuple(heir.channels for heir in chosen))
    prepare_biases(model, blocks, repair)
    ends = replace(found, groups=tuple(heir.until for heir in chosen))
    gone = {g.block for g in found.of((LAYERS,)) if _goes(g, decision.keep)}
    whole = Blockwise(model, ends, batches, changing=False, device=device)
    cut = Blockwise(model, blocks, batches, changing=True, device=device, without=gone)
    for heir, groups in zip(chosen, cut, strict=True):
        request = StateTargets(states=whole.outputs(heir.until))
        linear = heir.channels.consumer
        _refit(model, linear, cut.collect(groups, [request]).of(request)[linear], damping, bias)


@torch.no_grad()
def _refit(model: Any, path: str, target: Target, damping: float, bias: bool | None) -> None:
    linear = bare_linear_at(model, path)
    stored_OI, stored_O = weight_OI(linear), linear.bias
    moves_bias = stored_O is not None if bias is None else bias
    moments = target.moments
    check_tokens(moments, stored_OI.shape[1], path)
    assert moments.centred_II is not None
    mean_I = moments.mean_I.double()
    second_II, cross_IH = moments.second_II, target.cross_IH
    if moves_bias:
        second_II = moments.centred_II.double()
        cross_IH = cross_IH - torch.outer(mean_I, target.mean_H)
    update_OI = solve(second_II, cross_IH, damping, path).T
    stored_OI.add_(update_OI.to(stored_OI.dtype))
    if moves_bias:
        assert stored_O is not None
        stored_O.add_((target.mean_H - update_OI @ mean_I).to(stored_O.dtype))
