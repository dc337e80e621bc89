"""Tag words: named entities, parts of speech."""

import logging
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar, Final, final

import numpy as np
from datasets import ClassLabel, Dataset, LargeList, List
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sparse_trainer.data.splits import DataOptions, load_splits
from sparse_trainer.errors import DataError, RecipeError, shown
from sparse_trainer.folders.load import load_model
from sparse_trainer.tasks.base import Prepared, Task
from sparse_trainer.tasks.entities import OUTSIDE, check_scheme, entity_scores
from sparse_trainer.tasks.heads import check_head, class_names
from sparse_trainer.tasks.metrics import check_metrics

logger = logging.getLogger(__name__)

IGNORED: Final = -100
"""Label of pieces that neither train nor count."""


@final
@dataclass(frozen=True, kw_only=True)
class TokenClassification(Task):
    """A tag per word. A word's first piece carries its tag; its other pieces neither train nor count."""

    METRICS: ClassVar = ("f1", "precision", "recall", "accuracy")

    labels: tuple[str, ...] | None = None
    """Tags in the order of their numbers; default: those of the data."""
    metrics: tuple[str, ...] = ("f1",)
    """Over entities f1, precision, recall, as seqeval counts them; over words accuracy. The first is the headline."""

    pipeline = "token-classification"
    auto_class = "AutoModelForTokenClassification"

    def __post_init__(self) -> None:
        check_metrics(self.metrics, self.METRICS)

    def prepare(self, data: DataOptions, processor: PreTrainedTokenizerBase) -> Prepared:
        """Load, check and encode the data: a column with lists of words, one with lists of tags.

        Raises:
            DataError: Missing columns, tags that do not fit the words or are of no known scheme.
            RecipeError: Not one column of words, or a tokenizer that does not say where its pieces lie.
        """
        if len(data.text_columns) != 1:
            raise RecipeError(
                "data.text_columns",
                f"{len(data.text_columns)} columns.",
                "Name the one with the words: [tokens].",
            )
        if not processor.is_fast:
            raise RecipeError(
                "model.name_or_path",
                "its tokenizer does not say where its pieces lie in a text (it is no fast one).",
                "Take a model that has a tokenizer.json.",
            )
        splits = load_splits(data, (*data.text_columns, data.label_column))
        labels = tag_names(splits.train, data.label_column, self.labels)
        if set(self.metrics) != {"accuracy"}:
            check_scheme(labels)
        encode = _Encoder(data, labels, processor)
        return Prepared(
            train=encode(splits.train, "train set"),
            validation=encode(splits.validation, "validation set"),
            labels=labels,
            example=" ".join(splits.validation[0][data.text_columns[0]][:40]),
            collator=DataCollatorForTokenClassification(processor),
            compute_metrics=_computing(self.metrics, labels),
        )

    def load_model(self, source: str, revision: str, data: Prepared) -> PreTrainedModel:
        """Load the weights with a head for these tags; a fresh head where the checkpoint has none.

        Raises:
            CheckpointError: The model cannot be loaded, or is a checkpoint with gates.
            DataError: The checkpoint was fine-tuned for another number of tags.
        """
        check_head(source, revision, "ForTokenClassification", data.labels)
        names = class_names(data.labels)
        return load_model(source, AutoModelForTokenClassification, revision=revision, **names)


def tag_names(dataset: Dataset, column: str, asked: Sequence[str] | None) -> tuple[str, ...]:
    """Return the tags in order: those asked for, those the data set declares, or those found, `O` first.

    >>> tag_names(Dataset.from_dict({"tags": [["B-PER", "O"]]}), "tags", None)
    ('O', 'B-PER')
    """
    if asked is not None:
        return tuple(asked)
    feature = dataset.features[column]
    if isinstance(feature, List | LargeList) and isinstance(feature.feature, ClassLabel):
        return tuple(feature.feature.names)
    found = {str(tag) for tags in dataset[column] if isinstance(tags, list) for tag in tags}
    return tuple(sorted(found, key=lambda tag: (tag != OUTSIDE, tag)))


def aligned(words: Sequence[str], tags: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[int]:
    """Return the label of each piece: a word's tag on its first piece, IGNORED on all others.

    Args:
        spans: Where each piece begins and ends in the words joined by spaces; special tokens are empty.

    >>> aligned(["New", "York"], [1, 2], [(0, 0), (0, 3), (4, 6), (6, 8), (0, 0)])
    [-100, 1, 2, -100, -100]
    """
    ends = list(accumulate(len(word) + 1 for word in words))
    labels, before = [], -1
    for start, end in spans:
        word = bisect_right(ends, end - 1) if end > start else before
        labels.append(IGNORED if word == before else tags[word])
        before = word
    return labels


@dataclass(frozen=True)
class _Encoder:
    """Turns rows into token ids and `labels`.

    Words are joined by spaces, so that they are cut into the same pieces as a text that the pipeline reads.
    """

    data: DataOptions
    labels: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase

    def __call__(self, dataset: Dataset, where: str) -> Dataset:
        """Return token ids and `labels`, nothing else; say how many words have no token.

        Raises:
            DataError: A row whose words or tags are none, or do not fit together.
        """

        def encode(batch: Mapping[str, list[Any]], rows: list[int]) -> Mapping[str, Any]:
            return self._encoded(batch, rows, where)

        encoded = dataset.map(
            encode,
            batched=True,
            with_indices=True,
            remove_columns=dataset.column_names,
            desc=f"encoding {where}",
        )
        words = sum(map(len, dataset[self.data.text_columns[0]]))
        tagged = sum(label != IGNORED for labels in encoded["labels"] for label in labels)
        if tagged < words:
            logger.warning(
                "%s: %d of %d words lie beyond data.max_length (%d) or have no token; they do not count",
                where, words - tagged, words, self.data.max_length,
            )  # fmt: skip
        return encoded

    def _encoded(self, batch: Mapping[str, list[Any]], rows: list[int], where: str) -> Mapping[str, Any]:
        words = batch[self.data.text_columns[0]]
        tags = [
            self._tag_ids(own, given, f"data: {where}, row {row}")
            for own, given, row in zip(words, batch[self.data.label_column], rows, strict=True)
        ]
        encoding = self.tokenizer(
            [" ".join(own) for own in words],
            truncation=True,
            max_length=self.data.max_length,
            return_offsets_mapping=True,
        )
        spans = encoding.pop("offset_mapping")
        return {**encoding, "labels": list(map(aligned, words, tags, spans))}

    def _tag_ids(self, words: object, tags: object, where: str) -> list[int]:
        """Return the numbers of the tags of one row."""
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            problem = f"column {self.data.text_columns[0]!r} holds {shown(words)}, no list of words."
            raise DataError(where, problem, "Give a list with at least one word, or drop the row.")
        if not isinstance(tags, list) or len(tags) != len(words):
            count = len(tags) if isinstance(tags, list) else "no list of"
            problem = f"{len(words)} words, but {count} tags in column {self.data.label_column!r}."
            raise DataError(where, problem, "Give a tag for each word, or drop the row.")
        numbers = {name: number for number, name in enumerate(self.labels)}
        ids = [tag if isinstance(tag, int) else numbers.get(str(tag), -1) for tag in tags]
        for tag, number in zip(tags, ids, strict=True):
            if not 0 <= number < len(self.labels):
                problem = (
                    f"has the tag {shown(tag)}, which is not one of the {len(self.labels)} of the train set."
                )
                raise DataError(
                    where, problem, f"Correct it, or set task.labels. Known: {', '.join(self.labels)}."
                )
        return ids


def _computing(names: Sequence[str], labels: Sequence[str]) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return the `compute_metrics` of a Trainer: scores of the tags with the highest logits."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        logits = prediction.predictions
        predicted_NT = np.asarray(logits[0] if isinstance(logits, tuple) else logits).argmax(axis=-1)
        references_NT = np.asarray(prediction.label_ids)
        counts_NT = references_NT != IGNORED

        def named(numbers_NT: Any) -> list[list[str]]:
            return [
                [labels[number] for number in numbers[counts]]
                for numbers, counts in zip(numbers_NT, counts_NT, strict=True)
            ]

        scores = entity_scores(named(predicted_NT), named(references_NT))
        return {name: scores[name] for name in names}

    return compute
