"""Run a recipe: its stages, what it measures and what it leaves behind."""

from sparse_trainer.run.outcome import RunResult
from sparse_trainer.run.recipe import run

__all__ = ["RunResult", "run"]
