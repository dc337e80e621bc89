"""One-shot pruning from a model's name to a folder: load, calibrate, prune, save."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparse_trainer.cut.auto_classes import auto_classes_of
from sparse_trainer.cut.decision import Decision
from sparse_trainer.cut.record import plan_of
from sparse_trainer.data.image_text.batches import image_text_batches
from sparse_trainer.data.image_text.rows import holds_images
from sparse_trainer.errors import CheckpointError, NonFiniteError
from sparse_trainer.folders.card_facts import CardFacts, CardScore
from sparse_trainer.folders.configs import read_config
from sparse_trainer.folders.exports import find_export
from sparse_trainer.folders.processors import find_processor, is_image_text, load_processor, tokenizer_in
from sparse_trainer.folders.replace import check_target
from sparse_trainer.folders.rescue import rescuing, spare_folder
from sparse_trainer.folders.save import Processor, least_bytes, save_pruned
from sparse_trainer.inputs.limits import check_positions, positions_of
from sparse_trainer.one_shot.checks import check_shape
from sparse_trainer.one_shot.options import PruneOptions
from sparse_trainer.one_shot.prune import prune_by
from sparse_trainer.plan.document import Plan, called
from sparse_trainer.run import pictures
from sparse_trainer.run.held_out import Rows, held_out, perplexity_on
from sparse_trainer.run.options import CalibrationOptions, SourceOptions, Tell, check_calibration
from sparse_trainer.run.page import PAGE_FILE, Page, write_page
from sparse_trainer.run.texts import pooled_as_stored, read_text_files, reading_of
from sparse_trainer.run.together import check_alone

PERPLEXITY: Final = "perplexity"


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
    measure: bool = True,
    tell: Tell,
) -> tuple[Path, Plan, dict[str, Path]]:
    """Prune a model and save it with its tokenizer; return the folder, the plan, and the files beside it.

    The folder appears whole or not at all.

    Args:
        calibration: None for criteria that look at weights only.
        draw: Whether pictures and tables of scores and widths go into the folder.
        measure: Whether a causal language model is measured, before and after, on text like that of the calibration.
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
    trial = (
        _Trial.of(model, processor, calibration, batches, tell) if measure and not options.by_block else None
    )
    pruned = prune_model(model, batches, options, device=place, inplace=True, tell=tell)
    of_texts = read_text_files(source, model)
    facts = CardFacts(settings=calibration.told if calibration and batches else {})
    metrics: dict[str, dict[str, Any]] = {}
    if trial is not None:
        metrics, facts = trial.told(pruned.model, facts, tell)
    page = Page(
        name=called(source.name_or_path),
        plan=pruned.plan,
        decisions=pruned.decisions,
        metrics=metrics,
        conditions=facts.conditions or "",
        settings=facts.settings,
    )

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
            metrics=metrics,
            facts=facts,
            export=export,
            overwrite=overwrite,
            beside=beside,
        )
    files = {"page": PAGE_FILE} | pictures.picture_files(pruned.plan, pruned.decisions)
    return folder, pruned.plan, {what: folder / name for what, name in files.items() if draw}


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """Text that a causal language model is measured on, before it is pruned and after."""

    rows: Rows
    part: str
    """Which part of the source, in words."""
    source: str
    before: float

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        processor: Processor | None,
        calibration: CalibrationOptions | None,
        batches: list[dict[str, Tensor]] | None,
        tell: Tell,
    ) -> _Trial | None:
        """Measure the model as it is; None for other models, and where there is no text."""
        tokenizer = tokenizer_in(processor)
        autos = auto_classes_of(type(model).__name__)
        if calibration is None or tokenizer is None or "AutoModelForCausalLM" not in autos:
            return None
        positions = positions_of(model.config) or calibration.length
        fitting = replace(calibration, length=min(calibration.length, positions))
        rows = held_out(fitting, batches or [], tokenizer)
        if rows is None:
            tell(f"{calibration.name} has no text beside what is calibrated on: perplexity is not measured")
            return None
        part = f"{len(rows)} sequences that were not calibrated on"
        tell(f"measuring perplexity on {part} of {calibration.name}")
        before = perplexity_on(model, rows)
        if math.isnan(before):
            raise NonFiniteError(
                type(model).__name__, "says NaN on text.", "Look for NaN weights; or load it in float32."
            )
        return cls(rows=rows, part=part, source=calibration.name, before=before)

    def told(
        self, model: PreTrainedModel, facts: CardFacts, tell: Tell
    ) -> tuple[dict[str, dict[str, Any]], CardFacts]:
        """Measure the pruned model; return the row of the card's table, and the facts with this one."""
        after = perplexity_on(model, self.rows)
        tell(f"perplexity on {self.part} of {self.source}: {self.before:.2f} before, {after:.2f} after")
        told = f"perplexity on {self.part} of {self.source}, in {str(model.dtype).removeprefix('torch.')}"
        scored = (CardScore(metric=PERPLEXITY, value=after, data=self.source, part=self.part),)
        return {PERPLEXITY: {"dense": self.before, "pruned": after}}, replace(
            facts, scored=scored, conditions=told
        )


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
