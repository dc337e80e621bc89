"""One streaming pass over a calibration set."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from patchers.units import Group, Structure
from sparse_trainer.errors import DataError, UnsupportedModelError
from sparse_trainer.inputs.evaluating import evaluating, frozen
from sparse_trainer.statistics.calibration import Batches, as_batches
from sparse_trainer.statistics.calibration_pass import LABELS, CalibrationPass
from sparse_trainer.statistics.forward import ForwardPass, StopForward
from sparse_trainer.statistics.requests import Collector, Statistic, Statistics, unsupported_reason


def collect(
    model: Any,
    structure: Structure,
    calibration: Iterable[Mapping[str, Any]] | Batches,
    requests: Iterable[Statistic[Any]],
    *,
    stop_early: bool = False,
    one_by_one: bool = False,
) -> Statistics:
    """Run a calibration set through a model and return what was asked for, and nothing else.

    The model is put in evaluation mode and its weights are frozen for the time of the pass. Padding counts nowhere,
    labels of -100 bring no loss, and the result does not depend on how sequences are shared out over batches.

    Args:
        structure: The groups, and the lists of blocks, whose statistics are asked for.
        stop_early: End every forward pass at the last group's consumer. Only where no loss is asked for, and nothing
            is looked at but consumers.
        one_by_one: Run one sequence at a time, also where nothing asks for it.

    Raises:
        DataError: the calibration set is empty or does not fit the model.
        NonFiniteError: NaN or infinity; names the group and the batch.
        UnsupportedModelError: a request cannot be met for a group.
    """
    wanted = tuple(dict.fromkeys(requests))
    _check_collectable(structure.groups, wanted)
    run = CalibrationPass(model, structure)
    collectors = _collectors(wanted, run)
    paths = {path for collector in collectors for path in collector.paths}
    if not paths:
        return Statistics(found={request: {} for request in wanted})
    batches = as_batches(model, calibration)
    losses = {request.loss for request in wanted if request.loss is not None}
    forward = ForwardPass(model, paths, labelled=LABELS in losses, differentiable=bool(losses))
    # Experts are given tokens, of which nothing tells the sequence.
    alone = one_by_one or any(c.one_by_one for c in collectors) or any("experts" in path for path in paths)
    tokens, sequences = torch.zeros((), dtype=torch.long, device=batches.device), 0
    with torch.inference_mode(False), evaluating(model), frozen(model), ExitStack() as stack:
        for collector in collectors:
            for place in collector.attach():
                stack.enter_context(place)
        if stop_early and not losses and paths <= set(run.consumers):
            last = model.get_submodule(structure.groups[-1].consumer)
            stack.enter_context(last.register_forward_pre_hook(_stop))
        for batch in batches.read(labelled=LABELS in losses, one_by_one=alone, own_targets=True):
            run.batch = batch
            run.backward(forward(batch))
            for finish in run.after_batch:
                finish()
            tokens, sequences = tokens + batch.count_real(), sequences + batch.rows
    run.check({request.key(g): g.name for g in reversed(structure.groups) for request in wanted})
    found = {request: values for collector in collectors for request, values in collector.results().items()}
    statistics = Statistics(tokens=int(tokens), sequences=sequences, found=found)
    missed = statistics.missing(structure.groups, wanted)
    if missed is not None:
        raise DataError(
            missed, "no calibration batch ran through it.", "Give the inputs that reach it, or protect it."
        )
    return statistics


def _collectors(wanted: Sequence[Statistic[Any]], run: CalibrationPass) -> list[Collector[Any]]:
    """Return one collector for each class of request."""
    by_class: dict[type[Statistic[Any]], list[Statistic[Any]]] = {}
    for request in wanted:
        by_class.setdefault(type(request), []).append(request)
    return [kind.collector(requests, run) for kind, requests in by_class.items()]


def _stop(module: nn.Module, args: tuple[Any, ...]) -> None:
    raise StopForward


def _check_collectable(groups: Sequence[Group], requests: Sequence[Statistic[Any]]) -> None:
    """Raise `UnsupportedModelError` where a statistic does not exist for a group."""
    for group in groups:
        reason = unsupported_reason(group, requests)
        if reason is not None:
            raise UnsupportedModelError(group.name, f"{reason}.", "Leave it out, or ask for mask gradients.")
