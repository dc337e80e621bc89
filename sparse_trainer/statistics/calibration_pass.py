"""What one calibration pass is about, and what its hooks share: the current batch, losses, a watch for NaN."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from patchers.units import Structure
from sparse_trainer.errors import NonFiniteError, UnsupportedModelError
from sparse_trainer.statistics.batch import Batch

# Shape legend: B = sequences, T = tokens, I = features.

LABELS: Final = "labels"
"""Name of the model's own loss, summed over the labels that count."""


class CalibrationPass:
    """One run of a calibration set through a model; knows the current batch, so that hooks can leave its padding out.

    Args:
        model: The model that runs.
        structure: Its groups and lists of blocks whose statistics are asked for.
    """

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        self.model, self.structure = model, structure
        self.consumers = tuple(dict.fromkeys(group.consumer for group in structure.groups))
        """Paths of the modules that read the groups' units, once each."""
        self.batch: Batch | None = None
        self.loss = LABELS
        """Name of the loss whose backward pass is running."""
        self.after_batch: list[Callable[[], None]] = []
        """Called when the forward and backward passes of a batch are done."""
        self._losses: dict[str, Tensor] = {}
        self._first_bad: dict[str, Tensor] = {}

    def add_loss(self, name: str, value: Tensor) -> None:
        """Add a scalar to a loss of the current batch that gets a backward pass of its own."""
        self._losses[name] = self._losses[name] + value if name in self._losses else value

    def backward(self, loss: Tensor | None) -> None:
        """Run the backward passes of the current batch: of the model's loss, if any, and of those that hooks added."""
        named = self._losses if loss is None else {LABELS: loss, **self._losses}
        # Nothing asks for a gradient where no module was reached, or no label counts.
        losses = [(name, value) for name, value in named.items() if value.requires_grad]
        for number, (self.loss, value) in enumerate(losses):
            value.backward(retain_graph=number + 1 < len(losses))
        self._losses = {}

    def sequences(self, x: Tensor, path: str) -> tuple[Tensor, Tensor | None]:
        """Return activations as [B, T, I], and where they belong to real tokens (None = everywhere).

        Args:
            path: The module that reads or returns them.

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
                path, f"reads {positions} positions of {rows} sequences.",
                "Calibrate with one sequence per batch, without padding.",
            )  # fmt: skip
        x_BTI = x.reshape(rows, -1, x.shape[-1])
        real_BT = self.batch.real_at(path)
        fits = real_BT is not None and real_BT.shape == x_BTI.shape[:2]
        return x_BTI, real_BT.to(x.device) if real_BT is not None and fits else None

    def show_inputs(self, paths: Iterable[str], see: Callable[[str, Tensor], None]) -> list[RemovableHandle]:
        """Register hooks that show `see(path, activations)` what these modules read.

        They stand in front of gates: what closed units say counts.
        """

        def hook(path: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            with torch.no_grad():
                see(path, first_tensor(args, kwargs).detach())

        modules = {path: self.model.get_submodule(path) for path in paths}
        return [
            module.register_forward_pre_hook(partial(hook, path), with_kwargs=True, prepend=True)
            for path, module in modules.items()
        ]

    def watch(self, key: str, values: Tensor) -> None:
        """Remember the first batch that brings NaN or infinity, without waiting for the device."""
        assert self.batch is not None
        bad = ~torch.isfinite(values).all()
        first = self._first_bad.get(key)
        first = torch.full_like(bad, -1, dtype=torch.long) if first is None else first
        self._first_bad[key] = torch.where((first < 0) & bad, self.batch.number, first)

    def check(self, names: Mapping[str, str]) -> None:
        """Raise `NonFiniteError` where a batch brought NaN or infinity; the earliest one is named.

        Args:
            names: What the user calls a key, where it is not the key itself.
        """
        found = [(int(number), key) for key, number in self._first_bad.items() if int(number) >= 0]
        if found:
            number, key = min(found, key=lambda pair: pair[0])
            raise NonFiniteError(
                names.get(key, key), f"NaN or infinity in calibration batch {number}.",
                "Look for NaN weights and for rows without a label that counts; or calibrate in float32.",
            )  # fmt: skip


def precise(x: Tensor) -> Tensor:
    """Return activations in float32, or float64 if they are."""
    return x if x.dtype == torch.float64 else x.float()


def wide(device: torch.device) -> torch.dtype:
    """Return the type in which sums over batches are kept: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def first_tensor(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the activations among the arguments of a module."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
