"""Checks that a model of any type is pruned rightly: tiny models, inputs for them, and verdicts."""

from sparse_trainer.conformance.case import Report
from sparse_trainer.conformance.check import check_model, check_reload
from sparse_trainer.conformance.tiny import perturb, tiny_model

__all__ = ["Report", "check_model", "check_reload", "perturb", "tiny_model"]
