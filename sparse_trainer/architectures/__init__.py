"""Check a model: that what is discovered in it can be cut, saved and loaded again without changing what it says."""

from sparse_trainer.architectures.case import Report
from sparse_trainer.architectures.check import check_model, check_reload
from sparse_trainer.architectures.perturb import perturb

__all__ = ["Report", "check_model", "check_reload", "perturb"]
