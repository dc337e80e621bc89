"""Masked tokens: which are masked, anew in training and once for all in evaluation, and how well they are guessed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorForLanguageModeling, EvalPrediction

from sparse_trainer.errors import DataError
from sparse_trainer.inputs.labels import IGNORED
from sparse_trainer.tasks.language.token_losses import PERPLEXITY, TokenBatch

# Shape legend: B = rows of a batch, N = rows of a set, T = tokens, V = vocabulary.


def masked_once(
    blocks: Sequence[Sequence[int]], masking: DataCollatorForLanguageModeling, seed: int
) -> Dataset:
    """Return blocks of tokens with masks that follow from a seed, and `labels`: -100 where nothing is masked.

    Raises:
        DataError: Nothing is masked.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        batches = [masking([{"input_ids": block}]) for block in blocks]
    rows = {name: [batch[name][0].tolist() for batch in batches] for name in ("input_ids", "labels")}
    if all(label == IGNORED for labels in rows["labels"] for label in labels):
        raise DataError(
            "data: validation set",
            "no token of it is masked.",
            "Give more text, or mask more (mask_probability).",
        )
    return Dataset.from_dict(rows)


@final
@dataclass(frozen=True, kw_only=True)
class MaskedBatch:
    """Collates blocks of tokens: those with `labels` are masked already, of others tokens are drawn."""

    masking: DataCollatorForLanguageModeling
    padded: TokenBatch

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return `input_ids`, `attention_mask` and `labels`, each [B, T]."""
        return self.padded(rows) if "labels" in rows[0] else dict(self.masking(list(rows)))


def guesses(logits: Any, labels_BT: Tensor) -> Tensor:
    """Return of each row the sum of losses in nats, the right guesses, and how many there are: [B, 3], in float32.

    Serves as `preprocess_logits_for_metrics` of a Trainer, where each position is judged by its own label.

    Args:
        logits: [B, T, V], or a tuple that starts with them.
        labels_BT: Tokens; -100 where none counts.
    """
    logits_BTV: Tensor = logits[0] if isinstance(logits, tuple) else logits
    counts_BT = labels_BT != IGNORED
    found = []
    for logits_TV, labels_T, counts_T in zip(logits_BTV, labels_BT, counts_BT, strict=True):
        chosen_TV, answers_T = logits_TV[counts_T].float(), labels_T[counts_T]
        loss = F.cross_entropy(chosen_TV, answers_T, reduction="sum")
        found.append(torch.stack([loss, (chosen_TV.argmax(-1) == answers_T).sum().float()]))
    return torch.cat([torch.stack(found), counts_BT.sum(1, keepdim=True).float()], dim=1)


def guessing_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Return exp of the mean loss per masked token, and the share of right guesses: `compute_metrics` of a Trainer.

    Args:
        prediction: What `guesses` has left of the logits, [N, 3].

    >>> guessing_metrics(EvalPrediction(predictions=np.array([[0.0, 1.0, 2.0]]), label_ids=np.zeros((1, 4))))
    {'perplexity': 1.0, 'accuracy': 0.5}
    """
    loss, right, count = np.asarray(prediction.predictions, dtype=np.float64).sum(0)
    return {PERPLEXITY: float(np.exp(loss / count)), "accuracy": float(right / count)}
