"""A corpus that needs no network: the part of Python's own reference that `help()` shows, 0.4 MB of English text."""

from collections.abc import Iterable, Mapping, Sequence

from sparse_trainer.data.corpora.base import Part, Row

_EVERY = 4
"""One topic in so many is for evaluation."""
_CHAPTER = 2000
"""Characters by which a chapter is known again."""


def python_docs(part: Part) -> Sequence[Row]:
    """Return the topics of a part, one a row: three of four for calibration, the fourth for evaluation.

    Its wording changes from one release of Python to the next: figures measured on it name that release.
    """
    from pydoc_data.topics import topics  # half a megabyte that only who asks for it should load

    texts: Mapping[str, str] = topics
    return [
        {"text": text}
        for number, text in enumerate(_apart(set(texts.values())))
        if (number % _EVERY == 0) == (part == "evaluation")
    ]


def _apart(texts: Iterable[str]) -> list[str]:
    """Return those that are no part of another one: some topics are chapters of others, under an own heading."""
    bodies = {text: text.split("\n", 3)[-1].strip()[:_CHAPTER] for text in texts}
    return [
        text for text in sorted(bodies) if not any(bodies[text] in other for other in bodies if other != text)
    ]
