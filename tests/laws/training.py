"""A small training that laws are checked on."""

import dataclasses
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PreTrainedModel, TrainingArguments

from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.trainer import PruningTrainer
from tests.compact_models import tiny

CHECKPOINTING = next(
    field.name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    for field in dataclasses.fields(TrainingArguments)
    if field.name == name
)
"""What this release of transformers calls the argument that computes activations again in the backward pass."""

METHODS: dict[str, dict[str, Any]] = {
    "movement": {},
    "movement-distilled": {
        "scoring": "movement",
        "distil_teacher_name_or_path": "self",
        "distil_alpha_hidden": 0.5,
    },
    "taylor": {},
    "taylor-2nd": {"scoring": "taylor", "taylor_order": 2},
    "magnitude": {},
    "random": {},
    "wanda": {"calibration_samples": 8},
    "fisher": {"calibration_samples": 8},
    "cheaper": {"scoring": "movement", "cheaper": ["relu", "no_norm"], "cheaper_until": 0.6},
    "layer_gate": {"density": 0.67, "score_learning_rate": 0.1},
    "l0": {"l0_learning_rate": 0.3},
    "l0-nested": {
        "scoring": "l0",
        "units": ["heads", "channels", "attention", "ffn", "layers"],
        "l0_learning_rate": 0.3,
        "distil_teacher_name_or_path": "self",
        "distil_alpha_hidden": 0.5,
        "distil_layer_map": "learned",
    },
    "l0-hidden": {
        "scoring": "l0",
        "units": ["heads", "channels", "attention", "ffn", "layers", "hidden"],
        "l0_learning_rate": 0.3,
        "density": 0.3,
        "distil_teacher_name_or_path": "self",
        "distil_alpha_hidden": 0.5,
        "distil_layer_map": "learned",
    },
}


def sparse_args(method: str, **options: Any) -> SparseTrainingArguments:
    """Return the arguments of a method in the law tests."""
    return SparseTrainingArguments(**{"scoring": method, **METHODS[method], **options})


def rows(count: int = 48, vocabulary: int = 99) -> datasets.Dataset:
    """Return learnable rows of one length: the label is the parity of the first token."""
    generator = torch.Generator().manual_seed(11)
    tokens = torch.randint(5, vocabulary, (count, 10), generator=generator)
    return datasets.Dataset.from_list(
        [{"input_ids": row.tolist(), "labels": int(row[0]) % 2} for row in tokens]
    )


def quiet_model(family: str = "bert") -> PreTrainedModel:
    """Return a tiny model without dropout, so that batches may be split."""
    model = tiny(family).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def trainer(
    folder: Path, args: SparseTrainingArguments, model: PreTrainedModel | None = None, **options: Any
) -> PruningTrainer:
    """Return a trainer of 12 optimizer steps of 8 rows."""
    settings = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "report_to": [],
        "logging_steps": 3,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
        "average_tokens_across_devices": True,
        **options,
    }
    return PruningTrainer(
        model=quiet_model() if model is None else model,
        args=TrainingArguments(str(folder), **settings),
        sparse_args=args,
        train_dataset=rows(),
        eval_dataset=rows(16),
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers, gates among them."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
