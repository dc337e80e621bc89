"""Questions with their answers, checked row by row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from sparse_trainer.errors import DataError, shown


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One question."""

    question: str
    context: str
    answers: tuple[str, ...]
    """What counts as right; none = the context does not tell."""
    start: int
    """Where the first of them begins, in letters; 0 without answers."""


def read_rows(
    dataset: Dataset, columns: Sequence[str], answers: str, where: str, *, no_answer: bool
) -> list[Row]:
    """Return the questions of a set.

    Args:
        columns: Of the question and of the context.
        answers: Column of `{"text": [...], "answer_start": [...]}`, as in SQuAD on the hub.
        no_answer: Whether rows without an answer are meant so (SQuAD 2).

    Raises:
        DataError: What is no text, an answer that is not in its context, or none where there must be one.
    """
    rows = []
    pairs = zip(dataset[columns[0]], dataset[columns[1]], strict=True)
    for number, ((question, context), given) in enumerate(zip(pairs, dataset[answers], strict=True)):
        at = f"data: {where}, row {number}"
        for column, text in zip(columns, (question, context), strict=True):
            if not isinstance(text, str) or not text.strip():
                raise DataError(at, f"column {column!r} holds no text.", "Put text into the row, or drop it.")
        texts, starts = _answers(given, at, answers)
        if not texts and not no_answer:
            raise DataError(
                at, "has no answer.", "Set task.no_answer: true where contexts may not tell, or drop the row."
            )
        for text, start in zip(texts, starts, strict=True):
            if context[start : start + len(text)] != text:
                raise DataError(
                    at,
                    f"the answer {shown(text)} does not stand at letter {start} of its context.",
                    f"Correct `answer_start` in column {answers!r}, or drop the row.",
                )
        # Letters in front of a question are no part of it, and would take room.
        rows.append(
            Row(
                question=question.strip(),
                context=context,
                answers=tuple(texts),
                start=starts[0] if starts else 0,
            )
        )
    return rows


def _answers(given: Any, at: str, column: str) -> tuple[list[str], list[int]]:
    """Return texts and places, from lists side by side or from a list of pairs."""
    if isinstance(given, list) and all(isinstance(answer, Mapping) for answer in given):
        given = {key: [answer.get(key) for answer in given] for key in ("text", "answer_start")}
    if isinstance(given, Mapping) and _are(given.get("text"), str) and _are(given.get("answer_start"), int):
        texts, starts = list(given["text"]), list(given["answer_start"])
        if len(texts) == len(starts) and all(texts) and all(start >= 0 for start in starts):
            return texts, starts
    raise DataError(
        at,
        f"column {column!r} holds {shown(given)}.",
        'Write {"text": ["Ann"], "answer_start": [0]}, with as many texts as places.',
    )


def _are(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)
