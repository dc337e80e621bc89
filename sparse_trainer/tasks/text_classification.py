"""Classify one text, or a pair of texts such as a question and a passage."""

from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, Literal, final

import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sparse_trainer.data.splits import DataOptions, label_ids, label_names, label_numbers, load_splits
from sparse_trainer.errors import ArgumentError, DataError, RecipeError
from sparse_trainer.folders.load import load_model
from sparse_trainer.tasks.base import Named, Outputs, Prepared, Task
from sparse_trainer.tasks.heads import check_head, class_names
from sparse_trainer.tasks.metrics import (
    check_metrics,
    classification_metrics,
    metrics_of,
    regression_metrics,
)
from sparse_trainer.tasks.truncation import check_room

# Shape legend: B = examples.
ProblemType = Literal["single_label_classification", "regression"]
"""As in the configs of transformers."""


@final
@dataclass(frozen=True, kw_only=True)
class TextClassification(Task):
    """Sequence classification; batches are padded to their longest member."""

    problem_type: ProblemType = "single_label_classification"
    """`regression` learns one number per text, as of STS-B, by mean squared error."""
    labels: tuple[str, ...] | None = None
    """Names of the classes in the order of their numbers; default: those of the data."""
    metrics: tuple[str, ...] = ("accuracy",)
    """Metrics of the evaluate library; the first one is the headline. Of numbers: pearsonr, spearmanr."""

    pipeline = "text-classification"
    auto_class = "AutoModelForSequenceClassification"

    def __post_init__(self) -> None:
        check_metrics(self.metrics, metrics_of("numbers" if self.is_regression else "classes"))
        if self.is_regression and self.labels is not None:
            raise ArgumentError("labels", "are names of classes; a regression has none.", "Leave them out.")

    @property
    def is_regression(self) -> bool:
        """Whether a number is learned instead of a class."""
        return self.problem_type == "regression"

    @property
    def outputs(self) -> Outputs:
        """Classes are the same, or numbers are close."""
        return Outputs(same=same_number) if self.is_regression else Outputs()

    def prepare(self, data: DataOptions, processor: PreTrainedTokenizerBase) -> Prepared:
        """Load, check and encode the data.

        Raises:
            DataError: Missing columns, an empty set, labels out of range or no numbers, a text that is not text.
            RecipeError: Columns or truncation that do not fit together.
        """
        _check_columns(data)
        splits = load_splits(data, (*data.text_columns, data.label_column))
        labels = () if self.is_regression else label_names(splits.train, data.label_column, self.labels)
        metrics = regression_metrics if self.is_regression else classification_metrics
        return Prepared(
            train=_encoded(splits.train, labels, data, processor, "train set"),
            validation=_encoded(splits.validation, labels, data, processor, "validation set"),
            labels=labels,
            example=_example([splits.validation[0][column] for column in data.text_columns]),
            collator=DataCollatorWithPadding(processor),
            compute_metrics=metrics(self.metrics),
        )

    def load_model(self, source: str, revision: str, data: Prepared) -> PreTrainedModel:
        """Load the weights with a head for these classes, or one number; a fresh head where the checkpoint has none.

        Raises:
            CheckpointError: The model cannot be loaded, or is a checkpoint with gates.
            DataError: The checkpoint was fine-tuned for another number of classes.
        """
        check_head(source, revision, "ForSequenceClassification", data.labels)
        head = {"num_labels": 1} if self.is_regression else class_names(data.labels)
        return load_model(
            source,
            AutoModelForSequenceClassification,
            revision=revision,
            problem_type=self.problem_type,
            **head,
        )


def same_number(one: Named, other: Named) -> Tensor:
    """Tell which numbers are the same but for rounding: [B]."""
    same: Tensor = torch.isclose(one["logits"], other["logits"], rtol=1e-3, atol=1e-3)[:, 0]
    return same


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


def _encoded(
    dataset: Dataset,
    labels: tuple[str, ...],
    data: DataOptions,
    tokenizer: PreTrainedTokenizerBase,
    where: str,
) -> Dataset:
    """Return token ids and `labels`, nothing else; without names of classes they are numbers."""
    for column in data.text_columns:
        if not all(isinstance(text, str) for text in dataset[column]):
            raise DataError(
                f"data: {where}, column {column!r}",
                "not every entry is text.",
                "Put text into those rows, or drop them.",
            )
    answers, place = dataset[data.label_column], f"data: {where}, column {data.label_column!r}"
    targets = label_ids(answers, labels, place) if labels else label_numbers(answers, place)

    def encode(batch: Mapping[str, list[Any]], rows: list[int]) -> Mapping[str, Any]:
        texts = [batch[column] for column in data.text_columns]
        if len(texts) == 2:
            check_room(list(zip(*texts, strict=True)), rows, data, tokenizer, where)
        encoding: Mapping[str, Any] = tokenizer(
            *texts, truncation=data.truncation, max_length=data.max_length
        )
        return encoding

    encoded = dataset.map(
        encode,
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        desc=f"encoding {where}",
    )
    return encoded.add_column("labels", targets)
