"""Repair of a cut in depth: the blocks that stay take over the linear part of what the removed ones did.

ReplaceMe (arXiv 2505.02819) replaces a run of blocks by a linear map, fitted in closed form and merged into the down
projection in front of it. Here that projection itself is refitted: with x its input and t what its block's output lacks
to be what the whole model had behind the run, W becomes W + E[t x^T] (E[x x^T] + d mean(diag E[x x^T]))^-1. The damping
d pulls towards W. With a bias moments are centred, and the bias takes the rest. No parameter is added.

Inputs come from the model as it is cut and repaired so far, so a second run mends what the first one left. The blocks
behind the runs can be refitted in the same way, each to what the whole model had at its place: first the last linear of
the attention, to the states in front of what the feed-forward part adds, then that of the feed-forward part.

Where a branch of a layer goes, the last linear of the other one is refitted to what the whole layer returned.

Where heads or channels go, the same refits follow that of what read them, from the first layer that lost some on: what
each linear is to make up for is all that went wrong so far, not the loss of its own inputs alone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from patchers.layers import bare_linear_at, weight_OI
from patchers.patching.patch import gated
from patchers.units import ATTENTION, CHANNELS, FFN, HEADS, LAYERS, WIDTH_KINDS, Group, Structure
from sparse_trainer.cut.decision import Decision
from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.one_shot.repairs.base import DAMPING, Repair
from sparse_trainer.one_shot.repairs.refit import kept_features, prepare_biases
from sparse_trainer.one_shot.repairs.solve import check_tokens, solve
from sparse_trainer.statistics.blockwise import Blockwise
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.norms_behind import norms_behind
from sparse_trainer.statistics.targets import StatesBetween, StateTargets, Target


@dataclass(frozen=True, kw_only=True)
class Heir:
    """A block that stays, and how far it has to bring the hidden states."""

    group: Group
    """What the linear to refit reads."""
    until: Group
    """A group of the last removed block behind it; of its own block where none is removed, or `last` is given."""
    last: str | None = None
    """Path of the block's last linear, where another is to be refitted."""


def heirs(found: Structure, keep: Mapping[str, Tensor], *, behind: bool) -> list[Heir]:
    """Return what to refit, in model order: the last linears of blocks that lost a branch, or stand in front of a run.

    Args:
        behind: Also those of all others from the first of these on, or the first that lost units, and the last linear
            of their attention where they have one.

    Raises:
        UnsupportedModelError: no layer stands in front of a run, or no last linear of its own is left in one.
    """
    gone = {(g.stack, g.layer): g for g in found.of((LAYERS,)) if _goes(g, keep)}
    cut = {(g.stack, g.layer): g for g in found.of((ATTENTION, FFN)) if _goes(g, keep)}
    fronts = _fronts(gone)
    linears = _linears_left(found, keep)
    lost = cut | {place: gone[place[0], place[1] + 1] for place in fronts}
    for place, group in lost.items():
        if place not in linears and place not in gone:
            is_first = place[1] < 0
            reason = (
                "no layer is in front of it"
                if is_first
                else "the layer at hand has no last linear of its own"
            )
            protect = "protect='first'" if is_first else f"protect='{group.layer}'"
            raise UnsupportedModelError(
                group.name,
                f"nothing can take over what it did: {reason}.",
                f"Set `{protect}`, so that it stays; or set no `reconstruct`.",
            )
    attention, chosen = _only_attention(found), []
    narrower = {(g.stack, g.layer) for g in found.of(WIDTH_KINDS) if behind and _goes(g, keep)}
    for stack in found.stacks:
        first = min((layer for path, layer in {*lost, *narrower} if path == stack.path), default=stack.size)
        for place in ((stack.path, layer) for layer in range(first, stack.size)):
            follows = behind and (place[1] > first or place in narrower)
            if place not in linears or place in gone or not (follows or place in lost):
                continue
            last = linears[place]
            if follows and place in attention and place not in cut:
                chosen.append(Heir(group=attention[place], until=last, last=last.consumer))
            chosen.append(Heir(group=last, until=fronts.get(place, last)))
    return chosen


def _fronts(gone: Mapping[tuple[str, int], Group]) -> dict[tuple[str, int], Group]:
    """Return the last layer of each run, by the place in front of the run."""
    fronts: dict[tuple[str, int], Group] = {}
    for (stack, layer), group in sorted(gone.items()):
        front = layer - 1
        while (stack, front) in gone:
            front -= 1
        fronts[stack, front] = group
    return fronts


def _linears_left(found: Structure, keep: Mapping[str, Tensor]) -> dict[tuple[str, int], Group]:
    """Return what the last linear of each block reads: in one without feed-forward part, that of its attention."""
    linears = {(g.stack, g.layer): g for g in last_linears(found)}
    heads = _only_attention(found)
    closed = {(g.stack, g.layer) for g in found.of((ATTENTION,)) if _goes(g, keep)}
    for group in found.of((FFN,)):
        place = group.stack, group.layer
        if _goes(group, keep):
            linears.pop(place, None)
            if place in heads and place not in closed:
                linears[place] = heads[place]
    return linears


def _only_attention(found: Structure) -> dict[tuple[str, int], Group]:
    """Return the heads of each block with one attention: of two, the second need not run, and reads the first."""
    of_block: dict[tuple[str, int], list[Group]] = {}
    for group in found.of((HEADS,)):
        of_block.setdefault((group.stack, group.layer), []).append(group)
    return {place: groups[0] for place, groups in of_block.items() if len(groups) == 1}


def _goes(block: Group, keep: Mapping[str, Tensor]) -> bool:
    return block.name in keep and not bool(keep[block.name].all())


def check_followed(found: Structure, widths: Iterable[Group]) -> None:
    """Refuse units whose readers are not among what is refitted to states of the whole model.

    Raises:
        UnsupportedModelError: they feed stacked experts or the second attention of a block, or stand in front of none.
    """
    ends = {(g.stack, g.layer): g for g in last_linears(found)}
    attentions = _only_attention(found)
    for group in widths:
        place = group.stack, group.layer
        if place not in ends or group not in (ends[place], attentions.get(place)):
            raise UnsupportedModelError(
                group.name,
                "what reads it cannot be refitted to the states of the whole model: its layer has no last linear of "
                "its own, or several attentions.",
                "Drop `refit_behind`, or protect it.",
            )


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
    """Refit linears in front of removed runs, and those left beside removed branches, one after the other, in place.

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
    blocks = replace(found, groups=tuple(heir.group for heir in chosen))
    prepare_biases(model, blocks, repair)
    ends = replace(found, groups=tuple(heir.until for heir in chosen))
    gone = {g.block for g in found.of((LAYERS,)) if _goes(g, decision.keep)}
    whole = Blockwise(model, ends, batches, changing=False, device=device)
    cut = Blockwise(model, blocks, batches, changing=True, device=device, without=gone)
    by_group = {heir.group.name: heir for heir in chosen}
    norms = _norms_between(model, found, chosen, batches)
    walk = iter(cut)
    while groups := _next(model, walk, decision):
        wanted = wanted_states(whole, [by_group[group.name] for group in groups], norms)
        for group, request in zip(groups, wanted, strict=True):
            with _closed(model, decision):
                target = cut.collect([group], [request]).of(request)[group.consumer]
            refit_to_target(model, group, decision.keep, target, damping, bias)


def _next(model: Any, walk: Iterator[tuple[Group, ...]], decision: Decision) -> tuple[Group, ...] | None:
    """Go on to the next block of the cut model."""
    with _closed(model, decision):
        return next(walk, None)


@contextmanager
def _closed(model: Any, decision: Decision) -> Iterator[None]:
    """Close the branches and units that go for the time of a `with` block; layers are passed by anyway."""
    found = decision.structure
    parts = tuple(g for g in found.of((ATTENTION, FFN, *WIDTH_KINDS)) if _goes(g, decision.keep))
    with gated(model, replace(found, groups=parts), decision.keep) if parts else nullcontext():
        yield


def _norms_between(
    model: Any, found: Structure, chosen: Iterable[Heir], batches: Batches
) -> Mapping[str, str]:
    """Return the norms behind linears, by path, of blocks whose states run through one behind the last linear."""
    own = [heir.group for heir in chosen if heir.until.block == heir.group.block]
    norms = norms_behind(model, own, next(batches.read(labelled=False, one_by_one=False)))
    closing = {g.block for g in last_linears(found) if g.consumer in norms}
    return {g.consumer: norms[g.consumer] for g in own if g.block in closing and g.consumer in norms}


def wanted_states(whole: Blockwise, chosen: Sequence[Heir], norms: Mapping[str, str]) -> list[StateTargets]:
    """Return what the whole model has at places of one block: passes over blocks of it, none of them refitted yet."""
    own = {heir.group.name: _request_of(heir, norms) for heir in chosen}
    between = {request for request in own.values() if request is not None}
    states: dict[StatesBetween, list[Any]] = {}
    if between:
        last = next(heir.until for heir in chosen if own[heir.group.name] is not None)
        whole.reach(last)
        collected = whole.collect([last], between)
        states = {request: collected.of(request)[last.consumer] for request in between}
    found = []
    for heir in chosen:
        request = own[heir.group.name]
        behind = whole.outputs(heir.until) if request is None else states[request]
        norm = norms.get(heir.group.consumer)
        found.append(StateTargets(states=behind, last=None if norm else heir.last, norm=norm))
    return found


def _request_of(heir: Heir, norms: Mapping[str, str]) -> StatesBetween | None:
    """Return how to ask for the states behind a linear; None where the block returns them."""
    norm = norms.get(heir.group.consumer)
    return None if norm is None and heir.last is None else StatesBetween(norm=norm)


@torch.no_grad()
def refit_to_target(
    model: Any,
    group: Group,
    keep: Mapping[str, Tensor],
    target: Target,
    damping: float,
    bias: bool | None,
) -> None:
    """Refit the columns that stay of what reads a group."""
    linear, keep_U = bare_linear_at(model, group.consumer), keep.get(group.name)
    weight, shifted = taken_over(
        weight_OI(linear), linear.bias, group, keep_U, target, damping=damping, bias=bias
    )
    weight_OI(linear).copy_(weight)
    if shifted is not None:
        linear.bias.copy_(shifted)


@torch.no_grad()
def taken_over(
    stored_OI: Tensor,
    stored_O: Tensor | None,
    group: Group,
    keep_U: Tensor | None,
    target: Target,
    *,
    damping: float,
    bias: bool | None,
) -> tuple[Tensor, Tensor | None]:
    """Return the weight and bias of a linear that brings the hidden states nearer to what is wanted of them.

    Args:
        stored_OI: The weight before.
        stored_O: The bias before; None = it has none.
        group: What the linear reads.
        keep_U: Units of it that stay, whose columns move; None = all.
        target: What the linear reads, and what the states behind it lack.
        bias: Whether the bias moves too; None = where there is one.

    Raises:
        DataError: fewer tokens than unknowns.
        NonFiniteError: the moments cannot be solved.
    """
    moves_bias = stored_O is not None if bias is None else bias
    moments, path = target.moments, group.consumer
    keep_I = kept_features(group, keep_U, stored_OI)
    check_tokens(moments, int(keep_I.sum()), path)
    assert moments.centred_II is not None
    mean_K = moments.mean_I[keep_I].double()
    second_II, cross_KH = moments.second_II, target.cross_IH[keep_I].double()
    if moves_bias:
        second_II = moments.centred_II.double()
        cross_KH = cross_KH - torch.outer(mean_K, target.mean_H)
    update_OK = solve(second_II[keep_I][:, keep_I], cross_KH, damping, path).T
    found_OI = stored_OI.clone()
    found_OI[:, keep_I] += update_OK.to(stored_OI.dtype)
    if not moves_bias:
        return found_OI, stored_O
    assert stored_O is not None
    return found_OI, stored_O + (target.mean_H - update_OK @ mean_K).to(stored_O.dtype)
