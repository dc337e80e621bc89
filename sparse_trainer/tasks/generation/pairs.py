"""Pairs of texts for an encoder-decoder: what it reads, and what it is to write."""

import logging
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sparse_trainer.errors import DataError, shown

logger = logging.getLogger(__name__)


def encoded_pairs(
    rows: Dataset,
    columns: tuple[str, str],
    tokenizer: PreTrainedTokenizerBase,
    lengths: tuple[int, int],
    prefix: str,
    where: str,
) -> Dataset:
    """Return `input_ids`, `attention_mask` and `labels` of pairs of texts; pairs with an empty one are left out.

    Args:
        columns: What is read, and what is to be written.
        lengths: Tokens of each at most.
        prefix: Stands in front of what is read.

    Raises:
        DataError: A text that is no text, or no pair that is left.
    """
    source, target = columns

    def encode(batch: Mapping[str, list[Any]]) -> dict[str, Any]:
        read = tokenizer([prefix + text for text in batch[source]], truncation=True, max_length=lengths[0])
        written = tokenizer(text_target=batch[target], truncation=True, max_length=lengths[1])
        return {
            "input_ids": read["input_ids"],
            "attention_mask": read["attention_mask"],
            "labels": written["input_ids"],
        }

    kept = _complete(rows, columns, where)
    return kept.map(encode, batched=True, remove_columns=rows.column_names, desc=f"encoding {where}")


def _complete(rows: Dataset, columns: tuple[str, str], where: str) -> Dataset:
    """Leave out pairs with an empty text, and say how many they are."""
    for column in columns:
        for number, text in enumerate(rows[column]):
            if not isinstance(text, str | None):
                raise DataError(
                    f"{where}, row {number}", f"{shown(text)} in column {column!r} is no text.",
                    "Correct the row, or drop it.",
                )  # fmt: skip
    kept = rows.filter(
        lambda row: all((row[column] or "").strip() for column in columns), desc=f"checking {where}"
    )
    if len(kept) == 0:
        raise DataError(where, f"no row has text in both {' and '.join(columns)}.", "Name the right columns.")
    if len(kept) < len(rows):
        logger.warning(
            "%s: %d of %d rows have an empty text, and are left out", where, len(rows) - len(kept), len(rows)
        )
    return kept
