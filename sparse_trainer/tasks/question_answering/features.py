"""Questions and contexts as token ids: a long context becomes several overlapping chunks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from sparse_trainer.errors import DataError, RecipeError
from sparse_trainer.tasks.question_answering.rows import Row

# Shape legend: T = tokens of one chunk.


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunks:
    """What a model reads of some questions, and where it lies in their contexts."""

    encoded: Dataset
    """Token ids, and `start_positions` and `end_positions`: of CLS where a chunk holds no answer."""
    rows: tuple[int, ...]
    """The question that each chunk belongs to."""
    offsets: tuple[NDArray[np.int32], ...]
    """T2 per chunk: the letters of each token in the context; (0, 0) = the token is not of the context."""
    first_tokens: tuple[int, ...]
    """Where each chunk has CLS."""


def check_stride(
    stride: int, max_length: int, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise for chunks that could not go forward: their overlap is as long as what a question leaves.

    Raises:
        RecipeError: For every question.
        DataError: For the longest question.
    """
    if stride >= max_length:
        raise RecipeError(
            "task.stride",
            f"chunks of data.max_length = {max_length} tokens cannot overlap by {stride}.",
            f"Take less, e.g. {max_length // 3}, or raise data.max_length.",
        )
    added = len(tokenizer("", "")["input_ids"])
    lengths = [
        len(ids) + added
        for ids in tokenizer([row.question for row in rows], add_special_tokens=False)["input_ids"]
    ]
    longest = int(np.argmax(lengths))
    if lengths[longest] + stride >= max_length:
        raise DataError(
            f"data: {rows[longest].question[:60]!r}",
            f"the question takes {lengths[longest]} of data.max_length = {max_length} tokens: chunks that overlap by "
            f"task.stride = {stride} cannot go forward.",
            "Raise data.max_length, lower task.stride, or drop the row.",
        )


def encode(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int) -> Chunks:
    """Return the chunks of some questions, in their order."""
    found: Mapping[str, Any] = tokenizer(
        [row.question for row in rows],
        [row.context for row in rows],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    owners = tuple(found["overflow_to_sample_mapping"])
    offsets, firsts, starts, ends = [], [], [], []
    for chunk, owner in enumerate(owners):
        ids = found["input_ids"][chunk]
        of_context = np.array([part == 1 for part in found.sequence_ids(chunk)])  # type: ignore[attr-defined]
        offsets_T2 = np.array(found["offset_mapping"][chunk], dtype=np.int32) * of_context[:, None]
        first = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
        start, end = _span(rows[owner], offsets_T2) or (first, first)
        offsets.append(offsets_T2)
        firsts.append(first)
        starts.append(start)
        ends.append(end)
    inputs = {name: found[name] for name in tokenizer.model_input_names if name in found}
    return Chunks(
        encoded=Dataset.from_dict({**inputs, "start_positions": starts, "end_positions": ends}),
        rows=owners,
        offsets=tuple(offsets),
        first_tokens=tuple(firsts),
    )


def _span(row: Row, offsets_T2: NDArray[np.int32]) -> tuple[int, int] | None:
    """Return the first and the last token of the first answer; None where the chunk does not hold all of it."""
    if not row.answers:
        return None
    last = row.start + len(row.answers[0])
    inside = np.flatnonzero(offsets_T2[:, 1] > offsets_T2[:, 0])
    if not len(inside) or offsets_T2[inside[0], 0] > row.start or offsets_T2[inside[-1], 1] < last:
        return None
    start = inside[np.flatnonzero(offsets_T2[inside, 0] <= row.start)[-1]]
    end = inside[np.flatnonzero(offsets_T2[inside, 1] >= last)[0]]
    return (int(start), int(end)) if start <= end else None
