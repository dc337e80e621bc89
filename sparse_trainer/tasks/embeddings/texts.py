"""Texts to embed: read off the columns of a data set, each once, encoded, with the dense model's embeddings."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets.fingerprint import generate_random_fingerprint
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparse_trainer.errors import DataError
from sparse_trainer.inputs.evaluating import evaluating
from sparse_trainer.inputs.pooling import Pooling

# Shape legend: B = texts, D = hidden features.

_AT_ONCE = 32
"""Texts that the dense model embeds in one pass."""


def read_texts(dataset: Dataset, columns: Sequence[str], where: str) -> list[list[str]]:
    """Return the texts of each column, without space around them; of a single column, those that are not empty.

    Raises:
        DataError: One is no text, or, of a pair, empty; or there are none.
    """
    found = []
    for column in columns:
        place, entries = f"data: {where}, column {column!r}", list(dataset[column])
        texts = [entry.strip() if isinstance(entry, str) else "" for entry in entries]
        is_lines = len(columns) == 1 and all(isinstance(entry, str) for entry in entries)
        bad = [row for row, text in enumerate(texts) if not text]
        if bad and not is_lines:
            raise DataError(
                place,
                f"{len(bad)} of {len(texts)} entries are no text or empty, the first in row {bad[0]}.",
                "Put text into those rows, or drop them.",
            )
        found.append([text for text in texts if text])
        if not found[-1]:
            raise DataError(place, "all entries are empty.", "Give at least one text.")
    return found


def read_scores(dataset: Dataset, column: str) -> list[float]:
    """Return how similar the texts of each row are, as people say.

    Raises:
        DataError: One is no number, or all are the same.
    """
    where, scores = f"data: validation set, column {column!r}", list(dataset[column])
    for row, score in enumerate(scores):
        if not isinstance(score, int | float):
            raise DataError(where, f"row {row} has {score!r}, which is no number.", "Put a number there.")
    if len(set(scores)) < 2:
        raise DataError(where, "all scores are the same.", "Give pairs of different similarity.")
    return [float(score) for score in scores]


def distinct(*columns: Iterable[str]) -> list[str]:
    """Return each text once, the shortest first, so that batches in this order hold little padding.

    >>> distinct(["three", "one", "three"], ["four"])
    ['one', 'four', 'three']
    """
    return sorted(dict.fromkeys(chain(*columns)), key=len)


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, where: str) -> Dataset:
    """Return the tokens of each text."""

    def tokens(batch: Mapping[str, list[str]]) -> Mapping[str, Any]:
        encoding: Mapping[str, Any] = tokenizer(batch["text"], truncation=True, max_length=max_length)
        return encoding

    rows = Dataset.from_dict({"text": list(texts)})
    return rows.map(tokens, batched=True, remove_columns=["text"], desc=f"encoding {where}")


def with_targets(
    rows: Dataset,
    model: PreTrainedModel,
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
    pooling: Pooling,
    where: str,
) -> Dataset:
    """Return encoded texts with a model's embeddings of them as `labels`, [D] in float32 each."""

    @torch.no_grad()
    def embed(batch: Mapping[str, list[Any]]) -> dict[str, NDArray[np.float32]]:
        features = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        inputs = {name: value.to(model.device) for name, value in collator(features).items()}
        embeddings_BD = pooling(model(**inputs)["last_hidden_state"], inputs["attention_mask"])
        return {"labels": embeddings_BD.cpu().numpy()}

    with evaluating(model):
        return rows.map(
            embed,
            batched=True,
            batch_size=_AT_ONCE,
            # A hash of the function would be one of the whole model.
            new_fingerprint=generate_random_fingerprint(),
            load_from_cache_file=False,
            desc=f"embedding {where} by the dense model",
        )
