"""Named data sets and local files, as calibration batches, running text and questions."""

from sparse_trainer.data.corpora.batches import calibration_batches
from sparse_trainer.data.corpora.table import CORPORA

__all__ = ["CORPORA", "calibration_batches"]
