"""Learn the embeddings of another model: the loss, and the Trainer that pools what a model says of tokens."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_trainer.inputs.pooling import Pooling
from sparse_trainer.tasks.in_order import InOrder

# Shape legend: B = texts, D = hidden features.

EMBEDDINGS = "embeddings"
"""Name of the pooled embeddings among the outputs."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingLoss:
    """Distance from the embeddings of another model: of each text, and of the similarities inside a batch."""

    pooling: Pooling
    distance: float = 1.0
    """Weight of the squared distance of each text, relative to the squared length of its target."""
    similarity: float = 0.0
    """Weight of the squared difference of the cosines of each two texts in a batch, averaged over all such pairs (after
    Tung and Mori 2019, arXiv 1907.09682)."""

    def __call__(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Return the loss as Trainer's `compute_loss_func`: an average over all texts of an optimizer step.

        Args:
            outputs: With the pooled embeddings [B, D].
            labels: Targets [B, D].
            num_items_in_batch: Numbers in the targets of the whole step; None = those of this batch.
        """
        embeddings_BD: Tensor = outputs[EMBEDDINGS]
        targets_BD = labels.to(embeddings_BD.dtype)
        share = 1.0 if num_items_in_batch is None else labels.numel() / num_items_in_batch
        parts = []
        if self.distance > 0:
            parts.append(self.distance * relative_distance(embeddings_BD, targets_BD))
        if self.similarity > 0:
            parts.append(self.similarity * similarity_difference(embeddings_BD, targets_BD))
        return torch.stack(parts).sum() * share


def relative_distance(embeddings_BD: Tensor, targets_BD: Tensor) -> Tensor:
    """Return |e - t|² / |t|², averaged over texts; for embeddings of length 1 that is 2 - 2 cos(e, t)."""
    distance_B = (embeddings_BD - targets_BD).square().sum(-1)
    return (distance_B / targets_BD.square().sum(-1).clamp_min(1e-12)).mean()


def similarity_difference(embeddings_BD: Tensor, targets_BD: Tensor) -> Tensor:
    """Return the squared difference of cosines, averaged over the pairs of texts in a batch; 0 for a single text."""
    difference_BB = _cosines(embeddings_BD) - _cosines(targets_BD)
    texts = len(difference_BB)
    return difference_BB.square().sum() / max(texts * (texts - 1), 1)


def _cosines(embeddings_BD: Tensor) -> Tensor:
    units_BD = F.normalize(embeddings_BD, dim=-1)
    return units_BD @ units_BD.T


class EmbeddingTrainer(InOrder):
    """`Trainer` for encoders without a head: it pools their hidden states before the loss and the metrics.

    Its `compute_loss_func` is an `EmbeddingLoss`; the targets are in `labels`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Trainer looks for labels among the arguments of the model, which has none.
        self.label_names = ["labels"]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return Trainer's loss with the embeddings among the outputs: in evaluation, nothing else."""
        assert isinstance(self.compute_loss_func, EmbeddingLoss)
        pooling = self.compute_loss_func.pooling

        def embed(num_items_in_batch: Any = None, **asked: Any) -> dict[str, Any]:
            outputs = model(**asked)
            embeddings_BD = pooling(outputs["last_hidden_state"], asked["attention_mask"])
            return {**(outputs if model.training else {}), EMBEDDINGS: embeddings_BD}

        called: Any = embed  # all that Trainer does with the model is to call it
        return super().compute_loss(called, inputs, return_outputs, num_items_in_batch)
