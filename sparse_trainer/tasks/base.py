"""What a recipe needs of a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from datasets import Dataset
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from sparse_trainer.data.splits import DataOptions
from sparse_trainer.errors import ArgumentError


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskOptions:
    """What is learned and how it is measured."""

    name: str = "text-classification"
    """A name in `sparse_trainer.tasks.TASKS`."""
    labels: tuple[str, ...] | None = None
    """Names of the classes in the order of their numbers; default: those of the data."""
    metrics: tuple[str, ...] = ("accuracy",)
    """Metrics of the evaluate library; the first one is the headline."""

    def __post_init__(self) -> None:
        if not self.metrics:
            raise ArgumentError("metrics", "names none.", "Give e.g. [accuracy].")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Data that a Trainer takes as it is."""

    train: Dataset
    validation: Dataset
    labels: tuple[str, ...]
    example: str | dict[str, str]
    """An input as the task's pipeline takes it."""
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    compute_metrics: Callable[[EvalPrediction], dict[str, float]]


class Task(Protocol):
    """One kind of task: its data, its models, its metrics."""

    pipeline: str
    """Name of the transformers pipeline that runs the result."""
    auto_class: str
    """Name of the auto class in transformers that loads the result."""

    def prepare(
        self, options: TaskOptions, data: DataOptions, tokenizer: PreTrainedTokenizerBase
    ) -> Prepared:
        """Load, check and encode the data."""
        ...

    def load_model(self, source: str, revision: str, labels: tuple[str, ...]) -> PreTrainedModel:
        """Load the weights with a head for these classes."""
        ...
