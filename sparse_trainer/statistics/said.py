"""What a model says of a batch, as losses without labels compare it: distributions over classes, or vectors."""

from collections.abc import Iterator
from enum import Enum, auto
from typing import Any, Final

import torch
from torch import Tensor

from sparse_trainer.statistics.batch import Batch

# Shape legend: B = sequences, T = tokens, N = positions, C = classes or features.

_SPANS: Final = ("start_logits", "end_logits")
"""Logits over the tokens of a text: where a span begins and ends in it."""


class Meaning(Enum):
    """What numbers that a model says stand for."""

    CLASSES = auto()
    """Logits, of which one class is right."""
    LABELS = auto()
    """Logits of labels that are right or wrong each by itself (`problem_type="multi_label_classification"`)."""
    VECTORS = auto()
    """Features of a vector; a single number, too."""


def said(output: Any, batch: Batch) -> Iterator[tuple[Tensor, Meaning]]:
    """Yield what a model says at real positions, [N, C] in row order, and what it stands for.

    All outputs named logits; of a model without logits its first output: one vector per text where the batch knows how
    these are pooled, else one per token. A single number is no distribution, unless it is one of a label.
    """
    named = {name: output[name] for name in output if name.endswith("logits")}
    logits = [_without_padding(each, batch) if name in _SPANS else each for name, each in named.items()]
    for value in logits or [_vectors(output[0], batch)]:
        value_NC = _real(value, batch)
        yield value_NC, _meaning(value_NC, batch) if logits else Meaning.VECTORS


def _meaning(logits_NC: Tensor, batch: Batch) -> Meaning:
    if batch.has_labels_one_by_one:
        return Meaning.LABELS
    return Meaning.CLASSES if logits_NC.shape[-1] > 1 else Meaning.VECTORS


def _vectors(states: Tensor, batch: Batch) -> Tensor:
    """Return the vectors of texts, [B, C], or the states of tokens as they are, where nothing pools them."""
    if batch.pooling is None or states.dim() != 3:
        return states
    real_BT = batch.real_BT
    if real_BT is None:
        real_BT = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    return batch.pooling(states, real_BT.to(states.device))


def _without_padding(logits_BT: Tensor, batch: Batch) -> Tensor:
    """Return logits over the tokens of each text, of which padding is ruled out."""
    if batch.real_BT is None or logits_BT.shape != batch.real_BT.shape:
        return logits_BT
    lowest = torch.finfo(logits_BT.dtype).min
    return logits_BT.masked_fill(~batch.real_BT.to(logits_BT.device), lowest)


def _real(value: Tensor, batch: Batch) -> Tensor:
    for real_BT in (batch.decoder_real_BT, batch.real_BT):
        if real_BT is not None and value.dim() == 3 and value.shape[:2] == real_BT.shape:
            return value[real_BT.to(value.device)]
    return value.flatten(0, -2)
