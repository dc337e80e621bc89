"""What a recipe needs of a task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from datasets import Dataset
from torch import Tensor
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainingArguments

from sparse_trainer.data.splits import DataOptions
from sparse_trainer.folders.processors import ProcessorKind

# Shape legend: B = examples, C = classes, or the vocabulary.

Named = Mapping[str, Tensor]
"""Outputs of a model by name."""


def same_class(one: Named, other: Named) -> Tensor:
    """Tell which predictions choose the same class: [B], of language models one per token."""
    same: Tensor = one["logits"].argmax(-1) == other["logits"].argmax(-1)
    return same


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Which outputs of a model are predictions, and when those of two models are the same."""

    names: tuple[str, ...] = ("logits",)
    """Fields of the model's output that are compared."""
    same: Callable[[Named, Named], Tensor] = same_class
    """Takes these outputs of two models, returns one true or false per prediction."""
    most: int | None = None
    """Compare no more examples than these, whatever `export.verify_samples` says; of language models each token is a
    prediction, and its logits are as many as the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Data that a Trainer takes as it is."""

    train: Dataset
    validation: Dataset
    labels: tuple[str, ...] = ()
    """Names of the classes, where there are classes."""
    example: object
    """An input as the task's pipeline takes it."""
    call: tuple[str, ...] = ()
    """Where there is no pipeline: Python that asks `model`, loaded from the finished folder, about an example."""
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    compute_metrics: Callable[[EvalPrediction], dict[str, float]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Entries of the model's config that whoever runs it needs, such as the length that it was trained with."""
    loss: Callable[..., Tensor] | None = None
    """Trainer's `compute_loss_func`, of (outputs, labels, num_items_in_batch); None = the loss of the model."""
    reduce_logits: Callable[[Any, Tensor], Any] | None = None
    """Trainer's `preprocess_logits_for_metrics`, of (logits, labels) of a batch: what `compute_metrics` then gets.

    For outputs that are too large to keep of all batches: over a vocabulary, per token.
    """


class Task(Protocol):
    """One kind of task: its options, data, models and metrics, and how outputs are compared.

    Its options are its fields: a frozen dataclass, made of the keys that stand beside `name` in section `task`. One
    that names this class as its base has the defaults below.
    """

    arguments: ClassVar[type[TrainingArguments]] = TrainingArguments
    """The class that parses section `training`."""
    trainer: ClassVar[type[Trainer]] = Trainer
    """What trains and evaluates; fine-pruning puts `SparseTrainer` in front of it."""
    processor: ClassVar[ProcessorKind] = "tokenizer"
    """What turns raw inputs into the model's: it is loaded beside the model, given to `prepare` and saved."""

    ready: ClassVar[bool] = False
    """Whether models do the task as they are loaded, so that the dense one is measured without a fine-tune."""

    learns_itself: ClassVar[bool] = False
    """Whether the targets are what the model says as it was loaded: until units go there is nothing to learn."""

    @property
    def metrics(self) -> Sequence[str]:
        """Names of what `compute_metrics` returns, the headline first.

        Those that end in `perplexity`, `loss` or `error` are shown as numbers, all others as percentages.
        """

    @property
    def pipeline(self) -> str | None:
        """Name of the transformers pipeline that runs the result; None where there is none."""

    @property
    def auto_class(self) -> str:
        """Name of the auto class in transformers that loads the result."""

    @property
    def outputs(self) -> Outputs:
        """How the model that is reloaded from the finished folder is compared with the one in memory."""
        return Outputs()

    def prepare(self, data: DataOptions, processor: Any) -> Prepared:
        """Load, check and encode the data.

        Args:
            processor: The tokenizer of the model, or what `processor` names.
        """
        ...

    def load_model(self, source: str, revision: str, data: Prepared) -> PreTrainedModel:
        """Load the weights with a head for this data."""
        ...

    def complete(self, data: Prepared, model: PreTrainedModel, source: str, revision: str) -> Prepared:
        """Add to the data what the model says of it as it was loaded, e.g. targets: last before training.

        Args:
            model: As `load_model` returned it, where it is trained.
            source: Its folder, or its name on the hub; `revision` is a branch, tag or commit there.
        """
        return data

    def beside(self, folder: Path, data: Prepared) -> None:
        """Write what the result needs beside its weights, into the folder that is being made: by default nothing."""
        return
