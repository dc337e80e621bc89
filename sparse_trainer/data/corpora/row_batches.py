"""Calibration batches of rows that stand by themselves, as classifiers and encoders of texts read them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_trainer.data.corpora.base import Corpus, Row
from sparse_trainer.data.corpora.read import find, rows
from sparse_trainer.errors import ArgumentError, DataError, TooLittleDataError

# Shape legend: B = sequences, T = tokens.

_PADDING: Mapping[str, int] = {"attention_mask": 0, "token_type_ids": 0}
_LABELS = ("label", "labels")


def row_batches(
    source: str,
    tokenizer: Any,
    *,
    columns: Sequence[str] = (),
    pairs: bool = True,
    samples: int = 128,
    length: int = 512,
    seed: int = 42,
    batch_size: int = 8,
    file: str | Path | None = None,
) -> list[dict[str, Tensor]]:
    """Return calibration batches of rows drawn at random, with little padding, in an order of no meaning.

    Args:
        source: Path of a local table, or name of a corpus.
        columns: With the texts; none = `text`, or the only column of text.
        pairs: Whether two columns are one sequence; else each text is.
        samples: Sequences.
        length: Tokens per sequence at most.
        seed: Draws rows, and the order of batches.
        file: Local table that stands in for the hub data set.

    Raises:
        ArgumentError: Three columns or more for a pair.
        DataError: No such table or column, an entry that is no text, or too few rows.
    """
    if pairs and len(columns) > 2:
        raise ArgumentError("text_columns", f"{len(columns)} columns.", "Name one, or a pair of them.")
    corpus, generator = find(source), torch.Generator().manual_seed(seed)
    found = rows(corpus, "calibration", file)
    order = torch.randperm(len(found), generator=generator).tolist()
    named = tuple(columns) or _only_column(corpus, found[0] if len(found) else {})
    sequences: list[Mapping[str, list[int]]] = []
    for texts in _texts(corpus, found, order, named, pairs=pairs):
        sequences.append(tokenizer(*texts, truncation=True, max_length=length))
        if len(sequences) == samples:
            break
    if len(sequences) < samples:
        raise TooLittleDataError(
            corpus.name, f"has {len(sequences)} texts, and {samples} are needed.",
            "Ask for fewer `samples`, or give more rows.",
        )  # fmt: skip
    sequences.sort(key=lambda sequence: len(sequence["input_ids"]))
    batches = [
        _padded(sequences[start : start + batch_size], tokenizer.pad_token_id or 0)
        for start in range(0, samples, batch_size)
    ]
    return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]


def _only_column(corpus: Corpus, row: Row) -> tuple[str]:
    """Return the column `text`, or the only one that holds text."""
    if "text" in row:
        return ("text",)
    named = [name for name, value in row.items() if isinstance(value, str) and name not in _LABELS]
    if len(named) == 1:
        return (named[0],)
    raise DataError(
        corpus.name, f"{len(named)} columns hold text: {', '.join(named) or 'none'}.", "Set `text_columns`."
    )


def _texts(
    corpus: Corpus, found: Sequence[Row], order: Sequence[int], columns: Sequence[str], *, pairs: bool
) -> Iterator[tuple[str, ...]]:
    """Yield the texts of each sequence: those of a row together, or each alone; rows without text are left out."""
    for number in order:
        row = found[number]
        for column in columns:
            if not isinstance(row.get(column), str):
                what = f"no column {column!r}." if column not in row else f"{column!r} is no text."
                has = ", ".join(row)
                raise DataError(f"{corpus.name}, row {number}", what, f"Set `text_columns`: it has {has}.")
        texts = tuple(row[column] for column in columns)
        for together in (texts,) if pairs else ((text,) for text in texts):
            if all(text.strip() for text in together):
                yield together


def _padded(sequences: Sequence[Mapping[str, list[int]]], padding: int) -> dict[str, Tensor]:
    """Return sequences as one batch, padded on the right."""
    longest = max(len(sequence["input_ids"]) for sequence in sequences)
    return {
        name: torch.tensor(
            [
                [*each[name], *[_PADDING.get(name, padding)] * (longest - len(each[name]))]
                for each in sequences
            ]
        )
        for name in sequences[0]
        if name in ("input_ids", *_PADDING)
    }
