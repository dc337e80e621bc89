"""`prune`: from a pretrained model and a calibration set to a smaller model, without training."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from patchers.units import Structure
from sparse_trainer.budget.options import keeps_all
from sparse_trainer.budget.time_target import EAGER, PREFILL
from sparse_trainer.criteria.calibration.mixture import MIXED_AFTER, CriterionLike, name_of
from sparse_trainer.cut.bare import bare
from sparse_trainer.cut.carry_out import carry_out
from sparse_trainer.cut.decision import Decision, Request
from sparse_trainer.cut.record import attach_plan, plan_of
from sparse_trainer.errors import ArgumentError, DataError
from sparse_trainer.inputs.evaluating import fresh_casts
from sparse_trainer.one_shot.checks import check_prunable
from sparse_trainer.one_shot.elements.mask import mask_weights, note_zeros
from sparse_trainer.one_shot.elements.options import ElementOptions
from sparse_trainer.one_shot.options import PruneOptions
from sparse_trainer.one_shot.progress import Progress, kept_in
from sparse_trainer.one_shot.protect import Protect
from sparse_trainer.one_shot.repairs.base import DAMPING
from sparse_trainer.one_shot.round import Source, Watch, run_round
from sparse_trainer.one_shot.search.options import LEVELS, SEARCH_TOKENS
from sparse_trainer.one_shot.timed import TimedPruning
from sparse_trainer.plan.document import Plan
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.requests import Statistics

M = TypeVar("M", bound=PreTrainedModel)
T = TypeVar("T")
Calibration = Iterable[Mapping[str, Any]]
logger = logging.getLogger(__name__)


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
    search: str | None = None,
    levels: int = LEVELS,
    search_tokens: int = SEARCH_TOKENS,
    time_limit: float | None = None,
    search_bfloat16: bool = False,
    units: str | Sequence[str] | None = None,
    protect: str | Sequence[Protect] = (),
    include: str | Sequence[str] = (),
    multiple_of: int | str | Mapping[str, int] | None = None,
    min_keep: int | Mapping[str, int] = 1,
    max_prune: float = 1.0,
    steps: int = 1,
    damping: float = DAMPING,
    sequential: bool = False,
    refit_behind: bool = False,
    by_block: bool = False,
    device: torch.device | str | None = None,
    pooling: str | None = None,
    sequence_length: int = 128,
    pattern: str | None = None,
    compare: str | None = None,
    speedup: float | None = None,
    milliseconds: float | None = None,
    latency_batch: int = 1,
    latency_phase: str = PREFILL,
    latency_runtime: str = EAGER,
    latency_table: str | None = None,
    statistics: Statistics | None = None,
    watch: Watch | None = None,
    inplace: bool = False,
    check: bool = True,
) -> tuple[M, Plan]:
    """Return a smaller model and the plan of the cut. All options that are not named below are those of `PruneOptions`.

    With `units=["weights"]` the model stays as large as it is, with zeros among its weights.

    Args:
        calibration: Batches (mappings of tensors) or a DataLoader; None for criteria that look at weights only.
            Labels of causal language models are made from the tokens.
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
    options = PruneOptions(
        criterion=criterion,
        target=target,
        density=density,
        scope=scope,
        standardize=standardize,
        reconstruct=reconstruct,
        reconstruct_bias=reconstruct_bias,
        allocation=allocation,
        normalize=normalize,
        search=search,
        levels=levels,
        search_tokens=search_tokens,
        time_limit=time_limit,
        search_bfloat16=search_bfloat16,
        units=None if units is None else _listed(units),
        protect=_listed(protect),
        include=_listed(include),
        multiple_of=multiple_of,
        min_keep=min_keep,
        max_prune=max_prune,
        steps=steps,
        damping=damping,
        sequential=sequential,
        refit_behind=refit_behind,
        by_block=by_block,
        pooling=pooling,
        sequence_length=sequence_length,
        pattern=pattern,
        compare=compare,
        speedup=speedup,
        milliseconds=milliseconds,
        latency_batch=latency_batch,
        latency_phase=latency_phase,
        latency_runtime=latency_runtime,
        latency_table=latency_table,
    )
    return prune_by(
        options, model, calibration,
        device=device, statistics=statistics, watch=watch, inplace=inplace, check=check,
    )  # fmt: skip


def _listed(asked: str | Sequence[T]) -> tuple[str | T, ...]:
    """Return one name, or several, as several."""
    return (asked,) if isinstance(asked, str) else tuple(asked)


@torch.inference_mode(False)
@fresh_casts()
def prune_by(
    options: PruneOptions,
    model: M,
    calibration: Calibration | None = None,
    *,
    device: torch.device | str | None = None,
    statistics: Statistics | None = None,
    watch: Watch | None = None,
    inplace: bool = False,
    check: bool = True,
) -> tuple[M, Plan]:
    """Do what `prune` does, for options that are made and checked already."""
    if device is not None and not options.by_block:
        raise ArgumentError(
            "device", "only blocks are moved there.", "Set `by_block=True`, or move the model."
        )
    if keeps_all(options.density):
        logger.warning("density %s keeps all: nothing is pruned.", options.density)
    found, structure = check_prunable(options, model)
    if options.elements is not None:
        return _masked(
            options,
            options.elements,
            model,
            found,
            structure,
            calibration,
            device,
            statistics,
            inplace=inplace,
        )
    batches = _batches(model, calibration, options, statistics)
    _check_collected(structure, options, statistics)
    pruned, cheaper = bare(model, inplace=inplace)
    before = plan_of(model)
    progress = Progress(kept=kept_in(before))
    source = Source(batches=batches, statistics=statistics, device=device)
    timed = None if options.time is None else TimedPruning.of(pruned, found, options.time)
    for step in range(options.steps):
        done = (step + 1) / options.steps
        decision = run_round(pruned, found, source, options, progress, done, watch, timed)
        if decision is not None:
            found = carry_out(pruned, decision.naming(cheaper), check=check)
    plan = plan_of(pruned)
    assert plan is not None
    searches = (*plan.searches, *progress.searches)
    plan = replace(plan, density_asked=options.budget.density_asked, searches=searches)
    if timed is not None:
        plan = replace(plan, density_asked=None, speed=timed.record())
    if options.steps > 1 and before is None:
        plan = replace(plan, density_reached=progress.reached())
    attach_plan(pruned, plan)
    return pruned, plan


def _masked(
    options: PruneOptions,
    asked: ElementOptions,
    model: M,
    found: Structure,
    structure: Structure,
    calibration: Calibration | None,
    device: torch.device | str | None,
    statistics: Statistics | None,
    *,
    inplace: bool,
) -> tuple[M, Plan]:
    """Return a model of the same size with zeros among its weights, and the plan that counts them."""
    if statistics is not None:
        raise ArgumentError("statistics", "hold nothing of single weights.", "Pass calibration.")
    batches = _batches(model, calibration, options, None)
    masked, cheaper = bare(model, inplace=inplace)
    mask_weights(masked, structure, batches, asked, device)
    request = Request(method=options.method, scope=asked.scope, density=asked.ask.density)
    carry_out(masked, Decision(structure=found, keep={}, request=request).naming(cheaper), check=False)
    return masked, note_zeros(masked, structure, request)


def _check_collected(structure: Structure, options: PruneOptions, statistics: Statistics | None) -> None:
    """Raise `DataError` where the statistics that were handed over lack something."""
    missing = None if statistics is None else statistics.missing(structure.groups, options.requests)
    if missing is not None:
        raise DataError(
            "statistics", f"hold nothing of what {name_of(options.criterion)} needs to know of {missing}.",
            "Collect them for this model and criterion, or pass calibration.",
        )  # fmt: skip


def _batches(
    model: Any, calibration: Calibration | None, options: PruneOptions, statistics: Statistics | None
) -> Batches | None:
    again = (
        options.steps > 1
        or options.sequential
        or options.by_block
        or options.repairs_runs
        or options.searches
    )
    needless = calibration is not None and options.search is None
    if statistics is not None and (needless or again):
        raise ArgumentError(
            "statistics",
            "they hold for the model as it is now.",
            "Drop them; or calibration, `steps`, `sequential`, `by_block`, `refit_behind`, the search for layers and "
            "their repair.",
        )
    if calibration is not None:
        return Batches(model, calibration, options.pooled)
    if (statistics is None and options.reads_data) or options.search is not None:
        name = options.name
        what = f"{name} with reconstruct={options.reconstruct!r}" if options.reconstruct else name
        raise DataError(
            "calibration", f"{what} needs one.", "Pass batches of token ids; magnitude and random need none."
        )
    return None
