"""Classify one text, or a pair of texts such as a question and a passage."""

from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, final

from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sparse_trainer.data.splits import DataOptions, label_ids, label_names, load_splits
from sparse_trainer.errors import ArgumentError, DataError, RecipeError
from sparse_trainer.folders.configs import config_values
from sparse_trainer.folders.load import load_model
from sparse_trainer.tasks.base import Prepared, Task
from sparse_trainer.tasks.metrics import classification_metrics


@final
@dataclass(frozen=True, kw_only=True)
class TextClassification(Task):
    """Sequence classification; batches are padded to their longest member."""

    labels: tuple[str, ...] | None = None
    """Names of the classes in the order of their numbers; default: those of the data."""
    metrics: tuple[str, ...] = ("accuracy",)
    """Metrics of the evaluate library; the first one is the headline."""

    pipeline = "text-classification"
    auto_class = "AutoModelForSequenceClassification"

    def __post_init__(self) -> None:
        if not self.metrics:
            raise ArgumentError("metrics", "names none.", "Give e.g. [accuracy].")

    def prepare(self, data: DataOptions, processor: PreTrainedTokenizerBase) -> Prepared:
        """Load, check and encode the data.

        Raises:
            DataError: Missing columns, an empty set, labels out of range, a text that is not text.
            RecipeError: Columns or truncation that do not fit together; an unknown metric.
        """
        _check_columns(data)
        compute_metrics = classification_metrics(self.metrics)
        splits = load_splits(data, (*data.text_columns, data.label_column))
        labels = label_names(splits.train, data.label_column, self.labels)
        return Prepared(
            train=_encoded(splits.train, labels, data, processor, "train set"),
            validation=_encoded(splits.validation, labels, data, processor, "validation set"),
            labels=labels,
            example=_example([splits.validation[0][column] for column in data.text_columns]),
            collator=DataCollatorWithPadding(processor),
            compute_metrics=compute_metrics,
        )

    def load_model(self, source: str, revision: str, data: Prepared) -> PreTrainedModel:
        """Load the weights with a head for these classes; a fresh head where the checkpoint has none.

        Raises:
            CheckpointError: The model cannot be loaded, or is a checkpoint with gates.
            DataError: The checkpoint was fine-tuned for another number of classes.
        """
        values = config_values(source, {"revision": revision})
        _check_head(values, data.labels, source)
        names = dict(enumerate(data.labels))
        return load_model(
            source,
            AutoModelForSequenceClassification,
            revision=revision,
            id2label=names,
            label2id={name: number for number, name in names.items()},
        )


def _example(texts: list[str]) -> str | dict[str, str]:
    """Return one text, or a pair, as the pipeline takes it; long ones are cut to be shown."""
    shown = [shorten(text, 300, placeholder=" ...") for text in texts]
    return shown[0] if len(shown) == 1 else {"text": shown[0], "text_pair": shown[1]}


def _check_columns(data: DataOptions) -> None:
    if len(data.text_columns) not in (1, 2):
        raise RecipeError(
            "data.text_columns",
            f"{len(data.text_columns)} columns.",
            "Name one text column, or a pair of them.",
        )
    if data.truncation == "only_second" and len(data.text_columns) == 1:
        raise RecipeError(
            "data.truncation",
            "'only_second', but there is one text column.",
            "Use longest_first, or name a pair.",
        )


def _check_head(config: Mapping[str, Any], labels: tuple[str, ...], source: str) -> None:
    """Refuse a checkpoint whose classification head has another number of classes than the data."""
    architectures = config.get("architectures") or []
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        return
    num_labels = len(config.get("id2label") or (0, 1))
    if num_labels != len(labels):
        raise DataError(
            f"model.name_or_path: {source}",
            f"its head has {num_labels} classes (num_labels), the data has {len(labels)}: {', '.join(labels)}.",
            "Take a model without a head or with as many classes, or set `labels`.",
        )


def _encoded(
    dataset: Dataset,
    labels: tuple[str, ...],
    data: DataOptions,
    tokenizer: PreTrainedTokenizerBase,
    where: str,
) -> Dataset:
    """Return token ids and `labels`, nothing else."""
    for column in data.text_columns:
        if not all(isinstance(text, str) for text in dataset[column]):
            raise DataError(
                f"data: {where}, column {column!r}",
                "not every entry is text.",
                "Put text into those rows, or drop them.",
            )
    numbers = label_ids(dataset[data.label_column], labels, f"data: {where}, column {data.label_column!r}")

    def encode(batch: Mapping[str, list[Any]]) -> Mapping[str, Any]:
        texts = [batch[column] for column in data.text_columns]
        encoding: Mapping[str, Any] = tokenizer(
            *texts, truncation=data.truncation, max_length=data.max_length
        )
        return encoding

    encoded = dataset.map(encode, batched=True, remove_columns=dataset.column_names, desc=f"encoding {where}")
    return encoded.add_column("labels", numbers)
