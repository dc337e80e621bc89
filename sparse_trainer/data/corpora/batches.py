"""Calibration batches from a corpus: blocks of running text, or one sequence per row."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from sparse_trainer.data.corpora.base import Corpus
from sparse_trainer.data.corpora.encode import as_user_message, encode, frame_of, stream
from sparse_trainer.data.corpora.read import find, joined, rows, texts
from sparse_trainer.errors import ArgumentError, TooLittleDataError

# Shape legend: B = sequences, T = tokens.

CHARACTERS_PER_TOKEN = 32
"""No more text than this is tokenized for each token wanted: few tokenizers reach 5 characters a token."""


def calibration_batches(
    source: str,
    tokenizer: Any,
    *,
    samples: int = 128,
    length: int = 512,
    seed: int = 42,
    batch_size: int = 8,
    file: str | Path | None = None,
    chat_template: bool = False,
) -> list[dict[str, Tensor]]:
    """Return calibration batches of `input_ids` and `attention_mask`.

    Running text is put together and cut into blocks of `length` tokens, special tokens included, which lie anywhere
    and do not overlap. Of questions, and of rows in a chat template, each is a sequence, cut to `length`.

    Args:
        source: Name of a corpus, or path of a local file.
        tokenizer: Of the model that will read them.
        samples: Sequences.
        length: Tokens per sequence.
        seed: Draws blocks and rows.
        file: Local file that stands in for the hub data set.
        chat_template: Wrap each row as a user's message, by the tokenizer's own template.

    Raises:
        DataError: No such corpus, too little text, or no chat template.
        ArgumentError: A count below 1.
    """
    frame = frame_of(tokenizer)
    for name, count, least in (
        ("samples", samples, 1),
        ("length", length, len(frame) + 2),
        ("batch_size", batch_size, 1),
    ):
        if count < least:
            raise ArgumentError(name, f"{count} is too small.", f"Give {least} or more.")
    corpus = find(source)
    generator = torch.Generator().manual_seed(seed)
    found = _texts(corpus, file, generator)
    if corpus.question is not None or chat_template:
        sequences = _one_each(corpus, found, tokenizer, samples, length, chat_template)
    else:
        blocks = _blocks(corpus, found, tokenizer, samples, length - len(frame), generator)
        sequences = [frame.around(block) for block in blocks]
    padding = tokenizer.pad_token_id or 0
    return [_batch(sequences[i : i + batch_size], padding) for i in range(0, samples, batch_size)]


def _texts(corpus: Corpus, file: str | Path | None, generator: Generator) -> Iterator[str]:
    """Yield the rows of the calibration part: in order where they are one text, else drawn at random."""
    found = rows(corpus, "calibration", file)
    order = None if corpus.is_one_text else torch.randperm(len(found), generator=generator).tolist()
    return texts(corpus, found, order)


def _one_each(
    corpus: Corpus, found: Iterator[str], tokenizer: Any, samples: int, length: int, chat_template: bool
) -> list[list[int]]:
    frame = frame_of(tokenizer)

    def as_ids(text: str) -> list[int]:
        return as_user_message(tokenizer, text) if chat_template else frame.around(encode(tokenizer, text))

    sequences: list[list[int]] = []
    for text in found:
        if not text.strip():
            continue
        sequences.append(as_ids(text)[:length])
        if len(sequences) == samples:
            return sequences
    raise TooLittleDataError(
        corpus.name, f"has {len(sequences)} rows with text, and {samples} are needed.",
        "Ask for fewer `samples`, or give more text.",
    )  # fmt: skip


def _blocks(
    corpus: Corpus, found: Iterator[str], tokenizer: Any, samples: int, length: int, generator: Generator
) -> list[list[int]]:
    """Return `samples` of the blocks that a text falls into when it is cut from a random place on."""
    needed = samples * length
    most = CHARACTERS_PER_TOKEN * needed
    stretches = (_stretch(text, most, generator) for text in joined(corpus, found))
    ids = stream(tokenizer, stretches, corpus.joint, needed)
    if len(ids) < needed:
        raise TooLittleDataError(
            corpus.name, f"has {len(ids)} tokens, and {samples} x {length} = {needed} are needed.",
            "Ask for fewer `samples`, or a smaller `length`, or give more text.",
        )  # fmt: skip
    start = int(torch.randint(len(ids) % length + 1, (1,), generator=generator))
    places = torch.randperm(len(ids) // length, generator=generator)[:samples].tolist()
    return [ids[start + place * length : start + (place + 1) * length] for place in places]


def _stretch(text: str, most: int, generator: Generator) -> str:
    """Return a stretch of at most so many characters that starts anywhere."""
    start = int(torch.randint(max(0, len(text) - most) + 1, (1,), generator=generator))
    return text[start : start + most]


def _batch(sequences: Sequence[Sequence[int]], padding: int) -> dict[str, Tensor]:
    """Return sequences as one batch, padded on the right."""
    longest = max(map(len, sequences))
    ids_BT = torch.tensor([[*ids, *[padding] * (longest - len(ids))] for ids in sequences])
    mask_BT = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences])
    return {"input_ids": ids_BT, "attention_mask": mask_BT}
