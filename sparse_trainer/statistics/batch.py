"""One calibration batch, as models and hooks read it."""

import re
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sparse_trainer.inputs.pooling import Pooling

# Shape legend: B = sequences, T = tokens.


_READS_ENCODER: Final = re.compile(
    r"(encoder_attn|encdecattention|cross_?att\w*)\.(.*\.)?(k|v|key|value|[kv]+_proj)$", re.I
)
"""Linears of a decoder that read what the encoder says: the keys and values of cross-attention."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One calibration batch on the model's device."""

    number: int
    inputs: dict[str, Tensor]
    rows: int
    real_BT: Tensor | None
    """True = a real token; None = every token is."""
    has_decoder_beside: bool
    """Whether a decoder beside an encoder reads it, too."""
    decoder_real_BT: Tensor | None
    """The same for the tokens of a decoder beside an encoder."""
    terms: Tensor | None
    """Labels that count, scalar: the loss is their mean. None = there is nothing to compare with."""
    is_own_target: bool = False
    """Whether a loss is asked for and there are no labels: it is how far the model's own output moves."""
    pooling: Pooling | None = None
    """How the vectors of texts are made of what a model without a head says of tokens; None = tokens stand alone."""
    has_labels_one_by_one: bool = False
    """Whether each class is right or wrong by itself."""

    def real_at(self, path: str) -> Tensor | None:
        """Return which of the tokens that a module reads are real, [B, T]; None = every one is."""
        in_decoder = self.has_decoder_beside and "decoder" in path and not _READS_ENCODER.search(path)
        return self.decoder_real_BT if in_decoder else self.real_BT

    def count_real(self) -> Tensor:
        """Return the number of real tokens, scalar; of images and sounds, how many there are."""
        if self.real_BT is not None:
            return self.real_BT.sum()
        main = next(iter(self.inputs.values()))
        return torch.tensor(main.numel() if main.dim() == 2 else main.shape[0], device=main.device)
