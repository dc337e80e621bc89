"""The loss of learning embeddings: by hand, and the same however a step is split into batches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import BertConfig, BertModel, TrainingArguments, default_data_collator

from sparse_trainer.inputs.pooling import Pooling
from sparse_trainer.tasks.embeddings.loss import EMBEDDINGS, EmbeddingLoss, EmbeddingTrainer
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.trainer import pruning_trainer


def said(loss: EmbeddingLoss, embeddings_BD: Tensor, targets_BD: Tensor, items: int | None = None) -> Tensor:
    return loss({EMBEDDINGS: embeddings_BD}, targets_BD, num_items_in_batch=items)


def test_distance_is_relative_to_the_length_of_the_target() -> None:
    loss = EmbeddingLoss(pooling=Pooling())
    embeddings, targets = torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[4.0, 0.0], [2.0, 0.0]])
    # |1|² / 4² and (2² + 2²) / 2²
    assert said(loss, embeddings, targets).item() == pytest.approx((1 / 16 + 2) / 2)
    assert said(loss, 10 * embeddings, 10 * targets).item() == pytest.approx((1 / 16 + 2) / 2)


def test_similarity_compares_cosines_of_all_pairs_and_needs_two_texts() -> None:
    loss = EmbeddingLoss(pooling=Pooling(), distance=0, similarity=2)
    embeddings, targets = torch.tensor([[1.0, 0.0], [0.0, 5.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert said(loss, embeddings, targets).item() == pytest.approx(2.0)
    assert said(loss, embeddings[:1], targets[:1]).item() == 0
    # Turning all embeddings alike changes no cosine.
    turned = targets @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    assert said(loss, turned, targets).item() == pytest.approx(0, abs=1e-6)


def test_the_batches_of_a_step_add_up_to_the_whole() -> None:
    torch.manual_seed(0)
    embeddings, targets = torch.randn(6, 4), torch.randn(6, 4)
    loss = EmbeddingLoss(pooling=Pooling())
    parts = [said(loss, embeddings[rows], targets[rows], items=24) for rows in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(torch.stack(parts).sum(), said(loss, embeddings, targets))
    torch.testing.assert_close(said(loss, embeddings, targets, items=24), said(loss, embeddings, targets))


def trained(folder: Path, steps: int, *, prunes: bool) -> dict[str, Tensor]:
    """Return the weights after one optimizer step on eight texts, in so many batches."""
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    rows = [
        {"input_ids": ids.tolist(), "attention_mask": [1] * 4 + [row % 2] * 2, "labels": target.tolist()}
        for row, (ids, target) in enumerate(
            zip(torch.randint(1, 30, (8, 6)), torch.randn(8, 16), strict=True)
        )
    ]
    arguments = TrainingArguments(
        str(folder),
        max_steps=1,
        per_device_train_batch_size=8 // steps,
        gradient_accumulation_steps=steps,
        optim="sgd",
        learning_rate=1.0,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    options: dict[str, Any] = {"sparse_args": SparseTrainingArguments(density=0.5)} if prunes else {}
    trainer: Any = (pruning_trainer(EmbeddingTrainer) if prunes else EmbeddingTrainer)(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        data_collator=default_data_collator,
        compute_loss_func=EmbeddingLoss(pooling=Pooling()),
        **options,
    )
    trainer.train()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("prunes", [False, True])
def test_a_trainer_takes_the_same_step_however_it_accumulates(prunes: bool, tmp_path: Path) -> None:
    whole, parts = (trained(tmp_path, steps, prunes=prunes) for steps in (1, 4))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6, msg=name)
