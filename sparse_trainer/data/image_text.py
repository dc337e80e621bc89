"""Calibration batches of images with text, made by the processor of an image-text model: one row per batch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import PIL.Image
import torch
from torch import Tensor

from sparse_trainer.data.openable import said_by
from sparse_trainer.data.readers import TABLES, ending, read_table
from sparse_trainer.errors import ArgumentError, DataError

_IGNORED: Final = -100
"""Label that no loss counts."""


def image_text_batches(
    file: str | Path, processor: Any, *, samples: int = 128, seed: int = 42
) -> list[dict[str, Tensor]]:
    """Return calibration batches for `prune(model, batches)` from rows of images with text.

    Each row is a batch: processors give images of several sizes as differently many patches, and nothing is padded.
    Labels are the text tokens; what stands for the image has none, but counts as a token for statistics over
    activations, for the model computes with it.

    Args:
        file: JSON lines, CSV or Parquet with the columns `image`, a path relative to the file, and `text`.
        processor: Of the model, e.g. `AutoProcessor.from_pretrained(folder)`. With a chat template of its own, the
            row is put into it as a user's message; else the image's token is put in front of the text.
        samples: Rows.
        seed: Draws the rows.

    Raises:
        DataError: The file cannot be read or has too few rows; a row without image or text, or whose image does not
            open: its number and path are named; or the processor makes no inputs of it.
        ArgumentError: `samples` below 1, or a processor without a tokenizer, an image processor or an image token.
    """
    if samples < 1:
        raise ArgumentError("samples", f"{samples} is too small.", "Give 1 or more.")
    _check_processor(processor)
    path = Path(file)
    rows = read_table(path, str(path))
    if len(rows) < samples:
        raise DataError(
            str(path), f"has {len(rows)} rows, and {samples} are needed.",
            "Ask for fewer samples, or give more rows.",
        )  # fmt: skip
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()[:samples]
    return [_batch(rows[number], path, number, processor) for number in drawn]


def holds_images(file: str | Path) -> bool:
    """Tell whether the rows of a file have images.

    Raises:
        DataError: It cannot be read.
    """
    path = Path(file)
    return ending(path) in TABLES and "image" in read_table(path, str(path)).column_names


def _check_processor(processor: Any) -> None:
    # A tokenizer or an image processor alone has not both parts; processors of sound have no image token.
    for part, what in (
        ("tokenizer", "tokenizer"),
        ("image_processor", "image processor"),
        ("image_token", "image token"),
    ):
        if getattr(processor, part, None) is None:
            raise ArgumentError(
                "processor", f"{type(processor).__name__} has no {what}.",
                "Load the model's own with AutoProcessor; its folder needs the files of tokenizer and image processor.",
            )  # fmt: skip


def _batch(row: Mapping[str, Any], file: Path, number: int, processor: Any) -> dict[str, Tensor]:
    where = f"{file}, row {number}"
    name, text = row.get("image"), row.get("text")
    for column, value in (("image", name), ("text", text)):
        if not isinstance(value, str) or not value.strip():
            raise DataError(where, f"has no {column}.", "Give every row `image`, a path, and `text`.")
    assert isinstance(name, str)
    assert isinstance(text, str)
    if processor.image_token in text:
        what = f"its text has the token of an image, {processor.image_token}."
        raise DataError(where, what, "Take it out of the text: it is put there for the image of the row.")
    image = _opened(file.parent / name, where)
    try:
        inputs = processor(images=[image], text=[_prompt(processor, text)], return_tensors="pt")
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        raise DataError(
            where, f"{type(processor).__name__} makes no inputs of it ({said_by(error)}).",
            "Correct or drop the row, or use the processor of this model.",
        ) from error  # fmt: skip
    batch = {key: value for key, value in inputs.items() if isinstance(value, Tensor)}
    return batch | {"labels": _labels(batch["input_ids"], processor)}


def _opened(path: Path, where: str) -> PIL.Image.Image:
    try:
        with PIL.Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        problem = f"the image {path} does not open ({said_by(error)})."
        raise DataError(where, problem, "Replace it, or drop the row.") from error


def _prompt(processor: Any, text: str) -> str:
    """Return the text of a row with the token that the processor puts the image in place of."""
    if getattr(processor, "chat_template", None) is None:
        return f"{processor.image_token}\n{text}"
    content = [{"type": "image"}, {"type": "text", "text": text}]
    filled: str = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    return filled


def _labels(ids_1T: Tensor, processor: Any) -> Tensor:
    """Return the labels of a row, [1, T]: its text tokens."""
    image_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    return ids_1T.masked_fill(ids_1T == image_id, _IGNORED)
