"""One-shot pruning: score units on a calibration set, choose, repair, cut. No training."""

from sparse_trainer.oneshot.decision import Decision
from sparse_trainer.oneshot.prune import prune
from sparse_trainer.width_criteria import WIDTH_CRITERIA, WidthCriterion

__all__ = ["WIDTH_CRITERIA", "Decision", "WidthCriterion", "prune"]
