"""Answers of a model beside those of people, as VQA counts them (Antol et al. 2015, arXiv 1505.00468)."""

import re
from collections.abc import Sequence
from typing import Final

_ARTICLES: Final = frozenset(("a", "an", "the"))
_NUMBERS: Final = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_SEPARATES: Final = str.maketrans(dict.fromkeys(';/[]"{}()=+\\_-><@`,?!', " "))
_ENOUGH: Final = 3
"""People who must have said the same for an answer to be wholly right."""


def normalized(answer: str) -> str:
    """Return an answer without what makes no difference: capitals, articles, punctuation, numbers as words.

    Close to the rules of VQA, whose list of contractions is replaced by leaving apostrophes out.

    >>> normalized("The red-brick Wall."), normalized("two, isn't it?"), normalized("1,000.5"), normalized("A")
    ('red brick wall', '2 isnt it', '1000.5', 'a')
    """
    text = re.sub(r"(?<=\d),(?=\d)", "", answer.lower())
    text = re.sub(r"\.(?!\d)", "", text).replace("'", "").translate(_SEPARATES)
    words = [_NUMBERS.get(word, word) for word in text.split()]
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def is_exact(answer: str, given: Sequence[str]) -> bool:
    """Tell whether somebody gave this answer.

    >>> is_exact("a cup", ["mug", "Cup."])
    True
    """
    return normalized(answer) in set(map(normalized, given))


def agreement(answer: str, given: Sequence[str]) -> float:
    """Return how far people agree with an answer: min(1, how many of the others gave it / 3), leaving out each in turn.

    Where fewer than four people answered, 3 becomes the number of the others; of a single answer, this is `is_exact`.

    >>> agreement("cup", ["cup"] * 4 + ["mug"] * 6), agreement("cup", ["cup", "mug"]), agreement("cup", ["cup"])
    (1.0, 0.5, 1.0)
    """
    if len(given) == 1:
        return float(is_exact(answer, given))
    said, others = normalized(answer), [normalized(each) for each in given]
    enough, same = min(_ENOUGH, len(others) - 1), others.count(said)
    return sum(min(1.0, (same - (other == said)) / enough) for other in others) / len(others)
