"""Instruction tuning of a causal language model: conversations, with the loss on the answers only."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from sparse_trainer.data.corpora.encode import frame_of
from sparse_trainer.data.splits import DataOptions, load_splits
from sparse_trainer.errors import ArgumentError, DataError, RecipeError, shown
from sparse_trainer.folders.load import load_model
from sparse_trainer.inputs.labels import IGNORED
from sparse_trainer.tasks.base import Outputs, Prepared, Task
from sparse_trainer.tasks.language.answers import (
    ASSISTANT,
    Marked,
    by_prefix,
    by_template,
    checked_messages,
    marks_answers,
    tokens_of,
)
from sparse_trainer.tasks.language.causal_model import check_causal
from sparse_trainer.tasks.language.token_losses import PERPLEXITY, TokenBatch, perplexity_of, summed_losses

logger = logging.getLogger(__name__)

Encoded = dict[str, list[int]]


@final
@dataclass(frozen=True, kw_only=True)
class InstructionTuning(Task):
    """Learn to answer: conversations in the chat template of the tokenizer, or prompts with completions.

    `data.text_columns` names one column: of conversations (`[{role: user, content: ...}, ...]`), in which every answer
    counts; or, where the set has `data.label_column` as well, of prompts, each text or messages, and only what stands
    in `data.label_column` counts. Rows longer than `data.max_length` tokens are cut; one without any answer left is
    left out. The perplexity is that of the answers.
    """

    chat_template_file: str | None = None
    """A file with the chat template, for a tokenizer without one or in place of its own; it is saved with the model."""
    plain: bool = False
    """Prompts and completions are text that stands one behind the other, without a template; EOS ends it."""

    metrics = (PERPLEXITY,)
    pipeline = "text-generation"
    auto_class = "AutoModelForCausalLM"
    outputs = Outputs(most=2)
    ready = True

    def __post_init__(self) -> None:
        if self.plain and self.chat_template_file is not None:
            raise ArgumentError(
                "chat_template_file", "is of no use with `plain=True`.", "Leave one of them out."
            )
        # Unlike Path.is_file, no error for a name that no file can have.
        if self.chat_template_file is not None and not os.path.isfile(self.chat_template_file):
            raise ArgumentError(
                "chat_template_file", f"{shown(self.chat_template_file)}: no such file.", "Name a file."
            )

    def prepare(self, data: DataOptions, processor: PreTrainedTokenizerBase) -> Prepared:
        """Load, check and encode the data.

        Raises:
            DataError: Missing columns, a row that is no conversation or has no answer, a template that cannot serve.
            RecipeError: More than one column, no template, or a tokenizer that does not tell where its tokens lie.
        """
        if len(data.text_columns) != 1:
            raise RecipeError(
                "data.text_columns", f"{len(data.text_columns)} columns.",
                "Name the one with conversations or prompts.",
            )  # fmt: skip
        self._set_template(processor)
        splits = load_splits(data, data.text_columns)
        read = self._reader(data, processor, has_answers=data.label_column in splits.train.column_names)
        return Prepared(
            train=_encoded(splits.train, read, data, "data: train set"),
            validation=_encoded(splits.validation, read, data, "data: validation set"),
            example=_question(splits.validation[0][data.text_columns[0]], plain=self.plain),
            collator=TokenBatch(padding=processor.pad_token_id or 0),
            compute_metrics=perplexity_of,
            reduce_logits=summed_losses,
        )

    def load_model(self, source: str, revision: str, data: Prepared) -> PreTrainedModel:
        """Load the weights of a causal language model.

        Raises:
            CheckpointError: It cannot be loaded, or is a checkpoint with gates.
            UnsupportedModelError: It is no causal language model.
            RecipeError: Conversations are longer than the model has positions for.
        """
        model = load_model(source, AutoModelForCausalLM, revision=revision)
        check_causal(model, data)
        return model

    def _set_template(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Give the tokenizer the template that was named, and check that there is one where it is needed."""
        if not tokenizer.is_fast:
            raise RecipeError(
                "model.name_or_path",
                "the tokenizer does not tell where in a text its tokens lie.",
                "Give a model with a fast tokenizer (tokenizer.json).",
            )
        if self.chat_template_file is not None:
            tokenizer.chat_template = Path(self.chat_template_file).read_text(encoding="utf-8")
        if not self.plain and not isinstance(tokenizer.chat_template, str):
            raise RecipeError(
                "model.name_or_path", "the tokenizer has no chat template.",
                "Give task.chat_template_file or an instruct model, or task.plain=true for prompts with completions.",
            )  # fmt: skip

    def _reader(
        self, data: DataOptions, tokenizer: PreTrainedTokenizerBase, *, has_answers: bool
    ) -> Callable[[Mapping[str, Any], str], Encoded]:
        """Return what turns a row into tokens and labels; it also takes the place that errors name."""
        column, answers = data.text_columns[0], data.label_column
        if self.plain:
            if not has_answers:
                raise RecipeError(
                    "data.label_column",
                    f"no column {shown(answers)}, and plain texts need answers.",
                    "Name it.",
                )
            return partial(_plain, tokenizer, tuple(frame_of(tokenizer).before), column, answers)
        if has_answers:
            return partial(_answered, tokenizer, column, answers)
        return partial(_conversation, tokenizer, column)


def _conversation(tokenizer: Any, column: str, row: Mapping[str, Any], where: str) -> Encoded:
    messages = checked_messages(row[column], where)
    if not any(message["role"] == ASSISTANT for message in messages):
        raise DataError(where, "no message of the assistant.", "Add its answer, or drop the row.")
    if marks_answers(tokenizer.chat_template):
        return by_template(tokenizer, messages)
    return tokens_of(tokenizer, by_prefix(tokenizer, messages))


def _answered(tokenizer: Any, column: str, answers: str, row: Mapping[str, Any], where: str) -> Encoded:
    prompt, answer = row[column], row[answers]
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    told = [{"role": ASSISTANT, "content": answer}] if isinstance(answer, str) else answer
    asked, told = checked_messages(asked, where), checked_messages(told, where)
    if not any(message["role"] == ASSISTANT for message in told):
        raise DataError(where, f"no message of the assistant in {answers!r}.", "Add it, or drop the row.")
    return tokens_of(tokenizer, by_prefix(tokenizer, [*asked, *told], len(asked)))


def _plain(
    tokenizer: Any, before: tuple[int, ...], column: str, answers: str, row: Mapping[str, Any], where: str
) -> Encoded:
    prompt, answer = row[column], row[answers]
    if not isinstance(prompt, str) or not isinstance(answer, str) or not answer.strip():
        raise DataError(
            where,
            f"{shown(prompt)} and {shown(answer)} are no prompt and answer.",
            "Correct or drop the row.",
        )
    end = tokenizer.eos_token or ""
    text = prompt + answer + ("" if answer.endswith(end) else end)
    return tokens_of(tokenizer, Marked(text=text, answers=((len(prompt), len(text)),)), before)


def _encoded(
    rows: Dataset, read: Callable[[Mapping[str, Any], str], Encoded], data: DataOptions, where: str
) -> Dataset:
    """Return tokens and labels of the rows, cut; without those of which no answer is left."""

    def encode(row: Mapping[str, Any], number: int) -> Encoded:
        try:
            found = read(row, f"{where}, row {number}")
        except DataError as error:
            named = error.where if error.where.startswith(where) else f"{where}, row {number}: {error.where}"
            raise DataError(named, error.what, error.remedy) from error
        return {name: ids[: data.max_length] for name, ids in found.items()}

    encoded = rows.map(encode, with_indices=True, remove_columns=rows.column_names, desc=f"encoding {where}")
    # The first label of a row is that of a token that nothing stands before.
    kept = encoded.filter(
        lambda row: any(label != IGNORED for label in row["labels"][1:]), desc=f"checking {where}"
    )
    if len(kept) == 0:
        raise DataError(
            where, f"no row has an answer within {data.max_length} tokens.", "Raise data.max_length."
        )
    if len(kept) < len(rows):
        logger.warning(
            "%s: %d of %d rows have no answer within %d tokens, and are left out (data.max_length)",
            where, len(rows) - len(kept), len(rows), data.max_length,
        )  # fmt: skip
    return kept


def _question(value: Any, *, plain: bool) -> object:
    """Return the input of a pipeline: a conversation up to its first answer, or a prompt."""
    if isinstance(value, str):
        return value if plain else [{"role": "user", "content": value}]
    asked = []
    for message in value:
        if message["role"] == ASSISTANT:
            break
        asked.append({"role": message["role"], "content": message["content"]})
    return asked
