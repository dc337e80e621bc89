"""What is measured on a file of images with questions: choices, or answers of the model's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sparse_trainer.data.image_text.encoder import RowEncoder
from sparse_trainer.data.image_text.rows import ImageRow, check_image_files, read_image_rows
from sparse_trainer.data.readers import read_table
from sparse_trainer.errors import DataError
from sparse_trainer.inputs.limits import positions_of
from sparse_trainer.tasks.language.choices import Accuracy
from sparse_trainer.tasks.language.image_text.answers import WrittenAnswers, answer_questions
from sparse_trainer.tasks.language.image_text.choices import choose_answers
from sparse_trainer.tasks.language.scoring import Tell, check_generates


def image_questions(file: str | Path, limit: int | None = None) -> list[ImageRow]:
    """Return the first rows of a file as questions: all with choices, or none.

    Raises:
        DataError: It cannot be read; a row without image, text or answer; choices in some rows only.
    """
    path = Path(file)
    table = read_table(path, str(path))
    rows = read_image_rows(table, path, range(len(table) if limit is None else min(limit, len(table))))
    for row in rows:
        if not row.answers:
            raise DataError(
                row.where, "has no answer to compare with.",
                "Give `answer` or `answers`, or `choices` with `label`; or calibrate on it.",
            )  # fmt: skip
        if bool(row.choices) != bool(rows[0].choices):
            raise DataError(
                row.where, "is a question of another kind than the first row.",
                "Put questions with and without choices into files of their own.",
            )  # fmt: skip
    return rows


def check_image_questions(file: str | Path, limit: int | None = None) -> None:
    """Read the rows of a file, and open their images once.

    Raises:
        DataError: A row cannot be used, or some images do not open.
    """
    check_image_files(image_questions(file, limit), str(file))


def measure_images(
    model: PreTrainedModel,
    processor: Any,
    rows: Sequence[ImageRow],
    corpus: str,
    *,
    answer_tokens: int | None = None,
    tell: Tell | None = None,
) -> Accuracy | WrittenAnswers:
    """Measure accuracy on questions with choices, or how far people agree with the answers that a model writes.

    Args:
        processor: Of the model, e.g. `AutoProcessor.from_pretrained(folder)`.
        rows: Of `image_questions`.
        answer_tokens: Tokens of a written answer at most; default: 16.

    Raises:
        ArgumentError: A processor without an image processor; a question longer than the model's positions.
        DataError: The processor makes no inputs of a row.
        UnsupportedModelError: The model writes no text.
    """
    check_generates(model)
    encoder = RowEncoder(processor, positions_of(model.config))
    if rows[0].choices:
        return choose_answers(model, encoder, rows, corpus, tell=tell)
    return answer_questions(model, encoder, rows, corpus, answer_tokens=answer_tokens, tell=tell)
