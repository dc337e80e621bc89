"""Criteria of fine-pruning by name: a new one is one file here, one line below, one row in the law tests."""

from collections.abc import Collection, Mapping
from typing import Any

from patchers.units import Kind
from sparse_trainer.criteria.calibration.base import Searches
from sparse_trainer.criteria.calibration.expressions import read_sum, split_options, with_options
from sparse_trainer.criteria.calibration.mixture import NOT_MIXED, criterion_of, searches
from sparse_trainer.criteria.calibration.registry import WIDTH_CRITERIA
from sparse_trainer.criteria.training.base import TrainingCriterion
from sparse_trainer.criteria.training.l0 import L0
from sparse_trainer.criteria.training.layer_gate import LayerGate
from sparse_trainer.criteria.training.loraprune import LoraPrune
from sparse_trainer.criteria.training.movement import Movement
from sparse_trainer.criteria.training.one_shot import OneShot
from sparse_trainer.criteria.training.running_taylor import RunningTaylor
from sparse_trainer.errors import ArgumentError, one_of

TRAINING_CRITERIA: dict[str, type[TrainingCriterion]] = {
    "movement": Movement,
    "layer_gate": LayerGate,
    "l0": L0,
    "taylor": RunningTaylor,
    "loraprune": LoraPrune,
}


def scorings() -> list[str]:
    """Return the names that fine-pruning can score by: its own criteria, then those of one-shot pruning."""
    one_shot = [name for name, known in WIDTH_CRITERIA.items() if not issubclass(known, Searches)]
    return list(dict.fromkeys((*TRAINING_CRITERIA, *one_shot)))


def scorings_for(kinds: Collection[Kind]) -> list[str]:
    """Return the names of the criteria that score all of these kinds of unit."""
    return [name for name in scorings() if set(kinds) <= set(read_scoring(name).kinds)]


def read_scoring(text: str, defaults: Mapping[str, Mapping[str, Any]] | None = None) -> TrainingCriterion:
    """Return the criterion of fine-pruning that a name means, options in brackets; or a sum of one-shot criteria.

    Args:
        defaults: Options by name of the criterion, for what the text leaves open.

    >>> read_scoring("taylor(order=2)")
    RunningTaylor(order=2, decay=0.99)
    >>> read_scoring("magnitude", {"magnitude": {"norm": 1}})
    OneShot(criterion=Magnitude(norm=1), name='magnitude')

    Raises:
        ArgumentError: an unknown name or option; the nearest known one is given.
    """
    if not isinstance(read_sum(text), str):
        mixed = criterion_of(text)
        if searches(mixed):
            raise ArgumentError("scoring", f"{text}: {NOT_MIXED}", "Leave it out.")
        return OneShot(criterion=mixed, name=text)
    name, given = split_options(text)
    one_of("scoring", name, scorings())
    options = {**(defaults or {}).get(name, {}), **given}
    if name in TRAINING_CRITERIA:
        return with_options(TRAINING_CRITERIA[name], options, f"criterion {name}")
    criterion = with_options(WIDTH_CRITERIA[name], options, f"criterion {name}")
    return OneShot(criterion=criterion, name=text)
