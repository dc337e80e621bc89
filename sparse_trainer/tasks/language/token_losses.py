"""Perplexity inside a Trainer: losses are summed per row, so that no logits over a vocabulary are kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import EvalPrediction

from sparse_trainer.inputs.labels import IGNORED

# Shape legend: B = rows of a batch, N = rows of a set, T = tokens, V = vocabulary.

PERPLEXITY: Final = "perplexity"


def summed_losses(logits: Any, labels_BT: Tensor) -> Tensor:
    """Return of each row the sum of the losses of its tokens, and how many they are: [B, 2], in nats and float32.

    Serves as `preprocess_logits_for_metrics` of a Trainer, for models that are judged at each position by the label of
    the next. Rows are worked on one by one: half precision has too few digits for a sum over the vocabulary, and a
    float32 copy of a whole batch would be large.

    Args:
        logits: [B, T, V], or a tuple that starts with them.
        labels_BT: Tokens; -100 where none counts.
    """
    logits_BTV: Tensor = logits[0] if isinstance(logits, tuple) else logits
    sums_B = torch.stack(
        [
            F.cross_entropy(logits_TV[:-1].float(), labels_T[1:], ignore_index=IGNORED, reduction="sum")
            for logits_TV, labels_T in zip(logits_BTV, labels_BT, strict=True)
        ]
    )
    counts_B = (labels_BT[:, 1:] != IGNORED).sum(1)
    return torch.stack([sums_B, counts_B.to(sums_B.dtype)], dim=1)


def perplexity_of(prediction: EvalPrediction) -> dict[str, float]:
    """Return exp of the mean loss per token, however rows were put into batches: `compute_metrics` of a Trainer.

    Args:
        prediction: What `summed_losses` has left of the logits, [N, 2].

    >>> perplexity_of(EvalPrediction(predictions=np.array([[0.0, 1.0], [0.0, 3.0]]), label_ids=np.zeros((2, 4))))
    {'perplexity': 1.0}
    """
    sums_N2 = np.asarray(prediction.predictions, dtype=np.float64)
    return {PERPLEXITY: float(np.exp(sums_N2[:, 0].sum() / sums_N2[:, 1].sum()))}


@final
@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """Collates rows of tokens, padded on the right; rows without `labels` are their own."""

    padding: int
    """Token that fills up; no model looks at it."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`, each [B, T]."""
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(found: Sequence[Sequence[int]], filler: int) -> Tensor:
            return torch.tensor([[*ids, *[filler] * (longest - len(ids))] for ids in found])

        return {
            "input_ids": padded([row["input_ids"] for row in rows], self.padding),
            "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
            "labels": padded([row.get("labels", row["input_ids"]) for row in rows], IGNORED),
        }
