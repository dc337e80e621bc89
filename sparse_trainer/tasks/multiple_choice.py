"""Choose between endings of a text: SWAG, HellaSwag, ARC."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from datasets import Dataset
from transformers import (
    AutoModelForMultipleChoice,
    DataCollatorForMultipleChoice,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sparse_trainer.data.splits import DataOptions, load_splits
from sparse_trainer.errors import ArgumentError, DataError, RecipeError, shown
from sparse_trainer.fields import check_counts
from sparse_trainer.folders.load import load_model
from sparse_trainer.tasks.base import Prepared, Task
from sparse_trainer.tasks.metrics import check_metrics, classification_metrics
from sparse_trainer.tasks.truncation import check_room

logger = logging.getLogger(__name__)

_CALL = """\
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
context, choices = {context!r}, {choices!r}
inputs = tokenizer([context] * len(choices), choices, padding=True, return_tensors="pt")
logits = model(**{{name: value[None] for name, value in inputs.items()}}).logits  # [1, choices]
print(choices[logits.argmax()])"""


@final
@dataclass(frozen=True, kw_only=True)
class MultipleChoice(Task):
    """One of several endings: each is read behind the context, and gets one number; the largest is chosen."""

    METRICS: ClassVar = ("accuracy",)

    choices: tuple[str, ...] = ("choices",)
    """A column per choice, e.g. [ending0, ending1, ending2, ending3], or one with a list of them in each row."""
    num_choices: int | None = None
    """Rows with another number of choices are left out; null = they are an error."""
    metrics: tuple[str, ...] = ("accuracy",)

    pipeline = None
    auto_class = "AutoModelForMultipleChoice"

    def __post_init__(self) -> None:
        check_metrics(self.metrics, self.METRICS)
        check_counts(least=2, num_choices=self.num_choices)
        if not self.choices:
            raise ArgumentError("choices", "names no column.", "Give e.g. [choices].")

    def prepare(self, data: DataOptions, processor: PreTrainedTokenizerBase) -> Prepared:
        """Load, check and encode the data.

        Of two text columns the second one begins every choice, as in SWAG.

        Raises:
            DataError: Missing columns, a row whose choices are no texts or of another number, a label beyond them.
            RecipeError: More than two text columns.
        """
        if len(data.text_columns) not in (1, 2):
            raise RecipeError(
                "data.text_columns",
                f"{len(data.text_columns)} columns.",
                "Name the context, or the context and the column that begins every choice.",
            )
        splits = load_splits(data, (*data.text_columns, *self.choices, data.label_column))
        encode = _Encoder(task=self, data=data, tokenizer=processor, first=splits.train[0])
        question = encode.question(splits.validation[0], 0, "validation set")
        example = {"context": question.context, "choices": question.endings}
        return Prepared(
            train=encode(splits.train, "train set"),
            validation=encode(splits.validation, "validation set"),
            example=example,
            call=tuple(_CALL.format(**example).splitlines()),
            collator=DataCollatorForMultipleChoice(processor),
            compute_metrics=classification_metrics(self.metrics),
        )

    def load_model(self, source: str, revision: str, data: Prepared) -> PreTrainedModel:
        """Load the weights with a head that gives each choice a number; a fresh one where the checkpoint has none.

        Raises:
            CheckpointError: The model cannot be loaded, or is a checkpoint with gates.
        """
        return load_model(source, AutoModelForMultipleChoice, revision=revision)


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """A row."""

    row: int
    context: str
    endings: list[str]
    answer: int


def answer_of(label: object, names: Sequence[str], count: int) -> int | None:
    """Return which choice a label names, None where it names none.

    Args:
        label: A number from 0, also as text (HellaSwag), or one of `names` (ARC).
        names: What the choices are called, where they have names.

    >>> answer_of(2, (), 4), answer_of("2", (), 4), answer_of("C", ["A", "B", "C"], 3), answer_of(4, (), 4)
    (2, 2, 2, None)
    """
    if label in names:
        return names.index(str(label))
    is_number = (isinstance(label, int) and not isinstance(label, bool)) or (
        isinstance(label, str) and label.isdecimal() and not names
    )
    number = int(str(label)) if is_number else -1
    return number if 0 <= number < count else None


@dataclass(frozen=True, kw_only=True)
class _Encoder:
    """Turns rows into the token ids of each choice, and `labels`."""

    task: MultipleChoice
    data: DataOptions
    tokenizer: PreTrainedTokenizerBase
    first: Mapping[str, Any]
    """The first row of the train set: all others have as many choices."""

    def __call__(self, dataset: Dataset, where: str) -> Dataset:
        """Return lists of token ids per row, and `labels`, nothing else."""
        count = self.task.num_choices or len(self._endings(self.first)[0])

        def encode(batch: Mapping[str, list[Any]], rows: list[int]) -> Mapping[str, Any]:
            found = [
                self.question({name: column[place] for name, column in batch.items()}, row, where)
                for place, row in enumerate(rows)
            ]
            return self._encoded(self._counted(found, count, where), count, where)

        encoded = dataset.map(
            encode,
            batched=True,
            with_indices=True,
            remove_columns=dataset.column_names,
            desc=f"encoding {where}",
        )
        if len(encoded) == 0:
            raise DataError(f"data: {where}", f"no row has {count} choices.", "Change task.num_choices.")
        if len(encoded) < len(dataset):
            logger.warning(
                "%s: %d of %d rows are left out, they have other than %d choices",
                where, len(dataset) - len(encoded), len(dataset), count,
            )  # fmt: skip
        return encoded

    def question(self, row: Mapping[str, Any], number: int, where: str) -> ChoiceQuestion:
        """Return the context, the choices and the answer of a row.

        Raises:
            DataError: Texts that are none, or a label that names no choice.
        """
        where = f"data: {where}, row {number}"
        endings, names = self._endings(row)
        texts = [row[column] for column in self.data.text_columns]
        for text in (*texts, *endings):
            if not isinstance(text, str):
                raise DataError(where, f"{shown(text)} is no text.", "Correct or drop the row.")
        if len(endings) < 2:
            problem = f"{len(endings)} choices in column {', '.join(map(repr, self.task.choices))}."
            raise DataError(where, problem, "Give 2 or more, or drop the row.")
        label = row[self.data.label_column]
        answer = answer_of(label, names, len(endings))
        if answer is None:
            problem = f"has the label {shown(label)}, which names none of its {len(endings)} choices."
            raise DataError(where, problem, f"Label rows 0 to {len(endings) - 1}, or drop the row.")
        context, *begin = texts
        return ChoiceQuestion(number, context, [" ".join((*begin, ending)) for ending in endings], answer)

    def _endings(self, row: Mapping[str, Any]) -> tuple[list[Any], Sequence[str]]:
        """Return the choices of a row and their names, where it has names: {text: [...], label: [A, B, ...]}."""
        if len(self.task.choices) > 1:
            return [row[column] for column in self.task.choices], ()
        value = row[self.task.choices[0]]
        if isinstance(value, Mapping):
            return list(value.get("text") or ()), list(value.get("label") or ())
        return (value, ()) if isinstance(value, list) else ([value], ())

    def _counted(self, found: list[ChoiceQuestion], count: int, where: str) -> list[ChoiceQuestion]:
        """Return the questions with so many choices.

        Raises:
            DataError: Others, unless they are to be left out.
        """
        for question in found:
            if len(question.endings) != count and self.task.num_choices is None:
                raise DataError(
                    f"data: {where}, row {question.row}",
                    f"{len(question.endings)} choices, but the first row of the train set has {count}.",
                    f"Leave such rows out with task.num_choices={count}, or drop them.",
                )
        return [question for question in found if len(question.endings) == count]

    def _encoded(self, questions: Sequence[ChoiceQuestion], count: int, where: str) -> Mapping[str, Any]:
        pairs = [(question.context, ending) for question in questions for ending in question.endings]
        if not pairs:
            return {name: [] for name in (*self.tokenizer.model_input_names, "labels")}
        rows = [question.row for question in questions for _ in range(count)]
        check_room(pairs, rows, self.data, self.tokenizer, where)
        encoding: Mapping[str, list[Any]] = self.tokenizer(
            *map(list, zip(*pairs, strict=True)),
            truncation=self.data.truncation,
            max_length=self.data.max_length,
        )
        grouped = {
            name: [values[at : at + count] for at in range(0, len(values), count)]
            for name, values in encoding.items()
        }
        return {**grouped, "labels": [question.answer for question in questions]}
