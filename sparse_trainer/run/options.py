"""Options of one-shot runs: which model, which calibration text, how it is pruned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparse_trainer.budget.options import keeps_all
from sparse_trainer.data.corpora.batches import calibration_batches
from sparse_trainer.data.corpora.read import check_source, find
from sparse_trainer.data.corpora.row_batches import row_batches
from sparse_trainer.data.readers import TABLES, ending
from sparse_trainer.data.text_files import TextFiles
from sparse_trainer.errors import ArgumentError, DataError
from sparse_trainer.fields import check_counts, check_seed
from sparse_trainer.folders.load import load_model
from sparse_trainer.folders.load_shape import load_shape
from sparse_trainer.one_shot.options import PruneOptions
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
        place = self.place_of_model(by_block=by_block)
        model = load_model(self.name_or_path, device=place, revision=self.revision, dtype=dtype)
        model.eval()
        return model

    def shape(self) -> PreTrainedModel:
        """Return the model without weights, on the meta device: what it cannot be asked for shows at once.

        Raises:
            CheckpointError: No readable config.
        """
        dtype = None if self.dtype == "auto" else find_dtype(self.dtype)
        return load_shape(self.name_or_path, revision=self.revision, dtype=dtype)

    def place_of_model(self, *, by_block: bool = False) -> torch.device:
        """Return where the model lies: on the device, or on the CPU where blocks go there one at a time."""
        return torch.device("cpu") if by_block else self.place()

    def place(self) -> torch.device:
        """Return the device."""
        if self.device is not None:
            return find_device(self.device)
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")


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
    text_columns: tuple[str, ...] = ()
    """Of a table: columns of text, where each row stands by itself; of classifiers two are read together, of encoders
    each is a text. None = `text`, or the only column of text."""
    chat_template: bool = False
    """Put the text into the chat template of an instruction-tuned model."""

    def __post_init__(self) -> None:
        check_counts(samples=self.samples, batch_size=self.batch_size)
        check_counts(2, length=self.length)
        check_seed(self.seed)
        if self.text_columns and self.chat_template:
            raise ArgumentError("text_columns", "stand beside a chat template.", "Drop one of the two.")

    def check(self) -> None:
        """Raise `DataError` for a corpus that is not known or a file that is not there: before anything is loaded."""
        check_source(find(self.source), "calibration", self.file)

    @property
    def told(self) -> dict[str, str]:
        """What a card says of it; local files by their names alone."""
        return {"calibrated on": f"{self.samples} x {self.length} tokens of {self.name}, seed {self.seed}"}

    @property
    def name(self) -> str:
        """The corpus, or the name of a local file without its folder."""
        return Path(self.source).name if find(self.source).file else self.source

    @property
    def local_file(self) -> str | None:
        """The local file that is read, None where it is the hub."""
        return find(self.source).file if self.file is None else self.file

    def batches(
        self, tokenizer: PreTrainedTokenizerBase, *, by_row: bool = False, pairs: bool = True
    ) -> list[dict[str, Tensor]]:
        """Read and tokenize the text.

        Args:
            by_row: Whether the model reads the rows of a table one by one; else only where columns are named.
            pairs: Whether it reads two texts of a row together.

        Raises:
            ArgumentError: Columns that cannot be read together.
            DataError: It cannot be read, or is too short.
        """
        own = ("source", "text_columns", "chat_template")
        options = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in own}
        if self.text_columns or (by_row and self._is_table and not self.chat_template):
            return row_batches(self.source, tokenizer, columns=self.text_columns, pairs=pairs, **options)
        return calibration_batches(self.source, tokenizer, chat_template=self.chat_template, **options)

    @property
    def _is_table(self) -> bool:
        """Whether a local table is named itself, rather than a corpus whose rows mean something else."""
        named = find(self.source).file
        return named is not None and ending(Path(named)) in TABLES


@dataclass(frozen=True, kw_only=True, slots=True)
class VocabularyOptions:
    """Which tokens of the model stay: those that a corpus uses."""

    corpus: tuple[str, ...]
    """Local files: plain text, or tables with text in any column."""
    keep_minimum_count: int = 1
    """How often a token has to occur to stay."""

    def __post_init__(self) -> None:
        check_counts(keep_minimum_count=self.keep_minimum_count)

    @property
    def files(self) -> TextFiles:
        """The corpus."""
        return TextFiles(tuple(map(Path, self.corpus)))


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


def check_calibration(options: PruneOptions, calibration: CalibrationOptions | None) -> None:
    """Raise `DataError` where criterion or repair need text and none is named, or none of this name is there."""
    if calibration is not None:
        calibration.check()
    if calibration is None and options.reads_data:
        raise DataError(
            "calibration", f"{options.name} needs one.",
            "Set `calibration`: a corpus such as wikitext2, or a file; or choose magnitude or random without repair.",
        )  # fmt: skip
