"""A corpus that needs no network: the part of Python's own reference that `help()` shows, 0.46 MB of English text."""

from collections.abc import Mapping, Sequence

from sparse_trainer.data.corpora.base import Part, Row

_EVERY = 5
"""One topic in so many is for evaluation."""


def python_docs(part: Part) -> Sequence[Row]:
    """Return the topics of a part, one a row: four of five for calibration, the fifth for evaluation.

    Its wording changes from one release of Python to the next: figures measured on it name that release.
    """
    from pydoc_data.topics import topics  # half a megabyte that only who asks for it should load

    texts: Mapping[str, str] = topics
    return [
        {"text": text}
        for number, (_, text) in enumerate(sorted(texts.items()))
        if (number % _EVERY == 0) == (part == "evaluation")
    ]
