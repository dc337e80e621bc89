"""What a conversion is, and what it is given."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from sparse_trainer.folders.load import load_model


@dataclass(frozen=True, kw_only=True)
class Convertible:
    """The folder that is converted."""

    name: str
    """The folder, or a name on the hub, as the user gave it."""
    skeleton: PreTrainedModel
    """The model on the meta device: its config and the shapes of all tensors, no values."""

    def load(self, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
        """Return the model with its weights, in evaluation mode.

        Args:
            dtype: Of the weights; "auto" = as stored.
        """
        model = load_model(self.name, dtype=dtype)
        model.eval()
        return model

    def place(self) -> str:
        """Return what errors call this folder."""
        return f"{self.name} ({type(self.skeleton).__name__})"


class Conversion(Protocol):
    """A form for another runtime: what it needs, what it cannot hold, how it is written.

    `convert_folder` asks `refuse` before any work, and makes the output appear whole or not at all.
    """

    runtime: str
    """What runs it, as its users say."""
    extra: str
    """The extra of sparse-trainer that installs `packages`; "" where there are none."""
    packages: Mapping[str, str]
    """What must be installed beside sparse-trainer: name of the distribution -> release this was tested with."""
    formats: tuple[str, ...]
    """Number formats of `--quantize`, the default first."""
    is_file: bool
    """Whether a single file is written, else a folder."""

    def refuse(self, origin: Convertible, numbers: str) -> None:
        """Raise `ConversionError` for a model, or a format of its numbers, that this form cannot hold, with the reason.

        The packages are there. It costs no more than the skeleton: nothing has been loaded or written.
        """

    def is_advised(self, origin: Convertible) -> bool:
        """Tell whether a card may give the command for a model that `refuse` lets pass.

        It may where the form is of use for the model, and models of its type are written in our tests.
        """

    def write(self, origin: Convertible, out: Path, numbers: str) -> Mapping[str, Any]:
        """Write the file, or fill the empty folder, `out`; return facts to show, by name, that JSON can hold.

        Args:
            numbers: One of `formats`.

        Raises:
            ConversionError: What was written does not compute what the model does.
        """
