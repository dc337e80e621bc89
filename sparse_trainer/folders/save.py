"""`save_pruned`: the folder of a pruned model, with its plan and card, all or nothing."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from patchers.patching.blends import blended
from patchers.patching.patch import is_patched
from sparse_trainer.cut.record import plan_of
from sparse_trainer.errors import CheckpointError, ExportError
from sparse_trainer.files.writing import place_of, write_text
from sparse_trainer.folders.card import model_card
from sparse_trainer.folders.card_facts import CardFacts
from sparse_trainer.folders.exports import find_export
from sparse_trainer.folders.pipeline_files import bring_pipeline
from sparse_trainer.folders.replace import new_folder
from sparse_trainer.plan.document import PLAN_FILE, Plan

CARD_FILE = "README.md"


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
    facts: CardFacts | None = None,
    export: str = "auto",
    overwrite: bool = False,
    beside: Callable[[Path], object] | None = None,
) -> Path:
    """Write a model from `optimize_model` with everything that belongs to it, and return the folder.

    The folder appears whole or not at all; one that is there stays untouched until the new one is complete.

    Args:
        plan: The record of the cut; default: the one the model carries.
        metrics: Rows of the card's table: {"accuracy": {"dense": 0.71, "pruned": 0.70}}.
        facts: What else the card says: results for its `model-index`, how the model was made, an example.
        export: A name in `EXPORTS`: `native` (a stock checkpoint, where the shapes allow it), `self-contained` (any
            shapes, with the file that builds them), `padded` (a stock checkpoint with zeros: compatible, less gain);
            `auto` = the first that fits; or one of your own (`register_export`).
        overwrite: Replace what `save_pruned` wrote there before; your own files beside it stay.
        beside: Called with the folder before it takes its place, to write further files.

    Raises:
        ArgumentError: there is no such export.
        CheckpointError: the folder is not ours to replace or cannot be written, or the model is not finished or does
            not fit the export.
        ExportError: an export of your own writes no file, or says no text.
    """
    form = find_export(export)
    plan = plan or plan_of(model)
    if plan is None:
        raise CheckpointError(
            type(model).__name__, "carries no plan.", "Save the result of optimize_model, or pass plan=."
        )
    _check_finished(model)
    form.check(model)
    reads_text = isinstance(processor, PreTrainedTokenizerBase)
    card = model_card(model, plan, metrics or {}, form, facts, reads_text=reads_text)
    with new_folder(directory, overwrite=overwrite, need=bytes_of(model)) as folder:
        form.write(model, folder)
        if not any(folder.iterdir()):
            raise ExportError(
                f"{type(form).__name__}.write", "wrote no file.", "Write into the folder it is given."
            )
        if processor is not None:
            processor.save_pretrained(str(folder))
        bring_pipeline(folder)
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


def _check_finished(model: PreTrainedModel) -> None:
    """Raise `CheckpointError` for a model in the middle of pruning."""
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
