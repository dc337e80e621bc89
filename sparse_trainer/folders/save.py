"""`save_pruned`: the folder of a pruned model, with its plan and card, all or nothing."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from transformers import PreTrainedModel

from patchers.modeling_pruned import stock_class_of
from patchers.patching.blends import blended
from patchers.patching.patch import is_patched
from sparse_trainer.cut.layout import earlier_layout
from sparse_trainer.errors import CheckpointError, one_of
from sparse_trainer.files.writing import place_of, write_text
from sparse_trainer.folders.card import model_card
from sparse_trainer.folders.padded import padded
from sparse_trainer.folders.replace import check_target, new_folder
from sparse_trainer.plan.document import PLAN_FILE, Plan
from sparse_trainer.plan.record import plan_of

Export = Literal["auto", "native", "padded", "self-contained"]
EXPORTS: tuple[Export, ...] = ("auto", "native", "padded", "self-contained")
CARD_FILE = "README.md"

__all__ = [
    "CARD_FILE",
    "EXPORTS",
    "Export",
    "Processor",
    "check_target",
    "export_form",
    "least_bytes",
    "save_pruned",
]


class Processor(Protocol):
    """A tokenizer, feature extractor or processor."""

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> Any:
        """Write its files into a folder."""


def save_pruned(
    model: PreTrainedModel,
    directory: str | os.PathLike[str],
    *,
    processor: Processor | None = None,
    plan: Plan | None = None,
    metrics: Mapping[str, Mapping[str, Any]] | None = None,
    export: Export = "auto",
    overwrite: bool = False,
    beside: Callable[[Path], object] | None = None,
) -> Path:
    """Write a model from `optimize_model` with everything that belongs to it, and return the folder.

    The folder appears whole or not at all; one that is there stays untouched until the new one is complete.

    Args:
        plan: The record of the cut; default: the one the model carries.
        metrics: Rows of the card's table: {"accuracy": {"dense": 0.71, "pruned": 0.70}}.
        export: `native` (a stock checkpoint, where the shapes allow it), `self-contained` (any shapes, with the file
            that builds them), `padded` (a stock checkpoint with zeros: compatible, less gain); `auto` = the first that
            fits.
        overwrite: Replace what `save_pruned` wrote there before; your own files beside it stay.
        beside: Called with the folder before it takes its place, to write further files.

    Raises:
        CheckpointError: the folder is not ours to replace or cannot be written, or the model is not finished or does
            not fit the export.
    """
    export = export_form(export)
    plan = plan or plan_of(model)
    if plan is None:
        raise CheckpointError(
            type(model).__name__, "carries no plan.", "Save the result of optimize_model, or pass plan=."
        )
    form = _form(model, export)
    check_target(directory, overwrite=overwrite)
    saved = padded(model) if form == "padded" else model
    card = model_card(saved, plan, metrics or {}, form)
    with new_folder(directory, overwrite=overwrite, need=bytes_of(saved)) as folder:
        saved.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(str(folder))
        plan.save(folder / PLAN_FILE)
        write_text(folder / CARD_FILE, card)
        if beside is not None:
            beside(folder)
    return place_of(directory)


def bytes_of(model: PreTrainedModel) -> int:
    """Return how large the weights of a model are, those that are shared counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def least_bytes(model: PreTrainedModel, density: float | Mapping[str, float]) -> int:
    """Return a size that the weights of a model surely have when a budget of this density is met."""
    kept = min(density.values(), default=1.0) if isinstance(density, Mapping) else density
    return int(bytes_of(model) * kept)


def export_form(name: str) -> Export:
    """Return the export of this name.

    Raises:
        ArgumentError: there is none; the nearest known one is given.
    """
    return one_of("export", name, EXPORTS)


def _form(model: PreTrainedModel, export: Export) -> Export:
    """Return the export that is meant, and check that the model fits it."""
    if is_patched(model):
        raise CheckpointError(
            type(model).__name__,
            "still has gates.",
            "Save optimize_model(model), which has closed units cut out.",
        )
    if any(blended(model)):
        raise CheckpointError(
            type(model).__name__,
            "still has blended layers.",
            "Save optimize_model(model), or call sparse_trainer.cheaper.finish(model) first.",
        )
    uneven = stock_class_of(model) is not type(model)
    norms = earlier_layout(model.config)["norms"]
    if norms and export in ("native", "padded"):
        raise CheckpointError(
            "export",
            f"{export!r} is for {type(model).__name__} as it stands in transformers, which has LayerNorm where this "
            "model has NoNorm.",
            "Use 'self-contained'.",
        )
    if export == "native" and uneven:
        raise CheckpointError(
            "export",
            f"'native' needs shapes that {type(model).__name__} can build, and the layers are uneven.",
            "Use 'self-contained' or 'padded'; or prune with `scope='uniform'` and no heads.",
        )
    if export == "self-contained" and not uneven:
        raise CheckpointError(
            "export",
            "'self-contained' is for uneven layers, and the stock class builds these.",
            "Use 'native'.",
        )
    if export == "padded" and uneven:
        return "padded"
    return "self-contained" if uneven else "native"
