"""Several measurements of one model, and of a model beside another on the same tokens and questions."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sparse_trainer.data.corpora.base import Corpus
from sparse_trainer.data.corpora.read import check_source, find
from sparse_trainer.errors import ArgumentError, nearest, shown
from sparse_trainer.fields import check_counts
from sparse_trainer.tasks.language.choices import Accuracy, multiple_choice
from sparse_trainer.tasks.language.text import Perplexity, beyond_window, perplexity, ratio_of_sums

Result = Perplexity | Accuracy

Tell = Callable[[str, int, int], None]
"""Takes a task, the number of its sequences that are done, and of all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationOptions:
    """How much is measured, and in which pieces."""

    limit: int | None = None
    """Questions per corpus, from its start; None = all."""
    max_tokens: int | None = None
    """Tokens of running text, from its start; None = the corpus decides, mostly all."""
    length: int | None = None
    """Tokens per sequence at most; None = 2048 or the model's positions."""
    stride: int | None = None
    """Tokens from one window of text to the next; None = no overlap."""
    batch_size: int = 8
    """Sequences per forward pass."""

    def __post_init__(self) -> None:
        check_counts(limit=self.limit, stride=self.stride, batch_size=self.batch_size)
        check_counts(2, max_tokens=self.max_tokens, length=self.length)
        if self.stride is not None and self.length is not None and self.stride > self.length:
            raise ArgumentError("stride", *beyond_window(self.stride, self.length))


def evaluate(
    model: PreTrainedModel,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    files: Mapping[str, str | Path] | None = None,
    options: EvaluationOptions | None = None,
    tell: Tell | None = None,
) -> dict[str, Result]:
    """Measure perplexity on running text and accuracy on questions.

    Args:
        tasks: Names of corpora, or local files of running text.
        files: Corpus -> local file that stands in for the hub data set.

    Raises:
        ArgumentError: No task, or a file for a task that is not measured.
        DataError: A corpus that is not known, or cannot be read.
        UnsupportedModelError: No causal language model.
    """
    given, wanted = files or {}, options or EvaluationOptions()
    known = check_tasks(tasks, given, wanted)
    found: dict[str, Result] = {}
    for task, corpus in known.items():

        def told(done: int, total: int, task: str = task) -> None:
            if tell is not None:
                tell(task, done, total)

        if corpus.question is None:
            found[task] = perplexity(
                model, tokenizer, corpus, length=wanted.length, stride=wanted.stride,
                max_tokens=wanted.max_tokens, file=given.get(task), batch_size=wanted.batch_size, tell=told,
            )  # fmt: skip
        else:
            found[task] = multiple_choice(
                model, tokenizer, corpus, limit=wanted.limit, length=wanted.length,
                file=given.get(task), batch_size=wanted.batch_size, tell=told,
            )  # fmt: skip
    return found


def check_tasks(
    tasks: Sequence[str], files: Mapping[str, str | Path], options: EvaluationOptions
) -> dict[str, Corpus]:
    """Return the corpora of these names, and refuse what can be known to fail or to mean nothing: no model is needed.

    Raises:
        ArgumentError: No task; a file for a task that is not measured; an option that no task reads.
        DataError: A corpus that is not known, or a file that is not there.
    """
    if not tasks:
        raise ArgumentError("tasks", "none.", "Name at least one corpus.")
    for name in files:
        if name not in tasks:
            raise ArgumentError("files", f"{shown(name)} is not among the tasks.", nearest(name, tasks))
    known = {task: find(task) for task in tasks}
    for task, corpus in known.items():
        check_source(corpus, "evaluation", files.get(task))
    has_text = any(corpus.question is None for corpus in known.values())
    has_questions = any(corpus.question is not None for corpus in known.values())
    if options.limit is not None and not has_questions:
        raise ArgumentError(
            "limit", "counts questions, and no task has any.", "Drop it; of text take `max_tokens`."
        )
    for name, value in (("max_tokens", options.max_tokens), ("stride", options.stride)):
        if value is not None and not has_text:
            raise ArgumentError(name, "is for running text, and the tasks are questions.", "Drop it.")
    return known


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One number of a model beside that of a baseline, on the same tokens or questions."""

    number: str
    """perplexity, acc or acc_norm."""
    value: float
    baseline: float
    change: float
    """Perplexity: over that of the baseline. Accuracy: less that of the baseline."""
    stderr: float | None
    """Standard error of the change, in pairs of windows or questions."""


def compare(result: Result, baseline: Result) -> list[Change]:
    """Return a result beside that of a baseline.

    Raises:
        ArgumentError: They were not measured on the same.
    """
    if isinstance(result, Perplexity) and isinstance(baseline, Perplexity):
        return [_ratio(result, baseline)]
    if isinstance(result, Accuracy) and isinstance(baseline, Accuracy):
        return [
            _difference("acc", result.right, baseline.right),
            _difference("acc_norm", result.right_norm, baseline.right_norm),
        ]
    raise ArgumentError("compare", "a perplexity and an accuracy.", "Compare results of one task.")


def _ratio(result: Perplexity, baseline: Perplexity) -> Change:
    counts, others = ([count for _, count in each.windows] for each in (result, baseline))
    if counts != others:
        raise ArgumentError(
            "compare", f"{result.num_tokens} and {baseline.num_tokens} tokens, in other windows.",
            "Measure both with the same tokenizer, `length` and `stride`.",
        )  # fmt: skip
    pairs = zip(result.windows, baseline.windows, strict=True)
    moved, error = ratio_of_sums(tuple((mine - other, count) for (mine, count), (other, _) in pairs))
    return Change(
        number="perplexity",
        value=result.perplexity,
        baseline=baseline.perplexity,
        change=math.exp(moved),
        stderr=None if error is None else math.exp(moved) * error,
    )


def _difference(number: str, right: Sequence[bool], baseline: Sequence[bool]) -> Change:
    if len(right) != len(baseline):
        raise ArgumentError(
            "compare", f"{len(right)} and {len(baseline)} questions.", "Measure both on the same."
        )
    moved, error = ratio_of_sums(tuple((a - b, 1) for a, b in zip(right, baseline, strict=True)))
    return Change(
        number=number,
        value=sum(right) / len(right),
        baseline=sum(baseline) / len(baseline),
        change=moved,
        stderr=error,
    )
