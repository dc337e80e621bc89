"""What a corpus is: where its rows come from, and how a row becomes text or a question."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sparse_trainer.errors import DataError

Part = Literal["calibration", "evaluation"]
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A multiple-choice question: which of the endings follows?"""

    contexts: tuple[str, ...]
    """What stands before each ending: one text for all of them, or (Winogrande) one for each."""
    endings: tuple[str, ...]
    """What is scored, with the space that parts it from its context."""
    gold: int
    """Number of the right ending."""

    @property
    def text(self) -> str:
        """Return the right context with the right ending."""
        return self.contexts[self.gold] + self.endings[self.gold]


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """A named data set."""

    name: str
    hub: str | None
    """Hub id; None for a local file."""
    file: str | None = None
    """The local file that is the corpus."""
    read: Callable[[Part], Sequence[Row]] | None = None
    """What yields its rows, of a corpus that is on every machine."""
    config: str | None = None
    calibration: str = "train"
    """Split of the hub data set for calibration."""
    evaluation: str = "validation"
    """Split of the hub data set for evaluation."""
    files: Mapping[str, str] | None = None
    """Split -> file in the hub repository, where the whole is too large to load."""
    text: Callable[[Row], str] | None = None
    """Row -> text; None for questions, whose text is the context with the right ending."""
    question: Callable[[Row], Question] | None = None
    """Row -> question; None for running text."""
    joint: str = "\n\n"
    """What stands between two rows of running text."""
    max_tokens: int | None = None
    """Perplexity is measured on so many tokens, unless asked otherwise; None = on all."""
    is_one_text: bool = False
    """Whether the rows in their order are one text, rather than documents that stand by themselves."""
    has_images: bool = False
    """Whether rows are questions about images, for image-text models."""

    def split(self, part: Part) -> str:
        """Return the name of the hub split of a part."""
        return self.calibration if part == "calibration" else self.evaluation

    def text_of(self, row: Row) -> str:
        """Return a row as text.

        Raises:
            DataError: A column is missing, or holds something else.
        """
        if self.question is not None:
            return self.question_of(row).text
        assert self.text is not None
        return self.text(row)

    def question_of(self, row: Row) -> Question:
        """Return a row as a question.

        Raises:
            DataError: The corpus holds no questions; a column is missing, or holds something else.
        """
        if self.question is None:
            raise DataError(self.name, "holds no questions.", "Measure perplexity on it.")
        question = self.question(row)
        if not 0 <= question.gold < len(question.endings):
            raise DataError(
                self.name,
                f"answer {question.gold} to a question with {len(question.endings)} choices.",
                f"Correct or drop the row: {dict(row)}",
            )
        return question


def value(row: Row, *columns: str) -> Any:
    """Return the value of the first of these columns that the row has.

    Raises:
        DataError: It has none of them.

    >>> value({"label": 1, "text": "a"}, "answer", "label")
    1
    """
    for column in columns:
        if row.get(column) is not None:
            return row[column]
    raise DataError(
        "row",
        f"no column {' or '.join(map(repr, columns))}.",
        f"Rename a column: it has {', '.join(row) or 'none'}.",
    )
