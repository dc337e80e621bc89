"""What cannot be meant by the options of fine-pruning: by themselves, and together with a model."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from torch import nn

from patchers.discovery.discover import discover
from patchers.discovery.findings import starred
from patchers.units import HIDDEN, KINDS, Kind, Structure
from sparse_trainer.criteria.calibration.scorable import check_scorable
from sparse_trainer.criteria.training.registry import CRITERIA, is_calibrated
from sparse_trainer.errors import ArgumentError, UnsupportedModelError

_POSITIVE: Final = (
    "score_learning_rate",
    "update_every",
    "calibration_samples",
    "distil_temperature",
    "gate_epsilon",
    "gate_epsilon_final",
)
_WEIGHTS: Final = ("distil_alpha_ce", "distil_alpha_teacher", "distil_alpha_hidden")
_SAYS_NOTHING: Final = ("excluded, or of a kind", "outside the blocks", "not in the table")
"""How the reasons begin that `discover` gives for what is no unit of the kind in question."""


def check_ranges(args: Any) -> None:
    """Raise `ArgumentError` for numbers outside their range."""
    for name in _POSITIVE:
        if not getattr(args, name) > 0:
            raise ArgumentError(name, f"{getattr(args, name)!r} is not positive.", "Give a positive number.")
    for name in ("gate_penalty", *_WEIGHTS):
        if not getattr(args, name) >= 0:
            raise ArgumentError(name, f"{getattr(args, name)!r} is negative.", "Give 0 or more.")
    if not any(getattr(args, name) for name in _WEIGHTS):
        raise ArgumentError(", ".join(_WEIGHTS), "all are 0: there is no loss.", "Raise one of them.")
    if not 0 <= args.taylor_decay < 1:
        raise ArgumentError("taylor_decay", f"{args.taylor_decay!r} is not in [0, 1).", "Give e.g. 0.99.")
    for name in ("pruning_warmup_ratio", "cooldown_ratio"):
        if not 0 <= getattr(args, name) < 1:
            raise ArgumentError(
                name, f"{getattr(args, name)!r} is not in [0, 1).", "Give a fraction of training."
            )
    if args.pruning_warmup_ratio + args.cooldown_ratio >= 1:
        raise ArgumentError(
            "pruning_warmup_ratio + cooldown_ratio",
            f"{args.pruning_warmup_ratio} + {args.cooldown_ratio} leaves no time to prune.",
            "Make the sum smaller than 1.",
        )


def check_units(args: Any) -> None:
    """Raise `ArgumentError` for kinds that the criterion cannot prune, or one density cannot count together."""
    budget = args.budget
    if not is_calibrated(args.scoring) or HIDDEN in budget.kinds:
        check_scored(args)
    # l0 expects the product of nested gates and counts what lies in both once.
    if not (args.scoring == "l0" and args.scope == "global"):
        budget.check_disjoint()


def check_scored(args: Any) -> None:
    """Raise `ArgumentError` for kinds of unit that the criterion cannot score, whatever the model.

    Of a one-shot criterion that depends on the statistics it needs: it is asked when a coordinator is made.
    """
    kinds = args.kinds
    able = [name for name, criterion in CRITERIA.items() if set(kinds) <= set(criterion.scored)]
    hidden = HIDDEN in kinds and args.uses_masks
    unscored = HIDDEN if hidden else next((k for k in kinds if k not in CRITERIA[args.scoring].scored), None)
    if unscored is not None and (hidden or not args.uses_masks):
        raise ArgumentError(
            "units",
            f"{args.method_name} does not score {'hidden features' if unscored == HIDDEN else unscored}.",
            f"Take {unscored!r} out of units, or score by {', '.join(able)}.",
        )
    if HIDDEN in kinds and "no_norm" in args.cheaper_layers:
        raise ArgumentError(
            "cheaper",
            "no_norm takes the norms away that hidden features are gated at.",
            "Take 'hidden' out of `units`, or change the norms in a run of its own afterwards.",
        )


def check_on_model(model: nn.Module, structure: Structure, args: Any) -> None:
    """Refuse, before any training, what the model does not have.

    Raises:
        UnsupportedModelError: no unit of a kind that was asked for, or one that the criterion cannot score.
    """
    if args.units is not None or isinstance(args.density, Mapping):
        where = "units" if args.units is not None else "density"
        _check_present(model, structure, args.kinds, where, bool(args.include or args.exclude))
    if not args.uses_masks:
        check_scorable(structure.groups, CRITERIA[args.scoring](args).requests(), args.scoring)


def _check_present(
    model: nn.Module, structure: Structure, kinds: Collection[Kind], where: str, narrowed: bool
) -> None:
    missing = [kind for kind in kinds if not structure.of([kind])]
    if not missing:
        return
    named = ", ".join(missing)
    whole = discover(model, missing)
    if narrowed and all(whole.of([kind]) for kind in missing):
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
