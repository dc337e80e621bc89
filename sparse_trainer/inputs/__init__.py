"""Inputs made up for a model of any type, for self-checks and conformance tests."""

from sparse_trainer.inputs.make import inputs_for, outputs_of
from sparse_trainer.inputs.placeholders import special_ids

__all__ = ["inputs_for", "outputs_of", "special_ids"]
