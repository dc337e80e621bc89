"""The two sets of a recipe as running text: how their rows become one text, and that text blocks of tokens."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from sparse_trainer.data.corpora.base import Corpus, Row
from sparse_trainer.data.corpora.encode import frame_of, stream
from sparse_trainer.data.corpora.read import joined, texts
from sparse_trainer.data.corpora.table import CORPORA
from sparse_trainer.data.readers import TEXTS, ending
from sparse_trainer.data.splits import DataOptions, load_splits
from sparse_trainer.errors import DataError, RecipeError, shown

BLANK_LINE = "\n\n"


@dataclass(frozen=True, kw_only=True)
class RunningText:
    """Rows that are read one after the other."""

    corpus: Corpus
    """How a row becomes text, and what stands between two."""
    rows: Dataset

    def texts(self) -> Iterator[str]:
        """Yield the text of each row.

        Raises:
            DataError: A row that is no text; the message says which.
        """
        return texts(self.corpus, self.rows)

    def tokens(self, tokenizer: Any) -> list[int]:
        """Return the whole text as token ids, without special tokens."""
        return stream(tokenizer, joined(self.corpus, self.texts()), self.corpus.joint, None)

    def blocks(self, tokenizer: Any, length: int) -> list[list[int]]:
        """Return the text in blocks of `length` tokens, each behind what the tokenizer puts in front of a text.

        Raises:
            DataError: A row that is no text, or too little text.
        """
        before = frame_of(tokenizer).before
        ids = self.tokens(tokenizer)
        found = blocks_of(ids, before, length - len(before))
        if not found:
            raise DataError(self.corpus.name, f"{len(ids)} tokens of text.", "Give more text.")
        return found


def running_texts(data: DataOptions, separator: str | None) -> tuple[RunningText, RunningText]:
    """Return the training and the validation set, whole.

    Args:
        separator: What stands between two rows; None = as the corpus of this name has it, nothing between the lines of
            a file, else a blank line.

    Raises:
        RecipeError: Not one column; a corpus that cannot be trained on.
        DataError: A set cannot be had, or lacks the column.
    """
    if len(data.text_columns) != 1:
        raise RecipeError(
            "data.text_columns", f"{len(data.text_columns)} columns.", "Name the one that holds text."
        )
    if data.train_file is None and data.source in CORPORA:
        train = validation = _named(data.source, separator)
        data = dataclasses.replace(data, source=train.hub, config=train.config)
    else:
        train = _of_rows("data: train set", data.text_columns[0], data.train_file, separator)
        validation = _of_rows("data: validation set", data.text_columns[0], data.validation_file, separator)
    splits = load_splits(
        dataclasses.replace(data, max_train_samples=None, max_eval_samples=None), data.text_columns
    )
    return (
        RunningText(corpus=train, rows=splits.train),
        RunningText(corpus=validation, rows=splits.validation),
    )


def _named(source: str, separator: str | None) -> Corpus:
    corpus = CORPORA[source]
    if corpus.text is None or corpus.files is not None:
        usable = [name for name, known in CORPORA.items() if known.text is not None and known.files is None]
        raise RecipeError(
            "data.source",
            f"the corpus {shown(source)} is not for training.",
            f"Give {' or '.join(usable)}, a hub id, or files.",
        )
    return corpus if separator is None else dataclasses.replace(corpus, joint=separator)


def _of_rows(name: str, column: str, file: str | None, separator: str | None) -> Corpus:
    """Return how the rows of a set are read that has no name."""
    is_text = file is not None and ending(Path(file)) in TEXTS

    def text_of(row: Row) -> str:
        if not isinstance(row[column], str):
            raise DataError(
                name,
                f"{shown(row[column])} in column {column!r} is no text.",
                "Correct the row, or drop it.",
            )
        return str(row[column])

    joint = ("" if is_text else BLANK_LINE) if separator is None else separator
    return Corpus(name=name, hub=None, text=text_of, joint=joint, is_one_text=is_text)


def blocks_of(ids: Sequence[int], before: Sequence[int], room: int) -> list[list[int]]:
    """Return a text in blocks of `room` tokens, each behind the same special tokens; the last one may be shorter.

    >>> blocks_of([5, 6, 7], [1], room=2)
    [[1, 5, 6], [1, 7]]
    >>> blocks_of([5, 6, 7], [], room=2)  # of a single token nothing can be learned
    [[5, 6]]
    """
    cut = ([*before, *ids[start : start + room]] for start in range(0, len(ids), room))
    return [block for block in cut if len(block) > 1]
