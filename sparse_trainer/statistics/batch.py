"""One calibration batch, as models and hooks read it."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Shape legend: B = sequences, T = tokens.


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One calibration batch on the model's device."""

    number: int
    inputs: dict[str, Tensor]
    rows: int
    real_BT: Tensor | None
    """True = a real token; None = every token is."""
    decoder_real_BT: Tensor | None
    """The same for the decoder's tokens of an encoder-decoder model."""
    terms: Tensor | None
    """Labels that count, scalar: the loss is their mean. None = there is nothing to compare with."""

    def count_real(self) -> Tensor:
        """Return the number of real tokens, scalar; of images and sounds, how many there are."""
        if self.real_BT is not None:
            return self.real_BT.sum()
        main = next(iter(self.inputs.values()))
        return torch.tensor(main.numel() if main.dim() == 2 else main.shape[0], device=main.device)
