"""One-shot pruning from a model's name to a folder: load, calibrate, prune, save."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparse_trainer.cut.decision import Decision
from sparse_trainer.cut.record import plan_of
from sparse_trainer.data.image_text.batches import image_text_batches
from sparse_trainer.data.image_text.rows import holds_images
from sparse_trainer.errors import CheckpointError
from sparse_trainer.folders.configs import read_config
from sparse_trainer.folders.exports import find_export
from sparse_trainer.folders.processors import find_processor, is_image_text, load_processor, tokenizer_in
from sparse_trainer.folders.replace import check_target
from sparse_trainer.folders.rescue import rescuing, spare_folder
from sparse_trainer.folders.save import least_bytes, save_pruned
from sparse_trainer.inputs.limits import check_positions, positions_of
from sparse_trainer.one_shot.checks import check_shape
from sparse_trainer.one_shot.options import PruneOptions
from sparse_trainer.one_shot.prune import prune_by
from sparse_trainer.plan.document import Plan
from sparse_trainer.run import pictures
from sparse_trainer.run.options import CalibrationOptions, SourceOptions, Tell, check_calibration
from sparse_trainer.run.page import PAGE_FILE, Page, write_page
from sparse_trainer.run.texts import pooled_as_stored, read_text_files, reading_of
from sparse_trainer.run.together import check_alone


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A model that was cut, and how that came about."""

    model: PreTrainedModel
    plan: Plan
    decisions: Sequence[Decision]
    """One per round."""


def prune_folder(
    source: SourceOptions,
    folder: Path,
    options: PruneOptions,
    calibration: CalibrationOptions | None = None,
    *,
    export: str = "auto",
    overwrite: bool = False,
    draw: bool = True,
    tell: Tell,
) -> tuple[Path, Plan, dict[str, Path]]:
    """Prune a model and save it with its tokenizer; return the folder, the plan, and the files beside it.

    The folder appears whole or not at all.

    Args:
        calibration: None for criteria that look at weights only.
        draw: Whether pictures and tables of scores and widths go into the folder.
        tell: Called with one line at the start of every stage.

    Raises:
        ArgumentError: An option cannot be meant.
        BudgetError: The budget cannot be met.
        CheckpointError: The model cannot be loaded, or the folder is not ours to replace.
        DataError: Calibration is missing, too short, or does not fit the model.
    """
    check_alone("prune")
    check_target(folder, overwrite=overwrite)
    find_export(export)
    check_calibration(options, calibration)
    if draw:
        pictures.check_drawing("give --no-pictures")
    options = pooled_as_stored(options, source, tell)
    place = source.place()
    check_shape(options, source.shape(), source.place_of_model(by_block=options.by_block))
    processor = find_processor(source.name_or_path, source.revision)
    batches = read_calibration(source, tokenizer_in(processor), [options], calibration, tell)
    tell(f"loading {source.name_or_path}")
    model = source.load(by_block=options.by_block)
    density = options.density if options.elements is None else 1.0
    density = density if options.time is None else 0.0
    check_target(folder, overwrite=overwrite, need=least_bytes(model, density))
    pruned = prune_model(model, batches, options, device=place, inplace=True, tell=tell)
    of_texts = read_text_files(source, model)
    page = Page(name=source.name_or_path, plan=pruned.plan, decisions=pruned.decisions)

    def beside(place: Path) -> None:
        of_texts(place)
        if draw:
            pictures.write_pictures(pruned.plan, pruned.decisions, place)
            write_page(place, page)

    tell(f"saving to {folder}")
    with rescuing(pruned.model, processor, spare_folder(folder)):
        save_pruned(
            pruned.model,
            folder,
            processor=processor,
            export=export,
            overwrite=overwrite,
            beside=beside,
        )
    files = {"page": PAGE_FILE} | pictures.picture_files(pruned.plan, pruned.decisions)
    return folder, pruned.plan, {what: folder / name for what, name in files.items() if draw}


def read_calibration(
    source: SourceOptions,
    tokenizer: PreTrainedTokenizerBase | None,
    prunings: Sequence[PruneOptions],
    calibration: CalibrationOptions | None,
    tell: Tell,
    *,
    always: bool = False,
) -> list[dict[str, Tensor]] | None:
    """Return the calibration text as batches, where a criterion or a repair looks at it: before the model is loaded.

    Args:
        always: Something else looks at it.

    Raises:
        ArgumentError: Sequences longer than the model's positions.
        CheckpointError: The model has no tokenizer, or no config that can be read.
        DataError: The text cannot be had, or is too short.
    """
    if calibration is None:
        return None
    if not always and not any(options.reads_data for options in prunings):
        names = " and ".join(options.name for options in prunings)
        tell(f"{calibration.source} is not read: {names} looks at weights only")
        return None
    positions = positions_of(read_config(source.name_or_path, source.revision))
    if is_image_text(source.name_or_path, source.revision):
        file = calibration.local_file
        if file is not None and holds_images(file):
            tell(f"reading images and text of {file}")
            processor = load_processor("image_text", source.name_or_path, source.revision)
            return image_text_batches(
                file, processor, samples=calibration.samples, seed=calibration.seed, positions=positions
            )
        tell("calibrating on text alone: give rows with image and text to calibrate on images, too")
    check_positions("length", calibration.length, positions)
    if tokenizer is None:
        raise CheckpointError(
            source.name_or_path, "has no tokenizer to read calibration text with.",
            "Save one into the folder; or choose magnitude or random without repair.",
        )  # fmt: skip
    tell(f"reading {calibration.source}")
    reading = reading_of(source)
    return calibration.batches(tokenizer, by_row=reading.by_row, pairs=reading.pairs)


def prune_model(
    model: PreTrainedModel,
    batches: list[dict[str, Tensor]] | None,
    options: PruneOptions,
    *,
    device: torch.device,
    inplace: bool = False,
    tell: Tell,
) -> Pruned:
    """Prune a model that is loaded.

    Args:
        device: Where blocks are run, with `by_block`.
    """
    if plan_of(model) is not None:
        tell("the model was pruned before: the new plan composes with its own")
    tell(f"pruning by {options.name}")
    decisions: list[Decision] = []
    place = device if options.by_block else None
    pruned, plan = prune_by(options, model, batches, device=place, inplace=inplace, watch=decisions.append)
    return Pruned(model=pruned, plan=plan, decisions=decisions)
