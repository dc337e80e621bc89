"""What is refused of one-shot pruning before any work: models, units and budgets that cannot be meant."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from patchers.modeling_pruned import base_of
from patchers.patching.merging import has_adapters
from patchers.patching.patch import is_patched
from patchers.units import CHANNELS, HEADS, LAYERS, WIDTH_KINDS, Structure
from sparse_trainer.budget.latency.calls import check_timed
from sparse_trainer.criteria.calibration.base import OwnDensity
from sparse_trainer.criteria.calibration.mixture import name_of
from sparse_trainer.criteria.calibration.scorable import check_scorable
from sparse_trainer.criteria.weights import check_weights
from sparse_trainer.cut.decide import found_in
from sparse_trainer.cut.record import plan_of
from sparse_trainer.errors import ArgumentError, UnsupportedModelError
from sparse_trainer.one_shot.elements.mask import check_maskable
from sparse_trainer.one_shot.options import PruneOptions
from sparse_trainer.one_shot.progress import Progress
from sparse_trainer.one_shot.protect import prunable
from sparse_trainer.one_shot.repairs.runs import check_followed, last_linears
from sparse_trainer.one_shot.round import begin
from sparse_trainer.one_shot.timed import TimedPruning
from sparse_trainer.statistics.requests import unsupported_reason

logger = logging.getLogger(__name__)


def check_prunable(options: PruneOptions, model: Any) -> tuple[Structure, Structure]:
    """Return all that is found in a model, and the part that may be pruned; nothing is scored yet.

    Raises:
        SparseTrainerError: The model, or a group of units in it, cannot be pruned in this way.
    """
    _check_model(model)
    return _units_of(options, model)


def check_shape(options: PruneOptions, shape: PreTrainedModel, device: torch.device) -> None:
    """Refuse what the sizes of a model tell, before its weights and any text are read.

    Times that have to be measured are not known yet: a speed-up that cannot be reached with them is refused later.

    Args:
        shape: The model on the meta device.
        device: Where it will lie.

    Raises:
        SparseTrainerError: The model, or a group of units in it, cannot be pruned in this way.
        BudgetError: The budget cannot be met.
    """
    found, _ = _units_of(options, shape)
    if options.elements is not None:
        return
    timed = None
    if options.time is not None:
        check_timed(shape, options.time)
        timed = TimedPruning.without_measuring(shape, found, options.time, device)
        if timed is None:
            return
    begin(shape, found, options, Progress(kept={}), 1.0, timed)


def layers_left(prunings: Sequence[PruneOptions], shape: PreTrainedModel) -> int | None:
    """Return how many layers prunings leave of a model without numbers, None where only scores can tell.

    Only where the model has one list of layers, and one pruning at most takes some, by their number.
    """
    found = found_in(shape)
    taking = [o for o in prunings if o.elements is None and LAYERS in o.budget.kinds]
    if len(found.stacks) != 1 or len(taking) > 1:
        return None
    size = found.stacks[0].size
    for options in taking:
        own = isinstance(options.criteria[-1], OwnDensity)
        if own or options.time is not None or not options.budget.is_per_kind:
            return None
        begun = begin(shape, found, options, Progress(kept={}), 1.0, None)
        assert begun is not None
        alike = {g.name: torch.zeros(g.num_units) for g in begun.structure.groups}
        keep = begun.selector.select(alike).keep
        size -= sum(int((~keep[g.name]).sum()) for g in begun.structure.of((LAYERS,)))
    return size


def _units_of(options: PruneOptions, model: Any) -> tuple[Structure, Structure]:
    """Return all that is found in a model, and the part that may be pruned; a model without numbers will do."""
    if options.pooling is not None and base_of(model) is not model:
        raise ArgumentError(
            "pooling", f"{type(model).__name__} has a head, whose output is compared.", "Drop it."
        )
    found = found_in(model)
    if options.elements is not None:
        structure = prunable(model, found, (HEADS, CHANNELS), options.protect, options.include)
        check_maskable(model, structure, options.elements.ask.pattern)
        return found, structure
    structure = prunable(model, found, options.budget.kinds, options.protect, options.include)
    _check_structure(structure, options)
    _check_runs(model, found, options)
    if options.refit_behind:
        check_followed(found, structure.of(WIDTH_KINDS))
    return found, structure


def _check_model(model: Any) -> None:
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            type(model).__name__,
            "is no transformers model.",
            "Unwrap it first: merge_and_unload() of a peft model.",
        )
    if has_adapters(model):
        raise UnsupportedModelError(
            type(model).__name__,
            "has adapters inside, which a cut would not fit.",
            "Pass patchers.patching.merging.merge_adapters(model), which merges them into the weights.",
        )
    check_weights(model)
    if is_patched(model):
        raise UnsupportedModelError(
            type(model).__name__,
            "is patched for fine-pruning.",
            "Call optimize_model(model) or unpatch(model) first.",
        )
    if plan_of(model) is not None:
        logger.info("%s was pruned before: the plans compose.", type(model).__name__)


def _check_structure(structure: Structure, options: PruneOptions) -> None:
    """Refuse, before any work, units that the criteria cannot score or the repair cannot refit."""
    for asked, criterion in zip(options.asked.values(), options.criteria, strict=True):
        scored = structure.groups if options.search is None else structure.of(WIDTH_KINDS)
        check_scorable(scored, criterion, name_of(asked))
    if options.repair is None:
        return
    for group in structure.of(WIDTH_KINDS):
        reason = unsupported_reason(group, [options.repair.request])
        if reason is not None:
            raise UnsupportedModelError(
                group.name,
                f"{options.reconstruct!r} cannot refit what reads it: {reason}.",
                "Set no reconstruct.",
            )


def _check_runs(model: Any, found: Structure, options: PruneOptions) -> None:
    """Refuse a repair of removed layers where nothing can take over what they did."""
    if options.repairs_runs and LAYERS in options.budget.kinds and not last_linears(found):
        raise UnsupportedModelError(
            type(model).__name__,
            "its layers end in no linear of their own that could take over what removed layers did.",
            "Set no reconstruct.",
        )
