"""The loss of learning embeddings: by hand, and the same however a step is split into batches."""

import pytest
import torch
from torch import Tensor

from sparse_trainer.tasks.embeddings.loss import EMBEDDINGS, EmbeddingLoss
from sparse_trainer.tasks.embeddings.pooling import Pooling


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
