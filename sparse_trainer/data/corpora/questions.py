"""Rows as questions, in the zero-shot prompts of lm-evaluation-harness 0.4: so our scores stand beside its scores.

Every function reads the columns of the hub data set, and those of a plain file with the columns `question` (Winogrande:
`sentence`; HellaSwag: `ctx`, `activity`), `choices` (list of text) and `label` (number of the right one).
"""

import re
from collections.abc import Sequence
from typing import Any

from sparse_trainer.data.corpora.base import Question, Row, value
from sparse_trainer.errors import DataError

LETTERS = "ABCDEFGHIJ"


def boolq(row: Row) -> Question:
    """Follow task `boolq`: `PASSAGE, Question: ...?, Answer:`, then ` no` or ` yes`.

    The passage is that of SuperGLUE, `title -- passage`; where a file has a column `title`, it is put in front.

    >>> boolq({"title": "T", "passage": "P.", "question": "is it", "label": 1}).text
    'T -- P.\\nQuestion: is it?\\nAnswer: yes'
    """
    passage = f"{row['title']} -- {value(row, 'passage')}" if row.get("title") else value(row, "passage")
    context = f"{passage}\nQuestion: {value(row, 'question')}?\nAnswer:"
    return _question(context, ("no", "yes"), int(value(row, "label", "answer")))


def arc(row: Row) -> Question:
    """Follow tasks `arc_easy` and `arc_challenge`: `Question: ..., Answer:`, then the text of a choice."""
    context = f"Question: {value(row, 'question')}\nAnswer:"
    if "answerKey" not in row:
        return _question(context, _several(row, "choices"), int(value(row, "label")))
    choices = value(row, "choices")
    labels: list[str] = list(choices["label"])
    key = str(row["answerKey"])
    if key not in labels:
        raise DataError(
            "row", f"the answer {key!r} is none of {labels}.", "Give one of them, or drop the row."
        )
    return _question(context, choices["text"], labels.index(key))


def piqa(row: Row) -> Question:
    """Follow task `piqa`: `Question: ..., Answer:`, then a solution."""
    choices = _several(row, "choices") if "choices" in row else (value(row, "sol1"), value(row, "sol2"))
    return _question(
        f"Question: {value(row, 'goal', 'question')}\nAnswer:", choices, int(value(row, "label"))
    )


def mmlu(row: Row) -> Question:
    """Follow task `mmlu`: a line that names the subject, the question, the choices by letter, then a letter."""
    choices = _several(row, "choices")
    listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, choices, strict=False))
    subject = str(value(row, "subject")).replace("_", " ")
    context = (
        f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        f"{str(value(row, 'question')).strip()}\n{listed}Answer:"
    )
    return _question(context, LETTERS[: len(choices)], int(value(row, "answer", "label")))


def hellaswag(row: Row) -> Question:
    """Follow task `hellaswag`: `ACTIVITY: CONTEXT`, cleaned of the marks of its source, then an ending.

    The second half of the context starts with a capital. A file without `ctx_a` and `ctx_b` has them in one, and the
    half that starts small after a full stop is the second.
    """
    if "ctx_a" in row:
        first, second = str(row["ctx_a"]), str(row["ctx_b"])
    else:
        first, second = _halves(str(value(row, "ctx")))
    activity = value(row, "activity_label", "activity")
    context = clean(f"{activity}: {first} {second.capitalize()}")
    endings = [clean(ending) for ending in _several(row, "endings", "choices")]
    return _question(context, endings, int(value(row, "label")))


def winogrande(row: Row) -> Question:
    """Follow task `winogrande`, the partial evaluation of Trinh and Le: the blank is filled, what follows is scored.

    >>> question = winogrande({"sentence": "A told B that _ won.", "choices": ["A", "B"], "label": 0})
    >>> question.contexts, question.endings
    (('A told B that A', 'A told B that B'), (' won.', ' won.'))
    """
    sentence = str(value(row, "sentence"))
    if "_" not in sentence:
        raise DataError(
            "row", f"no blank '_' in {sentence!r}.", "Put '_' where the choice goes, or drop the row."
        )
    before, _, after = sentence.partition("_")
    if "choices" in row:
        options, gold = _several(row, "choices"), int(value(row, "label"))
    else:
        options, gold = (value(row, "option1"), value(row, "option2")), int(value(row, "answer")) - 1
    endings = tuple(f" {after.strip()}" for _ in options)
    return Question(contexts=tuple(f"{before}{option}" for option in options), endings=endings, gold=gold)


def clean(text: str) -> str:
    """Take the marks of WikiHow out of a text of HellaSwag.

    >>> clean("Make tea [title] Boil  water. [step] Use a kettle.")
    'Make tea. Boil water. Use a kettle.'
    """
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _halves(context: str) -> tuple[str, str]:
    """Split a context of HellaSwag in front of its unfinished last sentence.

    >>> _halves("A man sits. he"), _halves("Boil water. Use a kettle.")
    (('A man sits.', 'he'), ('Boil water. Use a kettle.', ''))
    """
    found = re.search(r"(?<=[.!?]) (?=[a-z][^.!?]*$)", context)
    return (context[: found.start()], context[found.end() :]) if found else (context, "")


def _several(row: Row, *columns: str) -> Sequence[Any]:
    """Return the list in the first of these columns that the row has."""
    found: Sequence[Any] = value(row, *columns)
    if isinstance(found, str):
        raise DataError(
            "row", f"{' or '.join(columns)} holds text, no list.", "Give json or parquet: csv holds no lists."
        )
    return found


def _question(context: str, choices: Sequence[Any], gold: int) -> Question:
    return Question(
        contexts=(context,) * len(choices), endings=tuple(f" {choice}" for choice in choices), gold=gold
    )
