"""Checks that a model of any type is pruned rightly: tiny models, inputs for them, and verdicts."""
