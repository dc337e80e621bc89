"""Structured fine-pruning for Hugging Face Transformers: smaller models that are really faster."""

from patchers import discover as discover
from sparse_trainer.criteria.register import register_criterion as register_criterion
from sparse_trainer.cut.optimize import optimize_model as optimize_model
from sparse_trainer.cut.share import share_layers as share_layers
from sparse_trainer.cut.vocabulary.trim import trim_vocabulary as trim_vocabulary
from sparse_trainer.errors import SparseTrainerError as SparseTrainerError
from sparse_trainer.folders.exports import register_export as register_export
from sparse_trainer.folders.load import load_pruned as load_pruned
from sparse_trainer.folders.save import save_pruned as save_pruned
from sparse_trainer.one_shot.kv_merge import merge_kv_heads as merge_kv_heads
from sparse_trainer.one_shot.prune import prune as prune
from sparse_trainer.tasks.registry import register_task as register_task
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments as SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator as ModelPatchingCoordinator
from sparse_trainer.training.trainer import PruningTrainer as PruningTrainer
from sparse_trainer.training.trainer import SparseTrainer as SparseTrainer

__version__: str
