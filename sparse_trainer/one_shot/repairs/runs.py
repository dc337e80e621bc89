"""Repair of a cut in depth: the block in front of a run of removed layers takes over the linear part of what they did.

ReplaceMe (arXiv 2505.02819) replaces a run of blocks by a linear map, fitted in closed form and merged into the down
projection in front of it. Here that projection itself is refitted: with x its input and t what the run added to the
hidden states, W becomes W + E[t x^T] (E[x x^T] + d mean(diag E[x x^T]))^-1. The damping d pulls towards W. With a bias
moments are centred, and the bias takes the rest. No parameter is added.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from patchers.layers import bare_linear_at, weight_OI
from patchers.units import CHANNELS, LAYERS, Group, Structure
from sparse_trainer.cut.decision import Decision
from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.one_shot.repairs.base import DAMPING, Repair
from sparse_trainer.one_shot.repairs.refit import prepare_biases
from sparse_trainer.one_shot.repairs.solve import check_tokens, solve
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.runs import Run, RunTarget, RunTargets


def removed_runs(found: Structure, keep: Mapping[str, Tensor]) -> list[Run]:
    """Return the runs of layers that go, in model order.

    Raises:
        UnsupportedModelError: no layer stands in front of a run, or its feed-forward part has no last linear.
    """
    layers = {(g.stack, g.layer): g for g in found.of((LAYERS,))}
    linears = {(g.stack, g.layer): g.consumer for g in last_linears(found)}
    gone = {place for place, g in layers.items() if g.name in keep and not bool(keep[g.name].all())}
    runs = []
    for stack, layer in sorted(gone):
        if (stack, layer - 1) in gone:
            continue
        last = layer
        while (stack, last + 1) in gone:
            last += 1
        first = layers[stack, layer]
        if (stack, layer - 1) not in linears:
            raise UnsupportedModelError(
                first.name,
                "nothing can take over what it did: "
                + ("it is the first" if layer == 0 else "the layer in front has no last linear of its own")
                + ".",
                "Protect it, or set no reconstruct.",
            )
        runs.append(
            Run(
                first=first.block,
                last=layers[stack, last].block,
                before=_block_in_front(found, stack, layer),
                linear=linears[stack, layer - 1],
            )
        )
    return runs


def last_linears(found: Structure) -> tuple[Group, ...]:
    """Return the groups whose consumer is the last linear of a layer: of feed-forward channels, but in no experts."""
    return tuple(g for g in found.of((CHANNELS,)) if g.consumer_tensor is None)


def _block_in_front(found: Structure, stack: str, layer: int) -> str:
    return next(g.block for g in found.groups if g.stack == stack and g.layer == layer - 1)


def take_over(
    model: nn.Module,
    decision: Decision,
    repair: Repair,
    batches: Batches,
    *,
    damping: float = DAMPING,
    bias: bool | None = None,
) -> None:
    """Refit the linears in front of removed runs, in place.

    Args:
        bias: Whether biases move too; None = where there is one.
    """
    found = decision.structure
    runs = removed_runs(found, decision.keep)
    if not runs:
        return
    linears = {run.linear for run in runs}
    before = tuple(g for g in last_linears(found) if g.consumer in linears)
    prepare_biases(model, replace(found, groups=before), repair)
    request = RunTargets(runs=tuple(runs))
    firsts = {run.first for run in runs}
    groups: tuple[Group, ...] = tuple(g for g in found.of((LAYERS,)) if g.block in firsts)
    targets = collect(model, replace(found, groups=groups), batches, [request]).of(request)
    for run in runs:
        _refit(model, run, targets[run.first], damping, bias)


@torch.no_grad()
def _refit(model: Any, run: Run, target: RunTarget, damping: float, bias: bool | None) -> None:
    linear = bare_linear_at(model, run.linear)
    stored_OI, stored_O = weight_OI(linear), linear.bias
    moves_bias = stored_O is not None if bias is None else bias
    moments = target.moments
    check_tokens(moments, stored_OI.shape[1], run.linear)
    assert moments.centred_II is not None
    mean_I = moments.mean_I.double()
    second_II, cross_IH = moments.second_II, target.cross_IH
    if moves_bias:
        second_II = moments.centred_II.double()
        cross_IH = cross_IH - torch.outer(mean_I, target.mean_H)
    update_OI = solve(second_II, cross_IH, damping, run.linear).T
    stored_OI.add_(update_OI.to(stored_OI.dtype))
    if moves_bias:
        assert stored_O is not None
        stored_O.add_((target.mean_H - update_OI @ mean_I).to(stored_O.dtype))
