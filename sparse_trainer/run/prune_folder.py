"""One-shot pruning from a model's name to a folder: load, calibrate, prune, save."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from sparse_trainer.budget.options import keeps_all
from sparse_trainer.criteria.calibration.mixture import name_of
from sparse_trainer.cut.decision import Decision
from sparse_trainer.cut.record import plan_of
from sparse_trainer.data.corpora.batches import calibration_batches
from sparse_trainer.data.corpora.read import check_source, find
from sparse_trainer.errors import ArgumentError, CheckpointError, DataError
from sparse_trainer.fields import check_counts, check_seed
from sparse_trainer.folders.configs import read_config
from sparse_trainer.folders.exports import find_export
from sparse_trainer.folders.load import load_model
from sparse_trainer.folders.replace import check_target
from sparse_trainer.folders.rescue import rescuing, spare_folder
from sparse_trainer.folders.save import least_bytes, save_pruned
from sparse_trainer.folders.tokenizers import find_tokenizer
from sparse_trainer.inputs.limits import check_positions, positions_of
from sparse_trainer.one_shot.options import PruneOptions
from sparse_trainer.one_shot.prune import prune_by
from sparse_trainer.plan.document import Plan
from sparse_trainer.run import pictures
from sparse_trainer.run.latency import find_device, find_dtype

Tell = Callable[[str], None]
"""Takes one line about what is being done."""

DataType = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """Which model is pruned, and where."""

    name_or_path: str
    """Folder, hub id, or `package:NAME/FOLDER` for weights inside an installed Python package."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    dtype: DataType = "auto"
    """Number type to load and save; auto = as it is stored."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; null = an accelerator where there is one."""

    def load(self, *, by_block: bool = False) -> PreTrainedModel:
        """Load the model onto its device; where blocks go there one at a time, onto the CPU.

        Raises:
            ArgumentError: No such device.
            CheckpointError: It cannot be loaded.
        """
        dtype = "auto" if self.dtype == "auto" else find_dtype(self.dtype)
        place = None if by_block else self.place()
        model = load_model(self.name_or_path, device=place, revision=self.revision, dtype=dtype)
        model.eval()
        return model

    def place(self) -> torch.device:
        """Return the device."""
        if self.device is not None:
            return find_device(self.device)
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")

    def config(self) -> PreTrainedConfig:
        """Read the config alone.

        Raises:
            CheckpointError: There is none, or it cannot be read.
        """
        return read_config(self.name_or_path, self.revision)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Load the tokenizer; None where there is none.

        Raises:
            CheckpointError: It is damaged, or needs code of its own.
        """
        return find_tokenizer(self.name_or_path, self.revision)


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationOptions:
    """The text that criteria and repair look at."""

    source: str = "wikitext2"
    """Name of a corpus, or a local file."""
    file: str | None = None
    """A local file that stands in for the corpus on the hub."""
    samples: int = 128
    """Sequences."""
    length: int = 512
    """Tokens per sequence."""
    seed: int = 42
    """Which sequences are drawn."""
    batch_size: int = 8
    """Sequences per forward pass."""
    chat_template: bool = False
    """Put the text into the chat template of an instruction-tuned model."""

    def __post_init__(self) -> None:
        check_counts(samples=self.samples, batch_size=self.batch_size)
        check_counts(2, length=self.length)
        check_seed(self.seed)

    def check(self) -> None:
        """Raise `DataError` for a corpus that is not known or a file that is not there: before anything is loaded."""
        check_source(find(self.source), "calibration", self.file)

    def batches(self, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Tensor]]:
        """Read and tokenize the text.

        Raises:
            DataError: It cannot be read, or is too short.
        """
        options = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "source"}
        return calibration_batches(self.source, tokenizer, **options)


@dataclass(frozen=True, kw_only=True)
class PruneSection(PruneOptions):
    """The options of `prune` as recipes and the command line write them; checked when they are made."""

    criterion: str | dict[str, float] = "wifv"
    allocation: str | dict[str, float] | None = None

    def __post_init__(self) -> None:
        if keeps_all(self.density):
            raise ArgumentError("density", "1 keeps all: nothing would be pruned.", "Give less, e.g. 0.8.")
        if self.reconstruct is not None:
            # On the command line names have hyphens.
            object.__setattr__(self, "reconstruct", self.reconstruct.replace("-", "_"))
        PruneOptions.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A model that was cut, and how that came about."""

    model: PreTrainedModel
    plan: Plan
    decisions: Sequence[Decision]
    """One per round."""

    def draw(self, folder: Path) -> None:
        """Write pictures and tables of scores and widths into a folder."""
        pictures.write_pictures(self.plan, self.decisions, folder)


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
    check_target(folder, overwrite=overwrite)
    find_export(export)
    check_calibration(options, calibration)
    if draw:
        pictures.check_drawing()
    place = source.place()
    tokenizer = source.tokenizer()
    batches = read_calibration(source, tokenizer, options, calibration, tell)
    tell(f"loading {source.name_or_path}")
    model = source.load(by_block=options.by_block)
    check_target(folder, overwrite=overwrite, need=least_bytes(model, options.density))
    pruned = prune_model(model, batches, options, device=place, inplace=True, tell=tell)
    tell(f"saving to {folder}")
    with rescuing(pruned.model, tokenizer, spare_folder(folder)):
        save_pruned(
            pruned.model,
            folder,
            processor=tokenizer,
            export=export,
            overwrite=overwrite,
            beside=pruned.draw if draw else None,
        )
    return folder, pruned.plan, {what: folder / name for what, name in pictures.FILES.items() if draw}


def check_calibration(options: PruneOptions, calibration: CalibrationOptions | None) -> None:
    """Raise `DataError` where criterion or repair need text and none is named, or none of this name is there."""
    if calibration is not None:
        calibration.check()
    if calibration is None and options.requests:
        raise DataError(
            "calibration", f"{name_of(options.criterion)} needs one.",
            "Set `calibration`: a corpus such as wikitext2, or a file; or choose magnitude or random without repair.",
        )  # fmt: skip


def read_calibration(
    source: SourceOptions,
    tokenizer: PreTrainedTokenizerBase | None,
    options: PruneOptions,
    calibration: CalibrationOptions | None,
    tell: Tell,
) -> list[dict[str, Tensor]] | None:
    """Return the calibration text as batches, where criterion or repair look at it: before the model is loaded.

    Raises:
        ArgumentError: Sequences longer than the model's positions.
        CheckpointError: The model has no tokenizer, or no config that can be read.
        DataError: The text cannot be had, or is too short.
    """
    if calibration is None:
        return None
    if not options.requests:
        tell(f"{calibration.source} is not read: {name_of(options.criterion)} looks at weights only")
        return None
    check_positions("length", calibration.length, positions_of(source.config()))
    if tokenizer is None:
        raise CheckpointError(
            source.name_or_path, "has no tokenizer to read calibration text with.",
            "Save one into the folder; or choose magnitude or random without repair.",
        )  # fmt: skip
    tell(f"reading {calibration.source}")
    return calibration.batches(tokenizer)


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
    tell(f"pruning by {name_of(options.criterion)}")
    decisions: list[Decision] = []
    place = device if options.by_block else None
    pruned, plan = prune_by(options, model, batches, device=place, inplace=inplace, watch=decisions.append)
    return Pruned(model=pruned, plan=plan, decisions=decisions)
