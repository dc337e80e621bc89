"""The batch in flight: what hooks have to know about it, and a watch for numbers that are none."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from patchers.units import Group
from sparse_trainer.errors import NonFiniteError, UnsupportedModelError
from sparse_trainer.statistics.calibration import Batch
from sparse_trainer.statistics.requests import Loss

# Shape legend: B = sequences, T = tokens, I = features, U = units, W = features of a unit.


class HookContext:
    """Shared by all hooks of one pass."""

    def __init__(self, *, is_encoder_decoder: bool) -> None:
        self.batch: Batch | None = None
        self.loss: Loss = "labels"
        """The loss whose backward pass is running."""
        self.norms: list[Tensor] = []
        """Sums over sequences of Frobenius norms, of the batch in flight."""
        self._is_encoder_decoder = is_encoder_decoder
        self._first_bad: dict[str, Tensor] = {}

    def sequences(self, x: Tensor, group: Group) -> tuple[Tensor, Tensor | None]:
        """Return activations as [B, T, I], and where they belong to real tokens (None = everywhere).

        Raises:
            UnsupportedModelError: the rows of `x` cannot be shared out over the sequences.
        """
        assert self.batch is not None
        rows = self.batch.rows
        if x.dim() == 3 and x.shape[0] != rows and x.shape[1] == rows:
            x = x.transpose(0, 1)
        positions = x.shape[:-1].numel()
        if positions % rows:
            raise UnsupportedModelError(
                group.consumer, f"reads {positions} positions of {rows} sequences.",
                "Calibrate with one sequence per batch, without padding.",
            )  # fmt: skip
        x_BTI = x.reshape(rows, -1, x.shape[-1])
        in_decoder = self._is_encoder_decoder and "decoder" in group.stack
        real_BT = self.batch.decoder_real_BT if in_decoder else self.batch.real_BT
        fits = real_BT is not None and real_BT.shape == x_BTI.shape[:2]
        return x_BTI, real_BT.to(x.device) if real_BT is not None and fits else None

    def watch(self, name: str, values: Tensor) -> None:
        """Remember the first batch that brings NaN or infinity, without waiting for the device."""
        assert self.batch is not None
        bad = ~torch.isfinite(values).all()
        first = self._first_bad.get(name)
        first = torch.full_like(bad, -1, dtype=torch.long) if first is None else first
        self._first_bad[name] = torch.where((first < 0) & bad, self.batch.number, first)

    def check(self) -> None:
        """Raise `NonFiniteError` where a batch brought NaN or infinity; the earliest one is named."""
        found = [(int(number), name) for name, number in self._first_bad.items() if int(number) >= 0]
        if found:
            number, name = min(found, key=lambda pair: pair[0])
            raise NonFiniteError(
                name, f"NaN or infinity in calibration batch {number}.",
                "Look for NaN weights and for rows without a label that counts; or calibrate in float32.",
            )  # fmt: skip


def precise(x: Tensor) -> Tensor:
    """Return activations in float32, or float64 if they are."""
    return x if x.dtype == torch.float64 else x.float()


def wide(device: torch.device) -> torch.dtype:
    """Return the type in which sums over batches are kept: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def first_tensor(args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Return the activations among the arguments of a linear."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
