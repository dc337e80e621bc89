"""Structured fine-pruning for Hugging Face Transformers: smaller models that are really faster."""

from patchers import discover
from sparse_trainer.args import SparseTrainingArguments
from sparse_trainer.coordinator import ModelPatchingCoordinator
from sparse_trainer.errors import SparseTrainerError
from sparse_trainer.trainer import PruningTrainer, SparseTrainer

__all__ = [
    "ModelPatchingCoordinator",
    "PruningTrainer",
    "SparseTrainer",
    "SparseTrainerError",
    "SparseTrainingArguments",
    "discover",
]
