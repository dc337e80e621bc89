"""Make one embedding of the hidden states of a text's tokens, as sentence-transformers does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

# Shape legend: B = texts, T = tokens, D = hidden features.

Mode = Literal["mean", "cls", "max", "lasttoken"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pooling:
    """How the embedding of a text is made of its tokens."""

    mode: Mode = "mean"
    """Mean or largest value over the real tokens, the first token, or the last real one."""
    normalize: bool = False
    """Whether embeddings get length 1."""

    def __call__(self, states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Return embeddings [B, D] in float32.

        Args:
            states_BTD: Hidden states of the last layer.
            mask_BT: 1 for tokens, 0 for padding.
        """
        embeddings_BD = MODES[self.mode](states_BTD.float(), mask_BT)
        return F.normalize(embeddings_BD, dim=-1) if self.normalize else embeddings_BD


def _mean(states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    weights_BT1 = mask_BT[..., None].to(states_BTD.dtype)
    return (states_BTD * weights_BT1).sum(1) / weights_BT1.sum(1).clamp_min(1)


def _cls(states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    return states_BTD[:, 0]


def _max(states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    return states_BTD.masked_fill(mask_BT[..., None] == 0, float("-inf")).amax(1)


def _last_token(states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    last_B = mask_BT.long().cumsum(1).argmax(1)
    return states_BTD[torch.arange(len(states_BTD), device=states_BTD.device), last_B]


MODES: Mapping[Mode, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": _mean,
    "cls": _cls,
    "max": _max,
    "lasttoken": _last_token,
}
"""Name in sentence-transformers -> (states [B, T, D], mask [B, T]) -> embeddings [B, D]."""
