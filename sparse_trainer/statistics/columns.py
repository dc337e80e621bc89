"""Columns of calibration batches: made tensors, and checked for what the model would stumble over."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_trainer.errors import DataError
from sparse_trainer.inputs.labels import unwrapped
from sparse_trainer.inputs.limits import DIMENSIONS, inputs_named, positions_of, vocabulary_of


class ColumnReader:
    """Reads batches, or single rows, for one model."""

    def __init__(self, model: Any) -> None:
        self.named, self.takes_any = inputs_named(model)
        self.main_input: str = model.main_input_name
        self.device: torch.device = next(model.parameters()).device
        self.positions = positions_of(model.config)
        self.vocabulary = vocabulary_of(model) if self.main_input == "input_ids" else None
        self.name = type(unwrapped(model)).__name__

    def read(self, where: str, values: object, *, look: bool) -> dict[str, Tensor]:
        """Return a batch on the model's device.

        Args:
            where: What the batch is called.
            look: Whether to look at the numbers, too, which costs a wait for the device they are on.

        Raises:
            DataError: wrong columns, and with `look`: sequences longer than the model's positions, or numbers that are
                no tokens of the model.
        """
        if not isinstance(values, Mapping):
            raise DataError(
                where, f"is a {type(values).__name__}.", "Give mappings of tensors, by input name."
            )
        for name in values:
            if name not in self.named and not self.takes_any:
                raise DataError(
                    where,
                    f"{self.name} reads no column {name!r}.",
                    f"Drop it, or give one of {sorted(self.named)}.",
                )
        inputs = {name: _tensor(where, name, value) for name, value in values.items()}
        if self.main_input not in inputs and "inputs_embeds" not in inputs:
            raise DataError(
                where, f"has no column {self.main_input!r}, only {sorted(values)}.", "Rename the column."
            )
        single = next((name for name, value in inputs.items() if value.dim() == 0), None)
        if single is not None:
            raise DataError(where, f"column {single!r} is a single number.", "Give rows, or batches of them.")
        main = inputs.get(self.main_input)
        if main is not None and main.dim() == DIMENSIONS.get(self.main_input, 0) - 1:
            inputs = {name: value.unsqueeze(0) for name, value in inputs.items()}
        if look:
            self._look_at(where, inputs)
        # Embeddings read int32, losses do not.
        ready = {n: value.long() if value.dtype == torch.int32 else value for n, value in inputs.items()}
        return {name: value.to(self.device).contiguous() for name, value in ready.items()}

    def _look_at(self, where: str, inputs: Mapping[str, Tensor]) -> None:
        """Raise `DataError` for what the model would stumble over."""
        main = inputs.get(self.main_input)
        empty = next((name for name, value in inputs.items() if value.numel() == 0), None)
        if empty is not None:
            raise DataError(where, f"column {empty!r} is empty.", "Leave empty rows out.")
        if main is None or self.main_input != "input_ids":
            return
        if self.positions is not None and main.shape[-1] > self.positions:
            raise DataError(
                where, f"sequences of {main.shape[-1]} tokens, and the model has {self.positions} positions.",
                f"Cut them to {self.positions} tokens or fewer.",
            )  # fmt: skip
        if main.dtype not in (torch.int64, torch.int32):
            raise DataError(where, f"column 'input_ids' holds {main.dtype}.", "Give token ids as int64.")
        self._check_tokens(where, main)
        mask = inputs.get("attention_mask")
        if mask is None or mask.dim() > main.dim():
            return
        if mask.shape != main.shape:
            raise DataError(
                where, f"attention_mask has shape {tuple(mask.shape)}, input_ids {tuple(main.shape)}.",
                "Give one entry per token.",
            )  # fmt: skip
        if not bool((mask != 0).any(-1).all()):
            raise DataError(where, "a sequence is all padding.", "Leave empty rows out.")

    def _check_tokens(self, where: str, main: Tensor) -> None:
        if self.vocabulary is None:
            return
        size, placeholders = self.vocabulary
        beyond = (main < 0) | (main >= size)
        for token in placeholders:
            beyond &= main != token
        if bool(beyond.any()):
            raise DataError(
                where, f"column 'input_ids' holds {int(main[beyond][0])}; {self.name} knows tokens 0 to {size - 1}.",
                "Tokenize with the tokenizer of this model.",
            )  # fmt: skip


def _tensor(where: str, name: str, value: object) -> Tensor:
    """Return a column as a tensor; numbers in lists, as data sets hold them, become one."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list | np.ndarray):
        try:
            return torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(
                where, f"column {name!r} cannot become a tensor ({error}).",
                "Tokenize the data, and pad the rows of a batch to one length.",
            ) from error  # fmt: skip
    raise DataError(
        where, f"column {name!r} holds no tensor but {type(value).__name__}.",
        "Tokenize the data, and drop columns that the model does not read.",
    )  # fmt: skip
