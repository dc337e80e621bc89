"""Criteria of users: a class in a file of their own, known by a name like ours."""

import dataclasses
from typing import Any, Final, cast

from patchers.units import KINDS
from sparse_trainer.budget.standardize import STANDARDIZERS
from sparse_trainer.criteria.calibration.base import WidthCriterion
from sparse_trainer.criteria.calibration.registry import WIDTH_CRITERIA
from sparse_trainer.criteria.training.base import TrainingCriterion
from sparse_trainer.criteria.training.registry import TRAINING_CRITERIA
from sparse_trainer.errors import ArgumentError, one_of
from sparse_trainer.registration import check_entry

_OF_ONE_SHOT: Final = ("kinds", "standardize", "requests", "scores")
_OF_TRAINING: Final = ("kinds", "default_units", "standardize", "learns", "make_gate", "scores")


def register_criterion(name: str, criterion: type[Any]) -> None:
    """Make a criterion known by a name: to `prune`, to `scoring` of fine-pruning, in mixtures and in recipes.

    One that has `make_gate` scores while a model trains (`criteria.training.base.TrainingCriterion`); any other scores
    once (`criteria.calibration.base.WidthCriterion`), and serves both. Its options are its fields: `mine(x=2)`.

    Args:
        name: As in Python: letters, digits and underscores.
        criterion: A frozen dataclass whose fields all have defaults.

    Raises:
        ArgumentError: the name is taken by another class, or the class lacks something.
    """
    _check_class(name, criterion)
    trains = "make_gate" in dir(criterion)
    wanted, protocol = (_OF_TRAINING, TrainingCriterion) if trains else (_OF_ONE_SHOT, WidthCriterion)
    taken = TRAINING_CRITERIA.get(name) or WIDTH_CRITERIA.get(name)
    check_entry(f"criterion {name}", criterion, dir(criterion), wanted, protocol.__name__, taken)
    made = criterion()
    for kind in (*made.kinds, *(made.default_units if trains else ())):
        one_of(f"criterion {name}: kinds", kind, KINDS)
    one_of(f"criterion {name}: standardize", made.standardize, STANDARDIZERS)
    if trains:
        TRAINING_CRITERIA[name] = cast(type[TrainingCriterion], criterion)
    else:
        WIDTH_CRITERIA[name] = cast(type[WidthCriterion], criterion)


def _check_class(name: str, criterion: type[Any]) -> None:
    """Raise `ArgumentError` for what no text can name, or no options can make."""
    where = f"criterion {name}"
    if not name.isidentifier() or not name.isascii():
        raise ArgumentError(where, "is no name.", "Use letters, digits and underscores, e.g. my_criterion.")
    if not isinstance(criterion, type) or not dataclasses.is_dataclass(criterion):
        raise ArgumentError(
            where, f"{criterion!r} is no dataclass.", "Decorate it: @dataclass(frozen=True, kw_only=True)."
        )
    made: Any = criterion
    if not made.__dataclass_params__.frozen:
        raise ArgumentError(where, f"{criterion.__name__} can be changed.", "Make the dataclass frozen.")
    for field in dataclasses.fields(criterion):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ArgumentError(
                where, f"{criterion.__name__}.{field.name} has no default.", "Give every option a default."
            )
