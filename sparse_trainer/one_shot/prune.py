"""`prune`: from a pretrained model and a calibration set to a smaller model, without training."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from patchers.patching.merging import has_adapters
from patchers.patching.patch import is_patched
from patchers.units import Structure
from sparse_trainer.budget.cost import unit_cost
from sparse_trainer.budget.selection import Selector
from sparse_trainer.criteria.calibration.base import Evidence
from sparse_trainer.criteria.calibration.mixture import (
    MIXED_AFTER,
    CriterionLike,
    Mixture,
    criterion_of,
    name_of,
)
from sparse_trainer.criteria.calibration.scorable import check_scorable
from sparse_trainer.criteria.weights import check_weights
from sparse_trainer.cut.bare import bare
from sparse_trainer.cut.carry_out import carry_out
from sparse_trainer.cut.decide import found_in
from sparse_trainer.errors import ArgumentError, DataError, UnsupportedModelError
from sparse_trainer.one_shot.choose import choose, criteria_requests, score, score_by_block
from sparse_trainer.one_shot.options import DAMPING, Options, Protect, options_of, prunable
from sparse_trainer.one_shot.progress import Progress, kept_in
from sparse_trainer.one_shot.repair import prepare_biases, repair, repair_requests
from sparse_trainer.plan.decision import Decision, Request
from sparse_trainer.plan.document import Plan
from sparse_trainer.plan.record import attach_plan, plan_of
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.moments import Moments
from sparse_trainer.statistics.requests import Statistic, Statistics, unsupported_reason

M = TypeVar("M", bound=PreTrainedModel)
Calibration = Iterable[Mapping[str, Any]]
Watch = Callable[[Decision], None]
logger = logging.getLogger(__name__)


@torch.inference_mode(False)
def prune(
    model: M,
    calibration: Calibration | None = None,
    *,
    criterion: CriterionLike = "wifv",
    target: str = "params",
    density: float | Mapping[str, float] = 0.8,
    scope: str = "global",
    standardize: str | None = None,
    reconstruct: str | None = None,
    reconstruct_bias: bool | None = None,
    allocation: CriterionLike | None = None,
    normalize: str = MIXED_AFTER,
    units: Sequence[str] | None = None,
    protect: Sequence[Protect] = (),
    multiple_of: int | Mapping[str, int] | None = None,
    min_keep: int | Mapping[str, int] = 1,
    max_prune: float = 1.0,
    steps: int = 1,
    damping: float = DAMPING,
    sequential: bool = False,
    by_block: bool = False,
    device: torch.device | str | None = None,
    sequence_length: int = 128,
    statistics: Statistics | None = None,
    watch: Watch | None = None,
    inplace: bool = False,
    check: bool = True,
) -> tuple[M, Plan]:
    """Return a smaller model and the plan of the cut. `density`, `target` and `scope` mean what they do in training.

    Args:
        calibration: Batches (mappings of tensors) or a DataLoader; None for criteria that look at weights only.
            Labels of causal language models are made from the tokens.
        criterion: A name, an instance with options, or names with weights, mixed after `normalize`.
        standardize: Makes scores comparable across layers; default: by criterion.
        reconstruct: Repair of the consumers: `bias`, `scale`, `least_squares`, or None.
        reconstruct_bias: Whether least squares may move biases; None = where there is one.
        allocation: A second criterion: it shares the widths out over the layers, and `criterion` chooses inside them.
        units: Kinds to prune; default: the kinds in `density`, else heads and channels.
        protect: Layers that stay whole and do not count: first, last, 3, 3-5, or patterns of group names.
        multiple_of: Kept channels are multiples of this, or a number per kind; default: 8 in experts, whose kernels
            need it, else 1.
        max_prune: Share of its units that any layer may lose.
        steps: Rounds of scoring and cutting on the way to the budget.
        damping: Of the repair, relative to the mean of the moments' diagonal.
        sequential: Repair layer by layer against inputs from the already pruned layers before.
        by_block: Run block after block, hidden states in between on the CPU: the statistics of one block at a time are
            in memory. For criteria that need no gradients.
        device: Of `by_block`: where blocks are run, one at a time, while the model stays where it is.
        statistics: What `collect` found in this very model, instead of a calibration set: to try many criteria
            on one pass.
        watch: Called with the scores and the kept units of every round, before the cut.
        inplace: Change `model` itself and spare the copy. If this raises, the model is not to be used.
        check: Compare outputs before and after the cut on a small batch.

    Raises:
        ArgumentError: an option cannot be meant.
        BudgetError: the budget cannot be met, or everything is protected.
        DataError: the calibration set is missing, too short or does not fit the model.
        NonFiniteError: NaN or infinite statistics.
    """
    options = options_of(
        criterion=criterion,
        target=target,
        density=density,
        scope=scope,
        standardize=standardize,
        reconstruct=reconstruct,
        reconstruct_bias=reconstruct_bias,
        allocation=allocation,
        normalize=normalize,
        units=units,
        protect=protect,
        multiple_of=multiple_of,
        min_keep=min_keep,
        max_prune=max_prune,
        steps=steps,
        damping=damping,
        sequential=sequential,
        by_block=by_block,
        device=device,
        sequence_length=sequence_length,
    )
    _check_model(model)
    found = found_in(model)
    structure = prunable(model, found, options)
    _check_structure(structure, options)
    batches = _batches(model, calibration, options, statistics)
    _check_collected(structure, options, statistics)
    pruned, cheaper = bare(model, inplace=inplace)
    before = plan_of(model)
    progress = Progress(kept=kept_in(before))
    for step in range(steps):
        done = (step + 1) / steps
        decision = _decide(pruned, found, batches, options, done, progress, statistics, watch)
        if decision is not None:
            found = carry_out(pruned, decision.naming(cheaper), check=check)
    plan = plan_of(pruned)
    assert plan is not None
    changes: dict[str, Any] = {"density_asked": options.budget.density_asked}
    if steps > 1 and before is None:
        changes["density_reached"] = progress.reached()
    plan = dataclasses.replace(plan, **changes)
    attach_plan(pruned, plan)
    return pruned, plan


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


def _check_structure(structure: Structure, options: Options) -> None:
    """Refuse, before any work, units that the criteria cannot score or the repair cannot refit."""
    for asked in (options.criterion, options.allocation):
        if asked is not None:
            check_scorable(structure.groups, criterion_of(asked, options.normalize), name_of(asked))
    for group in structure.groups if options.reconstruct is not None else ():
        reason = unsupported_reason(group, [Moments()])
        if reason is not None:
            raise UnsupportedModelError(
                group.name,
                f"{options.reconstruct!r} cannot refit what reads it: {reason}.",
                "Set no reconstruct.",
            )


def _check_collected(structure: Structure, options: Options, statistics: Statistics | None) -> None:
    """Raise `DataError` where the statistics that were handed over lack something."""
    missing = None if statistics is None else statistics.missing(structure.groups, requests_of(options))
    if missing is not None:
        raise DataError(
            "statistics", f"hold nothing of what {name_of(options.criterion)} needs to know of {missing}.",
            "Collect them for this model and criterion, or pass calibration.",
        )  # fmt: skip


def requests_of(options: Options) -> tuple[Statistic[Any], ...]:
    """Return what the criteria and the repair need to know."""
    return criteria_requests(options) + repair_requests(options)


def _batches(
    model: Any, calibration: Calibration | None, options: Options, statistics: Statistics | None
) -> Batches | None:
    again = options.steps > 1 or options.sequential or options.by_block
    if statistics is not None and (calibration is not None or again):
        raise ArgumentError(
            "statistics",
            "they hold for the model as it is now.",
            "Drop calibration, `steps`, `sequential` and `by_block`, or them.",
        )
    if calibration is not None:
        return Batches(model, calibration)
    if statistics is None and (requests_of(options) or options.sequential):
        name = name_of(options.criterion)
        what = f"{name} with reconstruct={options.reconstruct!r}" if options.reconstruct else name
        raise DataError(
            "calibration", f"{what} needs one.", "Pass batches of token ids; magnitude and random need none."
        )
    return None


def _decide(
    model: Any,
    found: Structure,
    batches: Batches | None,
    options: Options,
    done: float,
    progress: Progress,
    statistics: Statistics | None,
    watch: Watch | None,
) -> Decision | None:
    """Score, choose, and repair what reads the units that go; None where nothing can go any more.

    Args:
        found: All groups of the model as it is now.
        done: Part of the way to the budget that is behind after this round.
    """
    target, length = options.budget.target, options.budget.sequence_length
    structure = prunable(model, found, options)
    costs = {g.name: unit_cost(model, g, target, length) for g in structure.groups}
    structure = progress.begin(structure, costs)
    if not structure.groups:
        return None
    stepwise = options.at(progress.density(structure, options.budget.density_asked, done))
    budget = progress.capped(stepwise.budget, options.max_prune)
    selector = Selector(structure.groups, costs, budget)
    if statistics is None:
        statistics = Statistics()
        if batches is not None and not options.by_block:
            statistics = collect(model, structure, batches, requests_of(options))
    if options.by_block and criteria_requests(options):
        scores = score_by_block(model, structure, batches, options)
    else:
        scores = score(Evidence(model=model, structure=structure, statistics=statistics), options)
    request = Request(
        method=_method(options),
        target=target,
        scope=options.budget.scope,
        density=stepwise.budget.density_asked,
        sequence_length=length,
    )
    keep = choose(structure, scores, costs, selector, options)
    decision = Decision(structure=found, keep=keep, request=request, scores=scores.ranks)
    if watch is not None:
        watch(decision)
    prepare_biases(model, structure, options)
    repair(model, structure, keep, statistics, batches, options)
    progress.kept.update({name: int(keep_U.sum()) for name, keep_U in keep.items()})
    return decision


def _method(options: Options) -> str:
    """Return what plans and cards call this way of pruning."""
    parts = [name_of(options.criterion)]
    if isinstance(criterion_of(options.criterion), Mixture) and options.normalize != MIXED_AFTER:
        parts.append(f"mixed after {options.normalize}")
    if options.allocation is not None:
        parts.append(f"widths by {name_of(options.allocation)}")
    if options.budget.standardize is not None:
        parts.append(f"standardized by {options.budget.standardize}")
    if options.reconstruct is not None:
        parts.append(f"repaired by {options.reconstruct}{_repair_options(options)}")
    if options.steps > 1:
        parts.append(f"in {options.steps} steps")
    return ", ".join(parts)


def _repair_options(options: Options) -> str:
    """Return what of the repair is not as it is by default."""
    changed = {
        "damping": None if options.damping == DAMPING else options.damping,
        "bias": options.reconstruct_bias,
        "sequential": options.sequential or None,
    }
    named = ", ".join(f"{name}={value}" for name, value in changed.items() if value is not None)
    return f" ({named})" if named else ""
