"""Which tokens of a batch count when a student is compared with its teacher, and how many they are."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_trainer.inputs.labels import IGNORED

# Shape legend: B = batch, T = tokens, C = classes or vocabulary.


def valid_distributions(logits: Tensor, inputs: Mapping[str, Any], *, shifted: bool) -> Tensor:
    """Return the mask of the distributions in [..., C] logits that count, shape [...].

    Those with an ignored label, or, of tokens without labels of their own, padding, do not count. A causal model's
    position t is judged by the label at t + 1, so its last position never counts.
    """
    each, labels = logits.shape[:-1], inputs.get("labels")
    if isinstance(labels, Tensor) and labels.shape == each:
        counts: Tensor = labels != IGNORED
    else:
        real = token_mask(each, inputs)
        counts = torch.ones(each, dtype=torch.bool, device=logits.device) if real is None else real
    if shifted and len(each) > 1:
        counts = F.pad(counts[..., 1:], (0, 1), value=False)
    return counts


def token_mask(shape: tuple[int, ...], inputs: Mapping[str, Any]) -> Tensor | None:
    """Return the mask of the real tokens, in this shape; None where all are, or nothing says which.

    Args:
        shape: [B, T] of what is compared; frames, of a sound; B rows for each choice, of choices.
    """
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor):
        return None
    if mask.shape == shape:
        return mask.bool()
    if {"input_values", "input_features"} & set(inputs) and len(shape) == 2:
        # The mask is over the samples of a sound; a frame stands for a run of them.
        return F.interpolate(mask[:, None].float(), size=shape[1])[:, 0].bool()
    is_choices = mask.dim() == 3 and len(shape) == 2 and mask.flatten(0, 1).shape == shape
    return mask.flatten(0, 1).bool() if is_choices else None


def real_tokens(inputs: Mapping[str, Any]) -> Tensor | None:
    """Return how many tokens of a batch are no padding; rows, of inputs without tokens; None without any tensor.

    >>> int(real_tokens({"attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}))
    3
    >>> int(real_tokens({"pixel_values": torch.zeros(2, 3, 4, 4)}))
    2
    """
    mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
    if isinstance(mask, Tensor) and mask.dim() < 4:
        return mask.sum()
    if isinstance(ids, Tensor):
        return torch.tensor(ids.numel(), device=ids.device)
    found = next((value for value in inputs.values() if isinstance(value, Tensor)), None)
    return None if found is None else torch.tensor(len(found), device=found.device)
