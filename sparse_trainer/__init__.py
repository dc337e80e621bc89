"""Structured fine-pruning for Hugging Face Transformers: smaller models that are really faster."""

from patchers import discover
from sparse_trainer.criteria.register import register_criterion
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import SparseTrainerError
from sparse_trainer.folders.exports import register_export
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.tasks.registry import register_task
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.trainer import PruningTrainer, SparseTrainer

__version__ = "0.4.0"

__all__ = [
    "ModelPatchingCoordinator",
    "PruningTrainer",
    "SparseTrainer",
    "SparseTrainerError",
    "SparseTrainingArguments",
    "discover",
    "load_pruned",
    "optimize_model",
    "prune",
    "register_criterion",
    "register_export",
    "register_task",
    "save_pruned",
]
