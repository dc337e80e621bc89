"""What cannot be meant by the options of fine-pruning: by themselves, and together with a model."""

from typing import Final

from torch import nn

from patchers.discovery.discover import discover
from patchers.discovery.findings import starred
from patchers.patching.merging import has_adapters
from patchers.units import HIDDEN, KINDS, Structure
from sparse_trainer.budget.options import Budget
from sparse_trainer.budget.stages import Stages
from sparse_trainer.criteria.calibration.scorable import check_scorable
from sparse_trainer.criteria.training.base import OwnSchedule, Penalizes, ReadsGradients
from sparse_trainer.criteria.training.l0 import L0
from sparse_trainer.criteria.training.one_shot import OneShot
from sparse_trainer.criteria.training.registry import scorings_for
from sparse_trainer.errors import ArgumentError, UnsupportedModelError, one_of
from sparse_trainer.fields import check_not_negative, check_positive, check_share
from sparse_trainer.training.mask_options import MaskOptions
from sparse_trainer.training.options import BlendingOptions, DistillationOptions, GateOptions

_SAYS_NOTHING: Final = ("excluded, or of a kind", "outside the blocks", "not in the table")
"""How the reasons begin that `discover` gives for what is no unit of the kind in question."""


def check_distillation_options(options: DistillationOptions) -> None:
    """Raise `ArgumentError` for numbers outside their range."""
    weights = {
        "distil_alpha_ce": options.alpha_task,
        "distil_alpha_teacher": options.alpha_logits,
        "distil_alpha_hidden": options.alpha_hidden,
    }
    check_positive("distil_temperature", options.temperature)
    for name, weight in weights.items():
        check_not_negative(name, weight)
    if not any(weights.values()):
        raise ArgumentError(", ".join(weights), "all are 0: there is no loss.", "Raise one of them.")
    one_of("distil_layer_map", options.layer_map, ("fixed", "learned"))


def check_schedule(warmup: float, cooldown: float) -> None:
    """Raise `ArgumentError` for stretches of a training that leave no time to prune."""
    for name, value in (("pruning_warmup_ratio", warmup), ("cooldown_ratio", cooldown)):
        check_share(name, value, "[0, 1)", "Give a fraction of training.")
    if warmup + cooldown >= 1:
        raise ArgumentError(
            "pruning_warmup_ratio + cooldown_ratio",
            f"{warmup} + {cooldown} leaves no time to prune.",
            "Make the sum smaller than 1.",
        )


def check_units(options: GateOptions, blending: BlendingOptions) -> None:
    """Raise `ArgumentError` for kinds that the criterion cannot score, or one density cannot count together."""
    budget, criterion = options.budget, options.criterion
    unscored = next((kind for kind in budget.kinds if kind not in criterion.kinds), None)
    if unscored is not None:
        raise ArgumentError(
            "units",
            f"{options.scoring} does not score {'hidden features' if unscored == HIDDEN else unscored}.",
            f"Take {str(unscored)!r} out of units, or score by {', '.join(scorings_for(budget.kinds))}.",
        )
    # l0 expects the product of nested gates and counts what lies in both once.
    if not (isinstance(criterion, L0) and budget.scope == "global"):
        budget.check_disjoint()
    if HIDDEN in budget.kinds and "no_norm" in blending.layers:
        raise ArgumentError(
            "cheaper",
            "no_norm takes the norms away that hidden features are gated at.",
            "Take 'hidden' out of `units`, or change the norms in a run of its own afterwards.",
        )


def check_staged(options: GateOptions) -> None:
    """Raise `ArgumentError` where a criterion is pulled towards one budget, and several are asked for in turn."""
    if options.stages is not None and isinstance(options.criterion, Penalizes | OwnSchedule):
        raise ArgumentError(
            "scoring",
            f"{options.scoring} is pulled towards one budget by a penalty; several in turn are for scores that are "
            "ranked.",
            "Take movement, taylor or magnitude; or train once for each budget.",
        )


def check_one_budget(stages: Stages | None) -> None:
    """Raise `ArgumentError` for several budgets beside weight masks."""
    if stages is not None:
        raise ArgumentError(
            "speedups" if stages.speedups else "densities",
            "budgets in turn are for gates: weight masks cut nothing on the way.",
            "Leave the pruning methods of masks out, or give one `density`.",
        )


def check_on_model(
    model: nn.Module, structure: Structure, budget: Budget, options: GateOptions | MaskOptions
) -> None:
    """Refuse, before any training, what the model does not have.

    Raises:
        UnsupportedModelError: no unit of a kind that was asked for, or one that the criterion cannot score.
    """
    _check_hidden(model, structure, budget)
    if budget.units is not None or budget.is_per_kind:
        _check_present(model, structure, budget)
    if isinstance(options, GateOptions) and isinstance(options.criterion, OneShot):
        check_scorable(structure.groups, options.criterion.criterion, options.scoring)
    if not structure.groups:
        raise UnsupportedModelError(
            type(model).__name__,
            f"no prunable group of kind {', '.join(budget.kinds)} is left.",
            "Exclude less, or name other units.",
        )


def check_gradients(model: nn.Module, structure: Structure, options: GateOptions | MaskOptions) -> None:
    """Raise `UnsupportedModelError` where the criterion reads gradients of parameters that the model does not have."""
    if isinstance(options, GateOptions) and isinstance(options.criterion, ReadsGradients):
        options.criterion.check_model(model, structure)


def _check_hidden(model: nn.Module, structure: Structure, budget: Budget) -> None:
    """Raise `UnsupportedModelError` where hidden features were asked for and cannot go."""
    if HIDDEN in budget.kinds and has_adapters(model):
        raise UnsupportedModelError(
            "units",
            "hidden features cannot go from a model with adapters, which hold them, too.",
            "Take 'hidden' out of `units`; or patch the model first, in Python, and put adapters on it afterwards.",
        )
    if HIDDEN in budget.kinds and not structure.of([HIDDEN]):
        path, reason = next(
            iter(structure.refused_hidden.items()), (str(HIDDEN), "include or exclude leaves them out")
        )
        raise UnsupportedModelError(
            path, f"hidden features cannot go: {reason}.", "Take 'hidden' out of `units`."
        )


def _check_present(model: nn.Module, structure: Structure, budget: Budget) -> None:
    where = "density" if budget.units is None else "units"
    missing = [kind for kind in budget.kinds if not structure.of([kind])]
    if not missing:
        return
    named = ", ".join(missing)
    whole = discover(model, missing)
    if (budget.include or budget.exclude) and all(whole.of([kind]) for kind in missing):
        raise UnsupportedModelError(
            where,
            f"`include` or `exclude` leaves no {named} of {type(model).__name__}.",
            f"Exclude less, or take {named} out of `{where}`.",
        )
    reasons = {
        f"{starred(path)}: {reason}"
        for path, reason in whole.untouched.items()
        if not reason.startswith(_SAYS_NOTHING)
    }
    why = f" Left alone: {'; '.join(sorted(reasons)[:3])}." if reasons else ""
    present = ", ".join(kind for kind in KINDS if discover(model).of([kind]))
    raise UnsupportedModelError(
        where,
        f"{type(model).__name__} has no {named} that can be pruned.{why}",
        f"Take {named} out of `{where}`: it has {present}.",
    )
