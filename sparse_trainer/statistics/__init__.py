"""What a model does on a calibration set, collected in one streaming pass: exactly what the criteria ask for."""

from sparse_trainer.statistics.calibration import Batches, as_batches
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.needs import (
    Elements,
    MaskGradients,
    MaskGradientSums,
    Moments,
    MomentSums,
    Need,
    SequenceMeans,
    Statistics,
    kinds_with,
    lacks,
)
from sparse_trainer.statistics.walk import Walk

__all__ = [
    "Batches",
    "Elements",
    "MaskGradientSums",
    "MaskGradients",
    "MomentSums",
    "Moments",
    "Need",
    "SequenceMeans",
    "Statistics",
    "Walk",
    "as_batches",
    "collect",
    "kinds_with",
    "lacks",
]
