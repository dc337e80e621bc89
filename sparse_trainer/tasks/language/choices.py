"""Multiple-choice accuracy: the ending that a model finds most likely, as lm-evaluation-harness counts it."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sparse_trainer.data.corpora.base import Corpus, Question
from sparse_trainer.data.corpora.encode import encode, frame_of
from sparse_trainer.data.corpora.read import find, questions, rows
from sparse_trainer.errors import ArgumentError, DataError
from sparse_trainer.tasks.language.scoring import Scored, Scorer, Tell

LENGTH = 2048
"""Tokens of a question with its longest choice; of longer ones the start is left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """How many questions a model answers rightly; higher is better."""

    corpus: str
    acc: float
    """Share of questions whose right choice has the highest log-likelihood."""
    acc_stderr: float | None
    """Standard error over questions; None of a single one."""
    acc_norm: float
    """The same for the log-likelihood per character of the choice, as `acc_norm` of lm-evaluation-harness."""
    acc_norm_stderr: float | None
    num_questions: int
    right: tuple[bool, ...]
    """Of each question, whether `acc` counts it."""
    right_norm: tuple[bool, ...]
    """Of each question, whether `acc_norm` counts it."""

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON, without the single questions."""
        left_out = ("right", "right_norm")
        return {"kind": "multiple_choice"} | {
            name: value for name, value in asdict(self).items() if name not in left_out
        }


def multiple_choice(
    model: PreTrainedModel,
    tokenizer: Any,
    corpus: str | Corpus,
    *,
    limit: int | None = None,
    length: int | None = None,
    file: str | Path | None = None,
    batch_size: int = 8,
    tell: Tell | None = None,
) -> Accuracy:
    """Measure accuracy, zero-shot.

    Args:
        corpus: Name, or a corpus of questions.
        limit: The first so many questions; default: all.
        length: Tokens of a question with a choice, at most; default: 2048 or the model's positions.
        file: Local file that stands in for the hub data set.
        batch_size: Sequences per forward pass.

    Raises:
        UnsupportedModelError: No causal language model.
        ArgumentError: A limit or length that cannot be.
        DataError: No questions, or a row that is none.
    """
    if limit is not None and limit < 1:
        raise ArgumentError("limit", f"{limit} is not positive.", "Give 1 or more.")
    known = find(corpus) if isinstance(corpus, str) else corpus
    scorer = Scorer(model, batch_size)
    room = scorer.room(length, LENGTH)
    if known.question is None:
        raise DataError(known.name, "holds no questions.", "Measure perplexity on it.")
    asked = questions(known, rows(known, "evaluation", file), limit)
    before = frame_of(tokenizer).before
    scored = [item for question in asked for item in choices(question, tokenizer, before, room)]
    found = iter(scorer.log_likelihoods(scored, tell))
    logs = [[next(found) for _ in question.endings] for question in asked]
    lengths = [[max(1, len(ending) - 1) for ending in question.endings] for question in asked]
    return accuracy_of(known.name, logs, lengths, [question.gold for question in asked])


def accuracy_of(
    corpus: str, logs: Sequence[Sequence[float]], lengths: Sequence[Sequence[int]], golds: Sequence[int]
) -> Accuracy:
    """Return how many questions the likeliest choices answer rightly.

    Args:
        logs: Of each question, the log-likelihood of each choice.
        lengths: Of each question, the characters of each choice, without the space in front.
        golds: Of each question, the number of the right choice.
    """
    right = tuple(likeliest(log) == gold for log, gold in zip(logs, golds, strict=True))
    norms = [
        [log / length for log, length in zip(*pair, strict=True)] for pair in zip(logs, lengths, strict=True)
    ]
    right_norm = tuple(likeliest(norm) == gold for norm, gold in zip(norms, golds, strict=True))
    return Accuracy(
        corpus=corpus,
        acc=sum(right) / len(right),
        acc_stderr=mean_error(right),
        acc_norm=sum(right_norm) / len(right),
        acc_norm_stderr=mean_error(right_norm),
        num_questions=len(right),
        right=right,
        right_norm=right_norm,
    )


def choices(question: Question, tokenizer: Any, before: tuple[int, ...], room: int) -> list[Scored]:
    """Return each choice behind its context, as token ids.

    Context and ending are tokenized as one text, and the tokens beyond those of the context alone are scored. What is
    too long loses its start, but not the BOS before it.

    Args:
        before: Special tokens that stand before a text; without any, EOS stands before an ending without context.
        room: Tokens at most.
    """
    found = []
    for context, ending in zip(question.contexts, question.endings, strict=True):
        start = encode(tokenizer, context.rstrip())
        whole = encode(tokenizer, context + ending)
        front = before or (() if start else (tokenizer.eos_token_id,))
        ids = (*front, *whole[-(room - len(front)) :])
        count = min(max(1, len(whole) - len(start)), len(ids) - 1)
        found.append(Scored(ids, count))
    return found


def likeliest(values: Sequence[float]) -> int:
    """Return where the largest value is, the first of equals.

    >>> likeliest([-2.0, -1.0, -1.0])
    1
    """
    return max(range(len(values)), key=values.__getitem__)


def mean_error(values: Sequence[float]) -> float | None:
    """Return the standard error of a mean; None of a single value.

    >>> mean_error([True, False, True, False])
    0.28867513459481287
    """
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
