"""Scores of written texts beside their references: ROUGE, and BLEU and chrF of the package sacrebleu (Post, 2018)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Final

from sparse_trainer.errors import ArgumentError, RecipeError, one_of
from sparse_trainer.tasks.generation.rouge import rouge_l, rouge_n

Score = Callable[[Sequence[str], Sequence[str]], float]
"""(written texts, references) -> value in [0, 1]."""


def _mean(score: Callable[[str, str], float]) -> Score:
    """Return the mean of a score over texts."""

    def mean(written: Sequence[str], references: Sequence[str]) -> float:
        return sum(map(score, written, references)) / len(written)

    return mean


def _bleu(written: Sequence[str], references: Sequence[str]) -> float:
    from sacrebleu.metrics.bleu import BLEU  # an extra

    return float(BLEU().corpus_score(list(written), [list(references)]).score) / 100


def _chrf(written: Sequence[str], references: Sequence[str]) -> float:
    from sacrebleu.metrics.chrf import CHRF  # an extra

    return float(CHRF().corpus_score(list(written), [list(references)]).score) / 100


SCORES: dict[str, Score] = {
    "rouge1": _mean(partial(rouge_n, size=1)),
    "rouge2": _mean(partial(rouge_n, size=2)),
    "rougeL": _mean(rouge_l),
    "bleu": _bleu,
    "chrf": _chrf,
}
OF_SACREBLEU: Final = ("bleu", "chrf")


def check_scores(names: Sequence[str]) -> None:
    """Raise `ArgumentError` for no names, or one that is not known."""
    if not names:
        raise ArgumentError("metrics", "names none.", "Give e.g. [rouge1].")
    for name in names:
        one_of("metrics", name, SCORES)


def installed_scores(names: Sequence[str]) -> Mapping[str, Score]:
    """Return the scores of these names.

    Raises:
        RecipeError: The package of one is missing.
    """
    for name in names:
        if name in OF_SACREBLEU and find_spec("sacrebleu") is None:
            raise RecipeError(
                "task.metrics", f"{name} is computed by sacrebleu, which is not installed.",
                "Run `pip install 'sparse-trainer[translation]'`, or name others: rouge1, rouge2, rougeL.",
            )  # fmt: skip
    return {name: SCORES[name] for name in names}
