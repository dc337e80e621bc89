"""Checks that a model of any type is pruned rightly: tiny models, inputs for them, and verdicts."""

from sparse_trainer.architectures.case import Report
from sparse_trainer.architectures.check import check_model, check_reload
from sparse_trainer.architectures.tiny import perturb, tiny_model

__all__ = ["Report", "check_model", "check_reload", "perturb", "tiny_model"]
