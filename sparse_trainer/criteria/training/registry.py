"""Criteria of fine-pruning: a new one is one file here, one line below, one row in the law tests."""

from sparse_trainer.criteria.calibration.registry import WIDTH_CRITERIA
from sparse_trainer.criteria.training.base import Criterion, Gates
from sparse_trainer.criteria.training.calibrated import Calibrated, calibrated
from sparse_trainer.criteria.training.l0 import L0
from sparse_trainer.criteria.training.layer_gate import LayerGate
from sparse_trainer.criteria.training.magnitude import Magnitude
from sparse_trainer.criteria.training.movement import Movement
from sparse_trainer.criteria.training.random import Random
from sparse_trainer.criteria.training.taylor import Taylor

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
