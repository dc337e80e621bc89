"""The criterion that the flat options mean: `scoring`, options in brackets or in fields of their own."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from sparse_trainer.criteria.calibration.expressions import split_options
from sparse_trainer.criteria.training.base import TrainingCriterion
from sparse_trainer.criteria.training.registry import TRAINING_CRITERIA, read_scoring
from sparse_trainer.errors import ArgumentError

_FIELDS: Final[Mapping[str, Mapping[str, str]]] = {
    "l0": {
        "learning_rate": "l0_learning_rate",
        "multiplier_rate": "l0_multiplier_rate",
        "warmup": "l0_warmup",
        "seed": "pruning_seed",
    },
    "layer_gate": {
        "epsilon": "gate_epsilon",
        "epsilon_final": "gate_epsilon_final",
        "penalty": "gate_penalty",
    },
    "taylor": {"order": "taylor_order", "decay": "taylor_decay"},
    "magnitude": {"norm": "magnitude_norm"},
    "random": {"seed": "pruning_seed"},
}
"""Criterion -> option -> the flat field that says it, for those that nn_pruning's users and ours know."""


def criterion_asked(scoring: str, flat: Mapping[str, Any]) -> TrainingCriterion:
    """Return the criterion of fine-pruning.

    Args:
        flat: The flat fields.

    Raises:
        ArgumentError: an unknown name or option, or a value that cannot be meant.
    """
    return read_scoring(scoring, _defaults(flat))


def check_scoring(scoring: str, flat: Mapping[str, Any], touched: Collection[str]) -> None:
    """Raise `ArgumentError` for flat fields that cannot be meant, whatever the criterion; or that say a thing twice.

    Args:
        touched: Fields that are not at their default.
    """
    for name, options in _FIELDS.items():
        try:
            criterion_asked(name, flat)
        except ArgumentError as error:
            field = options[error.where.rpartition(".")[2]]
            raise ArgumentError(field, error.what, error.remedy) from error
    try:
        criterion_asked(scoring, flat)
        name, given = split_options(scoring)
    except ArgumentError as error:
        # Criteria name themselves; the user wrote `scoring`.
        part = error.where.removeprefix("scoring").removeprefix("criterion").strip()
        raise ArgumentError(f"scoring {part}".strip(), error.what, error.remedy) from error
    for option in given:
        double = _FIELDS.get(name, {}).get(option)
        if double in touched:
            raise ArgumentError(f"scoring, {double}", "say the same thing.", "Drop one of the two.")


def method_of(scoring: str, flat: Mapping[str, Any], touched: Collection[str]) -> str:
    """Return what plans and cards call the criterion: its name, and its options that are not the default."""
    name, given = split_options(scoring)
    options = [f"{option}={value}" for option, value in given.items()]
    usual = () if name in TRAINING_CRITERIA else ("calibration_samples",)
    options += [f"{f}={flat[f]}" for f in _FIELDS.get(name, {}).values() or usual if f in touched]
    return f"{name}({', '.join(options)})" if options else name


def _defaults(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: {option: flat[field] for option, field in options.items()} for name, options in _FIELDS.items()
    }
