"""Zeros into the linears of a model: score single weights, choose, refit where the criterion does."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from patchers.layers import linear_at, weight_OI
from patchers.units import Group, Structure
from sparse_trainer.cut.decision import Request
from sparse_trainer.cut.record import attach_plan, plan_of, whole_among
from sparse_trainer.errors import ArgumentError, NonFiniteError, UnsupportedModelError
from sparse_trainer.one_shot.elements.base import Pattern, RefitsWeights, ScoresWeights
from sparse_trainer.one_shot.elements.counts import keep_best
from sparse_trainer.one_shot.elements.options import WEIGHTS, ElementOptions
from sparse_trainer.plan.document import Plan
from sparse_trainer.statistics.blockwise import Blockwise
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.calibration_pass import precise
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.requests import Statistics

# Shape legend: O x I = a weight, outputs by inputs.


def check_maskable(model: nn.Module, structure: Structure, pattern: Pattern | None) -> None:
    """Refuse, before any work, experts that lie in one tensor, and widths that a pattern does not divide.

    Raises:
        ArgumentError: a pattern that does not divide the inputs of a linear.
        UnsupportedModelError: stacked experts.
    """
    for group in structure.groups:
        if group.consumer_tensor is not None:
            raise UnsupportedModelError(
                group.name,
                "its experts lie in one tensor, which no mask fits.",
                "Protect them: `protect=['*.channels']`.",
            )
    for path in linears_of(structure.groups) if pattern is not None else ():
        inputs = weight_OI(linear_at(model, path)).shape[1]
        if pattern is not None and inputs % pattern.m:
            raise ArgumentError(
                "pattern",
                f"{pattern.m} does not divide the {inputs} inputs of {path}.",
                "Take a pattern that does, or protect it.",
            )


def linears_of(groups: Iterable[Group]) -> tuple[str, ...]:
    """Return the paths of the linears that heads and channels are made of, once each."""
    return tuple(dict.fromkeys(s.path for group in groups for s in group.slices))


def mask_weights(
    model: nn.Module,
    structure: Structure,
    batches: Batches | None,
    options: ElementOptions,
    device: torch.device | str | None,
) -> None:
    """Write zeros into the linears of the groups, in place.

    Args:
        batches: None for criteria that look at weights only.
        device: Where blocks are run, one at a time; None = where the model is.

    Raises:
        NonFiniteError: scores or refitted weights that are no numbers.
    """
    done: set[str] = set()
    if batches is None or not options.requests:
        everything = linears_of(structure.groups)
        for some in [everything] if options.is_global else [(path,) for path in everything]:
            close(model, some, Statistics(), options)
    elif options.in_order:
        blocks = Blockwise(model, structure, batches, changing=True, device=device)
        for groups in blocks:
            # Layers that share their weights are masked once.
            paths = [path for path in linears_of(groups) if path not in done]
            if paths:
                close(model, paths, blocks.collect(groups, options.requests), options)
            done.update(paths)
    else:
        statistics = collect(model, structure, batches, options.requests)
        close(model, linears_of(structure.groups), statistics, options)


@torch.no_grad()
def close(model: nn.Module, paths: Sequence[str], statistics: Statistics, options: ElementOptions) -> None:
    """Write zeros into some linears, in place."""
    weights = {path: precise(weight_OI(linear_at(model, path)).detach()) for path in paths}
    criterion = options.read
    if isinstance(criterion, RefitsWeights):
        for path, old_OI in weights.items():
            new_OI = criterion.refit(old_OI, path, statistics, options.ask)
            _check_finite(path, new_OI)
            weight_OI(linear_at(model, path)).copy_(new_OI)
        return
    assert isinstance(criterion, ScoresWeights)
    scores = criterion.scores(weights, statistics)
    for path, score_OI in scores.items():
        _check_finite(path, score_OI)
    for path, keep_OI in keep_best(scores, options.ask).items():
        weight_OI(linear_at(model, path)).masked_fill_(~keep_OI, 0.0)


def _check_finite(path: str, values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(
            path,
            "NaN or infinity among the scores of its weights.",
            "Look for NaN weights; or load in float32.",
        )


def note_zeros(model: Any, structure: Structure, request: Request) -> Plan:
    """Write into the plan of a model what was asked of its weights, and how many are zero; return it."""
    weights = {f"{path}.weight": linear_at(model, path).weight for path in linears_of(structure.groups)}
    zeros = {name: (int((weight == 0).sum()), weight.numel()) for name, weight in weights.items()}
    plan = plan_of(model)
    assert plan is not None
    plan = replace(plan, target=WEIGHTS, scope=request.scope, density_asked=request.density, zeros=zeros)
    zero, size = plan.zeros_in_all
    whole = whole_among(plan.untouched_towers, zeros)
    plan = replace(plan, density_reached=1 - zero / size, untouched_towers=whole)
    attach_plan(model, plan)
    return plan
