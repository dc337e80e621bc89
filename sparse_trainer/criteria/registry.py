"""Criteria of fine-pruning: a new one is one file here, one line below, one row in the law tests."""

from sparse_trainer.criteria.base import Criterion, Gates
from sparse_trainer.criteria.calibrated import Calibrated, calibrated
from sparse_trainer.criteria.l0 import L0
from sparse_trainer.criteria.layer_gate import LayerGate
from sparse_trainer.criteria.magnitude import Magnitude
from sparse_trainer.criteria.movement import Movement
from sparse_trainer.criteria.random import Random
from sparse_trainer.criteria.taylor import Taylor
from sparse_trainer.width_criteria.registry import WIDTH_CRITERIA

CRITERIA: dict[str, type[Criterion]] = {
    "movement": Movement,
    "layer_gate": LayerGate,
    "l0": L0,
    "taylor": Taylor,
    "magnitude": Magnitude,
    "random": Random,
}
# Those of one-shot pruning that are not among them: scored once, before training.
CRITERIA |= {name: calibrated(width) for name, width in WIDTH_CRITERIA.items() if name not in CRITERIA}


def is_calibrated(name: str) -> bool:
    """Tell whether a criterion is one of one-shot pruning, which scores once, before training."""
    return issubclass(CRITERIA[name], Calibrated)


__all__ = ["CRITERIA", "Criterion", "Gates", "is_calibrated"]
