"""ROUGE (Lin, 2004): how much of a reference text is in a written one; the F1 of the package rouge_score, unstemmed."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

_GAP: Final = re.compile(r"[^a-z0-9]+")


def words_of(text: str) -> list[str]:
    """Return the words that count: lower case, of Latin letters and digits only, as in rouge_score.

    >>> words_of("The U.S. won 3-2!")
    ['the', 'u', 's', 'won', '3', '2']
    """
    return _GAP.sub(" ", text.lower()).split()


def rouge_n(written: str, reference: str, size: int) -> float:
    """Return the F1 of the runs of `size` words that both texts have.

    >>> rouge_n("the cat sat", "the cat lay down", 1)
    0.5714285714285715
    >>> rouge_n("the cat sat", "the cat lay down", 2)
    0.4
    """
    runs = [_runs(words_of(text), size) for text in (written, reference)]
    return _f1((runs[0] & runs[1]).total(), runs[0].total(), runs[1].total())


def rouge_l(written: str, reference: str) -> float:
    """Return the F1 of the longest common subsequence of words.

    >>> rouge_l("the cat sat", "a cat sat on the mat")
    0.4444444444444444
    """
    words, others = words_of(written), words_of(reference)
    return _f1(longest_common(words, others), len(words), len(others))


def longest_common(words: Sequence[str], others: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    >>> longest_common("abcbdab", "bdcaba")
    4
    """
    row = [0] * (len(others) + 1)
    for word in words:
        diagonal = 0
        for column, other in enumerate(others, start=1):
            above = row[column]
            row[column] = diagonal + 1 if word == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]


def _runs(words: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def _f1(common: int, written: int, reference: int) -> float:
    if common == 0:
        return 0.0
    precision, recall = common / written, common / reference
    return 2 * precision * recall / (precision + recall)
