"""Embed sentences: the pruned encoder learns, on plain text, to embed as the dense one does."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, final

import torch
from torch import Tensor
from transformers import AutoModel, DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from sparse_trainer.data.splits import DataOptions, check_columns, load_splits
from sparse_trainer.errors import ArgumentError, RecipeError, one_of
from sparse_trainer.folders.load import load_model
from sparse_trainer.inputs.pooling import Mode, Pooling
from sparse_trainer.tasks.base import Named, Outputs, Prepared, Task
from sparse_trainer.tasks.embeddings.files import read_pooling, read_settings, write_files
from sparse_trainer.tasks.embeddings.loss import EmbeddingLoss, EmbeddingTrainer
from sparse_trainer.tasks.embeddings.metrics import METRICS, Needs, Pairs, embedding_metrics
from sparse_trainer.tasks.embeddings.texts import distinct, encode, read_scores, read_texts, with_targets

# Shape legend: B = texts, T = tokens.

_STATES = "last_hidden_state"


def same_direction(one: Named, other: Named) -> Tensor:
    """Tell which tokens' states have the same direction, but for rounding: [B, T]."""
    cosines_BT = torch.cosine_similarity(one[_STATES].double(), other[_STATES].double(), dim=-1)
    return cosines_BT > 1 - 1e-4


@dataclass(frozen=True, kw_only=True)
class EmbeddingData(Prepared):
    """Texts, with what sentence-transformers has to know of the model."""

    pooling: Pooling | None = None
    size: int = 0
    """Hidden features of the encoder."""
    files: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Files of sentence-transformers beside the model: name -> content."""


@final
@dataclass(frozen=True, kw_only=True)
class SentenceEmbeddings(Task):
    """Sentence embeddings without labels: targets are the embeddings of the model as it was loaded.

    Each text of `data.text_columns` is learned by itself. Of a pair of columns in the validation set, the first text of
    a row has to find the second one among all second texts.
    """

    pairs: tuple[str, ...] | None = None
    """Two columns of the validation set; default: `data.text_columns`, where it names two."""

    pooling: Mode | None = None
    """How one embedding is made of the tokens'; default: as modules.json beside the model says, else mean."""
    normalize: bool | None = None
    """Whether embeddings get length 1; default: as modules.json says, else not."""
    distance: float = 1.0
    """Weight of the squared distance from the dense model's embedding."""
    similarity: float = 0.0
    """Weight of the squared difference of the cosines between the texts of a batch."""
    metrics: tuple[str, ...] = ("cosine",)
    """cosine, recall@1, recall@5, recall@10, mrr@10, ndcg@10, spearman; the first one is the headline."""

    trainer = EmbeddingTrainer
    ready = True
    learns_itself = True
    pipeline = None
    auto_class = "AutoModel"
    outputs = Outputs(names=(_STATES,), same=same_direction)

    def __post_init__(self) -> None:
        for name in self.metrics:
            one_of("metrics", name, METRICS)
        if self.pairs is not None and len(self.pairs) != 2:
            raise ArgumentError("pairs", f"{len(self.pairs)} columns.", "Name two, or leave it out.")
        if not self.metrics:
            raise ArgumentError("metrics", "names none.", "Give e.g. [cosine].")
        if min(self.distance, self.similarity) < 0 or self.distance + self.similarity <= 0:
            raise ArgumentError(
                "distance",
                "`distance` and `similarity` have to be 0 or more, and not both 0.",
                "Give e.g. 1.",
            )

    def prepare(self, data: DataOptions, processor: PreTrainedTokenizerBase) -> Prepared:
        """Load, check and encode the texts; targets are added when the model is there.

        Raises:
            DataError: Missing columns, an empty set, a text that is not text or empty, a score that is no number.
            RecipeError: Metrics that need pairs, or scores of them.
        """
        needs = {METRICS[name].needs for name in self.metrics}
        columns = data.text_columns if self.pairs is None else self.pairs
        _check_columns(data, columns, needs)
        scored = (data.label_column,) if "scores" in needs else ()
        splits = load_splits(data, ())
        check_columns(splits.train, data.text_columns, "data: train set")
        check_columns(splits.validation, (*columns, *scored), "data: validation set")
        train = read_texts(splits.train, data.text_columns, "train set")
        first, *second = read_texts(splits.validation, columns, "validation set")
        texts = distinct(first, *second)
        row = {text: number for number, text in enumerate(texts)}
        pairs = None
        if second:
            pairs = Pairs(
                queries_P=[row[text] for text in first],
                documents_P=[row[text] for text in second[0]],
                scores_P=read_scores(splits.validation, data.label_column) if scored else None,
            )
        return EmbeddingData(
            train=encode(distinct(*train), processor, data.max_length, "train set"),
            validation=encode(texts, processor, data.max_length, "validation set"),
            example=first[0],
            call=_call(first[0]),
            collator=DataCollatorWithPadding(processor),
            compute_metrics=embedding_metrics(self.metrics, pairs),
        )

    def load_model(self, source: str, revision: str, data: Prepared) -> PreTrainedModel:
        """Load the encoder without a head.

        Raises:
            CheckpointError: The model cannot be loaded, or is a checkpoint with gates.
        """
        return load_model(source, AutoModel, revision=revision)

    def complete(self, data: Prepared, model: PreTrainedModel, source: str, revision: str) -> Prepared:
        """Add the dense model's embeddings of all texts as `labels`, and how they are pooled.

        Raises:
            CheckpointError: A model of sentence-transformers with other layers than an encoder and its pooling.
        """
        assert isinstance(data, EmbeddingData)
        pooling = self._pooling(source, revision)
        train, validation = (
            with_targets(rows, model, data.collator, pooling, where)
            for rows, where in ((data.train, "train set"), (data.validation, "validation set"))
        )
        return dataclasses.replace(
            data,
            train=train,
            validation=validation,
            loss=EmbeddingLoss(pooling=pooling, distance=self.distance, similarity=self.similarity),
            pooling=pooling,
            size=len(train[0]["labels"]),
            files=read_settings(source, revision),
        )

    def beside(self, folder: Path, data: Prepared) -> None:
        """Write the files of sentence-transformers."""
        assert isinstance(data, EmbeddingData)
        assert data.pooling is not None
        write_files(folder, data.pooling, data.size, data.files)

    def _pooling(self, source: str, revision: str) -> Pooling:
        """Return how the model pools, as the options say, else its files, else mean."""
        if self.pooling is not None and self.normalize is not None:
            return Pooling(mode=self.pooling, normalize=self.normalize)
        found = read_pooling(source, revision) or Pooling()
        return Pooling(
            mode=found.mode if self.pooling is None else self.pooling,
            normalize=found.normalize if self.normalize is None else self.normalize,
        )


def _call(text: str) -> tuple[str, ...]:
    """Return Python that embeds a text by the model's folder."""
    return (
        "from sentence_transformers import SentenceTransformer",
        'uneven = hasattr(model.config, "pruning")',
        "embedder = SentenceTransformer(model.name_or_path, trust_remote_code=uneven)",
        f"print(embedder.encode({shorten(text, 300, placeholder=' ...')!r}))",
    )


def _check_columns(data: DataOptions, compared: Sequence[str], needs: Collection[Needs]) -> None:
    if len(data.text_columns) not in (1, 2):
        raise RecipeError(
            "data.text_columns",
            f"{len(data.text_columns)} columns.",
            "Name one text column, or a pair of them.",
        )
    if len(compared) == 1 and not {*needs} <= {"nothing"}:
        raise RecipeError(
            "task.metrics",
            "some compare the two texts of a pair, and there is one text column.",
            "Ask for [cosine], or name a pair in task.pairs or data.text_columns.",
        )
