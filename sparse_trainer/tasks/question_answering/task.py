"""Find the part of a text that answers a question: SQuAD 1 and 2."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, ClassVar, final

import numpy as np
from torch import Tensor
from transformers import (
    AutoModelForQuestionAnswering,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)

from sparse_trainer.data.splits import DataOptions, load_splits
from sparse_trainer.errors import ArgumentError, CheckpointError, RecipeError
from sparse_trainer.fields import check_counts
from sparse_trainer.files.pipelines.question_answering import best_spans, no_answer
from sparse_trainer.folders.load import load_model
from sparse_trainer.tasks.base import Named, Outputs, Prepared, Task
from sparse_trainer.tasks.in_order import InOrder
from sparse_trainer.tasks.question_answering.features import Chunks, check_stride, encode
from sparse_trainer.tasks.question_answering.rows import Row, read_rows
from sparse_trainer.tasks.question_answering.scores import exact_match, f1

_METRICS = {"exact_match": exact_match, "f1": f1}


def same_span(one: Named, other: Named) -> Tensor:
    """Tell which chunks begin and end their answer with the same token: [B]."""
    same: Tensor = (one["start_logits"].argmax(-1) == other["start_logits"].argmax(-1)) & (
        one["end_logits"].argmax(-1) == other["end_logits"].argmax(-1)
    )
    return same


@final
@dataclass(frozen=True, kw_only=True)
class QuestionAnswering(Task):
    """Extractive question answering; contexts longer than `data.max_length` are read in overlapping chunks.

    `data.text_columns` names question and context, `data.label_column` the answers:
    `{"text": [...], "answer_start": [...]}`.
    """

    metrics: tuple[str, ...] = ("f1", "exact_match")
    """Both are those of SQuAD; the first one is the headline."""
    stride: int = 128
    """Tokens by which the chunks of a long context overlap."""
    max_answer_length: int = 30
    """Tokens of an answer at most."""
    no_answer: bool = False
    """Some contexts do not tell (SQuAD 2): rows may have no answers, and "" may be one."""

    trainer: ClassVar[type[Trainer]] = InOrder
    pipeline = "question-answering"
    auto_class = "AutoModelForQuestionAnswering"
    outputs = Outputs(names=("start_logits", "end_logits"), same=same_span)

    def __post_init__(self) -> None:
        unknown = [name for name in self.metrics if name not in _METRICS]
        if unknown or not self.metrics:
            what = f"{unknown[0]!r} is unknown." if unknown else "names none."
            raise ArgumentError("metrics", what, "Give [f1, exact_match].")
        check_counts(max_answer_length=self.max_answer_length)
        if self.stride < 0:
            raise ArgumentError("stride", f"{self.stride} is negative.", "Give e.g. 128.")

    def prepare(self, data: DataOptions, processor: PreTrainedTokenizerBase) -> Prepared:
        """Load, check and encode the data.

        Raises:
            DataError: Missing columns, an empty set, answers outside their context, rows without one.
            RecipeError: Columns that are no pair, a stride as long as the chunks.
            CheckpointError: A tokenizer that does not tell where its tokens lie.
        """
        if len(data.text_columns) != 2:
            raise RecipeError(
                "data.text_columns",
                f"{len(data.text_columns)} columns.",
                "Name the columns of question and context: [question, context].",
            )
        if not processor.is_fast:
            raise CheckpointError(
                "model.name_or_path",
                f"its tokenizer ({type(processor).__name__}) does not tell where tokens lie in the text.",
                "Take a model with a fast tokenizer.",
            )
        splits = load_splits(data, (*data.text_columns, data.label_column))
        train, validation = (
            read_rows(dataset, data.text_columns, data.label_column, name, no_answer=self.no_answer)
            for name, dataset in (("train set", splits.train), ("validation set", splits.validation))
        )
        for rows in (train, validation):
            check_stride(self.stride, data.max_length, rows, processor)
        chunks = encode(validation, processor, data.max_length, self.stride)
        trained_with = {
            "max_seq_len": data.max_length,
            "doc_stride": self.stride,
            "max_answer_len": self.max_answer_length,
            "handle_impossible_answer": self.no_answer,
        }
        return Prepared(
            train=encode(train, processor, data.max_length, self.stride).encoded,
            validation=chunks.encoded,
            example=_example(validation),
            collator=DataCollatorWithPadding(_padding_right(processor)),
            compute_metrics=self._scorer(validation, chunks),
            settings={"question_answering": trained_with},
        )

    def load_model(self, source: str, revision: str, data: Prepared) -> PreTrainedModel:
        """Load the weights; a fresh head where the checkpoint has none.

        Raises:
            CheckpointError: The model cannot be loaded, or is a checkpoint with gates.
        """
        model = load_model(source, AutoModelForQuestionAnswering, revision=revision)
        model.config.update(dict(data.settings))
        return model

    def _scorer(self, rows: Sequence[Row], chunks: Chunks) -> Callable[[EvalPrediction], dict[str, float]]:
        """Return the `compute_metrics` of a Trainer that evaluates in the order of the chunks."""
        of_row: list[list[int]] = [[] for _ in rows]
        for chunk, row in enumerate(chunks.rows):
            of_row[row].append(chunk)

        def compute(prediction: EvalPrediction) -> dict[str, float]:
            found: Any = prediction.predictions
            starts, ends = found[:2]
            answers = [self._answer(rows[row], read, starts, ends, chunks) for row, read in enumerate(of_row)]
            return {
                name: math.fsum(
                    _METRICS[name](answer, row.answers or ("",))
                    for answer, row in zip(answers, rows, strict=True)
                )
                / len(rows)
                for name in self.metrics
            }

        return compute

    def _answer(self, row: Row, found: Sequence[int], starts: Any, ends: Any, chunks: Chunks) -> str:
        """Return what the model answers, given its logits [chunks, tokens]."""
        read = [
            (
                np.asarray(starts[chunk][: len(chunks.offsets[chunk])], dtype=np.float32),
                np.asarray(ends[chunk][: len(chunks.offsets[chunk])], dtype=np.float32),
                chunks.offsets[chunk],
            )
            for chunk in found
        ]
        spans = best_spans(read, self.max_answer_length)
        if not spans:
            return ""
        total, first, last = spans[0]
        if self.no_answer and sum(no_answer(read, [chunks.first_tokens[chunk] for chunk in found])) > total:
            return ""
        return row.context[first:last]


def _padding_right(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a copy that pads on the right: token t of a chunk is then token t of its logits."""
    padding = copy.deepcopy(tokenizer)
    padding.padding_side = "right"
    return padding


def _example(rows: Sequence[Row]) -> dict[str, str]:
    """Return a question as the pipeline takes it, with as much of its context as can be shown."""
    row = rows[0]
    return {"question": row.question, "context": shorten(row.context, 300, placeholder=" ...")}
