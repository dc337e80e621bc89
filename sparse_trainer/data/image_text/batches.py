"""Calibration batches of images with text: one row per batch."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_trainer.data.image_text.encoder import RowEncoder
from sparse_trainer.data.image_text.rows import read_image_rows
from sparse_trainer.data.readers import read_table
from sparse_trainer.errors import ArgumentError, TooLittleDataError


def image_text_batches(
    file: str | Path, processor: Any, *, samples: int = 128, seed: int = 42, positions: int | None = None
) -> list[dict[str, Tensor]]:
    """Return calibration batches for `prune(model, batches)` from rows of images with text.

    Each row is a batch, and nothing is padded. Labels are the answer of a row, else its text; what stands for an image
    has none, but counts as tokens for statistics over activations, for the model computes with it.

    Args:
        file: JSON lines, CSV or Parquet. Columns: `image`, a path relative to the file, or a list `images`; and `text`
            or `question`, or a conversation, `messages`; and, where there is one, the `answer`, or `choices` with the
            number of the right one, `label`.
        processor: Of the model, e.g. `AutoProcessor.from_pretrained(folder)`.
        samples: Rows.
        seed: Draws the rows.
        positions: Tokens that the model has positions for; None = not known.

    Raises:
        DataError: The file cannot be read or has too few rows; a row without image or text, whose image does not open,
            with more or fewer images than places for them: its number is named; or the processor makes no inputs of it.
        ArgumentError: `samples` below 1; a row longer than `positions`; or a processor without a tokenizer, an image
            processor or an image token.
    """
    if samples < 1:
        raise ArgumentError("samples", f"{samples} is too small.", "Give 1 or more.")
    encoder, path = RowEncoder(processor, positions), Path(file)
    table = read_table(path, str(path))
    if len(table) < samples:
        raise TooLittleDataError(
            str(path), f"has {len(table)} rows, and {samples} are needed.",
            "Ask for fewer `samples`, or give more rows.",
        )  # fmt: skip
    drawn = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed)).tolist()[:samples]
    return [encoder.calibration(row) for row in read_image_rows(table, path, drawn)]
