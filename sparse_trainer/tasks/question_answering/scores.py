"""Exact match and F1 of answers as SQuAD defines them (Rajpurkar et al. 2016, section 6.1): what `evaluate` computes
under the names squad and squad_v2, without a download.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain(answer: str) -> str:
    """Return an answer without case, punctuation, articles and spare spaces.

    >>> plain("The  U.S. Army!")
    'us army'
    """
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 1.0 where the answer is one of the references, else 0.0."""
    return float(any(plain(answer) == plain(reference) for reference in references))


def f1(answer: str, references: Sequence[str]) -> float:
    """Return how well the words of an answer match those of the best reference: 0 to 1.

    >>> f1("the big red house", ["red house", "house"])
    0.8
    """
    return max(_f1(plain(answer).split(), plain(reference).split()) for reference in references)


def _f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    common = (Counter(found) & Counter(wanted)).total()
    return 0.0 if common == 0 else 2 * common / (len(found) + len(wanted))
