"""What a model does on a calibration set, collected in one streaming pass: exactly what the criteria ask for."""

from sparse_trainer.statistics.blockwise import Blockwise
from sparse_trainer.statistics.calibration import Batches, as_batches
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.requests import (
    Elements,
    MaskGradients,
    MaskGradientSums,
    Moments,
    MomentSums,
    SequenceMeans,
    Statistic,
    Statistics,
    collectable_kinds,
    unsupported_reason,
)

__all__ = [
    "Batches",
    "Blockwise",
    "Elements",
    "MaskGradientSums",
    "MaskGradients",
    "MomentSums",
    "Moments",
    "SequenceMeans",
    "Statistic",
    "Statistics",
    "as_batches",
    "collect",
    "collectable_kinds",
    "unsupported_reason",
]
