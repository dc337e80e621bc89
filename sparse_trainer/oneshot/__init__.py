"""One-shot pruning: score units on a calibration set, choose, repair, cut. No training."""

from sparse_trainer.oneshot.criteria import WIDTH_CRITERIA, WidthCriterion
from sparse_trainer.oneshot.prune import prune

__all__ = ["WIDTH_CRITERIA", "WidthCriterion", "prune"]
