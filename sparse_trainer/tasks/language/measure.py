"""Several measurements of one model, and of a model beside another on the same tokens and questions."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from sparse_trainer.data.corpora.base import Corpus
from sparse_trainer.data.corpora.read import check_source, find
from sparse_trainer.data.image_text.rows import holds_images
from sparse_trainer.errors import ArgumentError, nearest, shown
from sparse_trainer.fields import check_counts
from sparse_trainer.inputs.bars import counting
from sparse_trainer.tasks.language.choices import Accuracy, multiple_choice
from sparse_trainer.tasks.language.image_text.answers import WrittenAnswers
from sparse_trainer.tasks.language.image_text.measure import (
    check_image_questions,
    image_questions,
    measure_images,
)
from sparse_trainer.tasks.language.text import Perplexity, beyond_window, perplexity, ratio_of_sums

Result = Perplexity | Accuracy | WrittenAnswers

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
    """Sequences per forward pass; questions about images stand alone."""
    answer_tokens: int | None = None
    """Tokens of an answer that the model writes to a question about images, at most; None = 16."""

    def __post_init__(self) -> None:
        check_counts(
            limit=self.limit, stride=self.stride, batch_size=self.batch_size, answer_tokens=self.answer_tokens
        )
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
    """Measure perplexity on running text, accuracy on questions, and how questions about images are answered.

    Args:
        tokenizer: Of the model; or the processor of an image-text model, which questions about images take.
        tasks: Names of corpora, or local files: of running text, or of rows with images.
        files: Corpus -> local file that stands in for the hub data set.
        tell: What is told of the progress; None = a bar where somebody looks.

    Raises:
        ArgumentError: No task, or a file for a task that is not measured.
        DataError: A corpus that is not known, or cannot be read.
        UnsupportedModelError: No causal language model.
    """
    given, wanted = files or {}, options or EvaluationOptions()
    known = check_tasks(tasks, given, wanted)
    found: dict[str, Result] = {}
    words = tokenizer.tokenizer if isinstance(tokenizer, ProcessorMixin) else tokenizer
    for task, corpus in known.items():
        with counting(task) as shown_as_bar:
            told = shown_as_bar if tell is None else partial(tell, task)
            if corpus.has_images:
                assert corpus.file is not None
                found[task] = measure_images(
                    model, tokenizer, image_questions(corpus.file, wanted.limit), corpus.name,
                    answer_tokens=wanted.answer_tokens, tell=told,
                )  # fmt: skip
            elif corpus.question is None:
                found[task] = perplexity(
                    model, words, corpus, length=wanted.length, stride=wanted.stride,
                    max_tokens=wanted.max_tokens, file=given.get(task), batch_size=wanted.batch_size, tell=told,
                )  # fmt: skip
            else:
                found[task] = multiple_choice(
                    model, words, corpus, limit=wanted.limit, length=wanted.length,
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
        if corpus.file is not None and holds_images(corpus.file):
            known[task] = replace(corpus, has_images=True)
    has_images = any(corpus.has_images for corpus in known.values())
    has_text = any(corpus.question is None and not corpus.has_images for corpus in known.values())
    has_questions = any(corpus.question is not None for corpus in known.values())
    _check_options(options, has_text=has_text, has_questions=has_questions, has_images=has_images)
    for corpus in known.values():
        if corpus.has_images and corpus.file is not None:
            check_image_questions(corpus.file, options.limit)
    return known


def _check_options(
    options: EvaluationOptions, *, has_text: bool, has_questions: bool, has_images: bool
) -> None:
    """Raise `ArgumentError` for an option that no task reads."""
    if options.limit is not None and not (has_questions or has_images):
        raise ArgumentError(
            "limit", "counts questions, and no task has any.", "Drop it; of text take `max_tokens`."
        )
    for name, value in (("max_tokens", options.max_tokens), ("stride", options.stride)):
        if value is not None and not has_text:
            raise ArgumentError(name, "is for running text, and the tasks are questions.", "Drop it.")
    if options.length is not None and not (has_text or has_questions):
        raise ArgumentError("length", "cuts text, and questions about images stay whole.", "Drop it.")
    if options.answer_tokens is not None and not has_images:
        raise ArgumentError(
            "answer_tokens", "is for questions about images, and no task has any.", "Drop it."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One number of a model beside that of a baseline, on the same tokens or questions."""

    number: str
    """perplexity, acc, acc_norm, exact_match or vqa_acc."""
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
    if isinstance(result, WrittenAnswers) and isinstance(baseline, WrittenAnswers):
        return [
            _difference("exact_match", result.exact, baseline.exact),
            _difference("vqa_acc", result.shares, baseline.shares),
        ]
    raise ArgumentError("compare", "results of two kinds.", "Compare results of one task.")


def numbers_of(result: Result) -> list[tuple[str, float, float | None]]:
    """Return name, value and standard error of what a result holds, in the order of `compare`."""
    if isinstance(result, Perplexity):
        return [("perplexity", result.perplexity, result.stderr)]
    if isinstance(result, WrittenAnswers):
        return [
            ("exact_match", result.exact_match, result.exact_match_stderr),
            ("vqa_acc", result.vqa_acc, result.vqa_acc_stderr),
        ]
    return [
        ("acc", result.acc, result.acc_stderr),
        ("acc_norm", result.acc_norm, result.acc_norm_stderr),
    ]


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


def _difference(number: str, right: Sequence[float], baseline: Sequence[float]) -> Change:
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
