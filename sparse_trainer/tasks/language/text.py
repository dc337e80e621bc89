"""Perplexity of a causal language model on running text."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sparse_trainer.data.corpora.base import Corpus
from sparse_trainer.data.corpora.encode import frame_of, stream
from sparse_trainer.data.corpora.read import find, joined, rows, texts
from sparse_trainer.errors import ArgumentError, DataError
from sparse_trainer.tasks.language.scoring import Scored, Scorer, Tell

LENGTH = 2048
"""Tokens in a window, unless the model has fewer positions: what published tables use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Perplexity:
    """How well a model foretells a text; lower is better."""

    corpus: str
    perplexity: float
    """exp of the loss."""
    stderr: float | None
    """Standard error of the perplexity; windows are taken as independent, tokens within one are not."""
    loss: float
    """Mean negative log-likelihood per scored token, in nats."""
    num_tokens: int
    """Scored tokens."""
    length: int
    stride: int
    bos: bool
    """Whether each window starts with special tokens, as the tokenizer puts in front of a text."""
    windows: tuple[tuple[float, int], ...]
    """Of each window: negative log-likelihood, scored tokens."""

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON, without the windows."""
        return {"kind": "perplexity"} | {
            name: value for name, value in asdict(self).items() if name != "windows"
        }


def perplexity(
    model: PreTrainedModel,
    tokenizer: Any,
    corpus: str | Corpus = "wikitext2",
    *,
    length: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    file: str | Path | None = None,
    batch_size: int = 8,
    tell: Tell | None = None,
) -> Perplexity:
    """Measure perplexity in windows that move over the text.

    With `stride` = `length`, the default and the usual way, blocks stand by themselves. With a smaller stride a window
    starts inside the one before, and only the tokens are scored that none before it has scored. A window starts with
    BOS where the tokenizer puts one in front of a text. Every token is scored once, except where nothing stands before
    it: without BOS, the first of the text, and with independent blocks the first of each.

    Args:
        corpus: Name, local file, or a corpus of running text.
        length: Tokens per window, BOS included; default: 2048 or the model's positions.
        stride: Tokens from the start of a window to the next; default: no overlap.
        max_tokens: Stop the text after so many tokens; default: the corpus decides, mostly all.
        file: Local file that stands in for the hub data set.
        batch_size: Windows per forward pass.

    Raises:
        UnsupportedModelError: No causal language model.
        ArgumentError: A window or stride that cannot be.
        DataError: No text.
    """
    known = find(corpus) if isinstance(corpus, str) else corpus
    scorer = Scorer(model, batch_size)
    before = frame_of(tokenizer).before
    length = scorer.room(length, LENGTH)
    room = length - len(before)
    if room < 1:
        raise ArgumentError(
            "length", f"{length} tokens, {len(before)} of them special.", f"Give {len(before) + 1} or more."
        )
    if stride is not None and stride > length:
        raise ArgumentError("stride", *beyond_window(stride, length))
    stride = room if stride is None else min(stride, room)  # as long as the window: no overlap
    if stride < 1:
        raise ArgumentError("stride", f"{stride} is not positive.", f"Give 1 to {room}.")
    ids = text_ids(known, tokenizer, known.max_tokens if max_tokens is None else max_tokens, file)
    moving = windows(ids, before, room, stride)
    if not moving:
        raise DataError(known.name, f"{len(ids)} tokens of text.", "Give more text.")
    sums = scorer.log_likelihoods(moving, tell)
    parts = tuple((-value, window.count) for value, window in zip(sums, moving, strict=True))
    loss, error = ratio_of_sums(parts)
    return Perplexity(
        corpus=known.name,
        perplexity=math.exp(loss),
        stderr=None if error is None else math.exp(loss) * error,
        loss=loss,
        num_tokens=sum(count for _, count in parts),
        length=length,
        stride=stride,
        bos=bool(before),
        windows=parts,
    )


def beyond_window(stride: int, length: int) -> tuple[str, str]:
    """Return what is wrong with a stride that would leave out tokens between two windows, and what to do."""
    return (
        f"{stride} is beyond the window of {length} tokens: it would leave text out.",
        f"Give {length} or less.",
    )


def windows(ids: list[int], before: tuple[int, ...], room: int, stride: int) -> list[Scored]:
    """Return windows over a text, with how many of their last tokens are scored.

    >>> [(w.ids, w.count) for w in windows([1, 2, 3, 4, 5], (), room=3, stride=2)]
    [((1, 2, 3), 2), ((3, 4, 5), 2)]
    >>> [(w.ids, w.count) for w in windows([1, 2, 3, 4], (0,), room=2, stride=2)]
    [((0, 1, 2), 2), ((0, 3, 4), 2)]
    """
    found, done = [], 0
    for start in range(0, len(ids), stride):
        end = min(start + room, len(ids))
        inside = (*before, *ids[start:end])
        count = min(end - done, len(inside) - 1)
        if count > 0:
            found.append(Scored(inside, count))
        done = end
        if end == len(ids):
            break
    return found


def text_ids(corpus: Corpus, tokenizer: Any, most: int | None, file: str | Path | None) -> list[int]:
    """Return the token ids of a corpus' text, at most so many.

    Raises:
        DataError: It cannot be had, or holds questions.
        ArgumentError: At most fewer than 2 tokens.
    """
    if corpus.text is None:
        raise DataError(corpus.name, "holds questions, no running text.", "Measure multiple choice on it.")
    if most is not None and most < 2:
        raise ArgumentError("max_tokens", f"{most} is too small.", "Give 2 or more.")
    parts = texts(corpus, rows(corpus, "evaluation", file))
    return stream(tokenizer, joined(corpus, parts), corpus.joint, most)[:most]


def ratio_of_sums(parts: tuple[tuple[float, int], ...]) -> tuple[float, float | None]:
    """Return the mean per token of sums over windows, and its standard error between windows.

    >>> ratio_of_sums(((2.0, 1), (4.0, 1)))
    (3.0, 1.0)
    """
    tokens = sum(count for _, count in parts)
    mean = sum(value for value, _ in parts) / tokens
    if len(parts) < 2:
        return mean, None
    squares = sum((value - mean * count) ** 2 for value, count in parts)
    return mean, math.sqrt(squares * len(parts) / (len(parts) - 1)) / tokens
