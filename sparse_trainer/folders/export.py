"""`save_pruned`: the folder of a pruned model, with its plan and card, all or nothing."""

import errno
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from safetensors import SafetensorError
from transformers import PreTrainedModel

from patchers import is_patched
from patchers.cheaper import blended
from patchers.modeling_pruned import stock_class_of
from sparse_trainer.cut.layout import earlier_layout
from sparse_trainer.errors import ArgumentError, CheckpointError, nearest
from sparse_trainer.files import write_text
from sparse_trainer.folders.card import model_card
from sparse_trainer.folders.padded import padded
from sparse_trainer.foreign_code import clean_folder
from sparse_trainer.plan.document import PLAN_FILE, Plan
from sparse_trainer.plan.record import plan_of

Export = Literal["auto", "native", "padded", "self-contained"]
EXPORTS: tuple[Export, ...] = ("auto", "native", "padded", "self-contained")
CARD_FILE = "README.md"
logger = logging.getLogger(__name__)


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
        overwrite: Replace a folder that `save_pruned` wrote before.
        beside: Called with the folder before it takes its place, to write further files.

    Raises:
        CheckpointError: the folder is not ours to replace, or the model is not finished or does not fit the export.
    """
    export = export_form(export)
    plan = plan or plan_of(model)
    if plan is None:
        raise CheckpointError(
            type(model).__name__, "carries no plan.", "Save the result of optimize_model, or pass plan=."
        )
    form = _form(model, export)
    saved = padded(model) if form == "padded" else model
    card = model_card(saved, plan, metrics or {}, form)
    target = Path(directory).resolve()
    with new_folder(target, overwrite=overwrite) as folder:
        saved.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(str(folder))
        plan.save(folder / PLAN_FILE)
        write_text(folder / CARD_FILE, card)
        if beside is not None:
            beside(folder)
    return target


def export_form(name: str) -> Export:
    """Return the export of this name.

    Raises:
        ArgumentError: there is none; the nearest known one is given.
    """
    form: Export | None = next((known for known in EXPORTS if known == name), None)
    if form is None:
        raise ArgumentError("export", f"unknown value {name!r}.", nearest(name, EXPORTS))
    return form


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
            "Use 'self-contained' or 'padded'; or prune with scope='uniform' and no heads.",
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


@contextmanager
def new_folder(target: Path, *, overwrite: bool, ours: str = PLAN_FILE) -> Iterator[Path]:
    """Give a folder to fill that takes the place of `target` when the block ends well, and vanishes when it does not.

    Args:
        ours: The file by which a folder is known as ours to replace.

    Raises:
        CheckpointError: `target` is there and is not ours, or `overwrite` is not set; or the disk is full.
    """
    check_target(target, overwrite=overwrite, ours=ours)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    draft.mkdir()
    try:
        yield draft
        clean_folder(draft)
        _take_place(draft, target)
    except (OSError, SafetensorError) as error:
        if not _is_full(error):
            raise
        raise CheckpointError(
            str(target), f"cannot be written ({error}).", "Make room, or name a folder elsewhere."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _is_full(error: Exception) -> bool:
    """Tell whether a disk or a quota is full; safetensors says it in words only."""
    is_code = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return is_code or os.strerror(errno.ENOSPC) in str(error)


def check_target(directory: str | os.PathLike[str], *, overwrite: bool = True, ours: str = PLAN_FILE) -> None:
    """Raise `CheckpointError` where `save_pruned` would: ask before a long run.

    Args:
        overwrite: Whether a folder that we wrote may be replaced.
        ours: The file by which it is known.
    """
    target = Path(directory).resolve()
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir():
        raise CheckpointError(str(target), "is a file.", "Name a folder.")
    if not (target / ours).is_file():
        raise CheckpointError(
            str(target), f"is not empty and holds no {ours}: not ours to replace.", "Name another folder."
        )
    if not overwrite:
        raise CheckpointError(
            str(target), "holds a result already.", "Pass overwrite=True, or name another folder."
        )


def _take_place(draft: Path, target: Path) -> None:
    """Rename `draft` to `target`; what was there steps aside first, and comes back if the rename fails."""
    if not target.exists():
        draft.rename(target)
        return
    aside = target.with_name(f"{draft.name}.old")
    target.rename(aside)
    try:
        draft.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    shutil.rmtree(aside)
