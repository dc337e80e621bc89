"""Kinds of tokenizer: which tokens have to stay so that others come about, and the model without the rest.

Each works on the `model` of a tokenizer.json. Taking tokens out never changes how a text is cut whose pieces, and what
they need, all stay: WordPiece takes the longest piece that fits, Unigram the best-scored segmentation, BPE the merge
that was learned first; and what was best among all tokens is best among fewer. Where two segmentations of Unigram tie,
the first one found is taken, and pieces that go leave the order of the others.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from typing import Any, Protocol

Values = dict[str, Any]
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class TokenModel(Protocol):
    """One kind of tokenizer."""

    def ids(self, model: Values) -> dict[str, int]:
        """Return the id of every token."""

    def needed(self, model: Values, used: Collection[str]) -> set[str]:
        """Return the tokens without which those that are used do not come about, or unknown text has no piece."""

    def keeping(self, model: Values, ids: Mapping[str, int]) -> Values:
        """Return the model with these tokens only, under these ids."""


class WordLevel:
    """One token per word."""

    def ids(self, model: Values) -> dict[str, int]:
        """Return the vocabulary."""
        return dict(model["vocab"])

    def needed(self, model: Values, used: Collection[str]) -> set[str]:
        """Return the token of unknown words."""
        return {model["unk_token"]}

    def keeping(self, model: Values, ids: Mapping[str, int]) -> Values:
        """Return the model with a smaller vocabulary."""
        return {**model, "vocab": {token: ids[token] for token in model["vocab"] if token in ids}}


class WordPiece(WordLevel):
    """The longest piece that fits, from left to right; a word with a part that no piece fits is unknown."""

    def needed(self, model: Values, used: Collection[str]) -> set[str]:
        """Return the token of unknown words, and the characters that occur: they spell words that did not."""
        prefix = model["continuing_subword_prefix"]
        letters = {letter for token in used for letter in token.removeprefix(prefix)}
        return {model["unk_token"], *letters, *(prefix + letter for letter in letters)}


class Unigram:
    """The segmentation of the highest score."""

    def ids(self, model: Values) -> dict[str, int]:
        """Return the places of the pieces."""
        return {piece: number for number, (piece, _) in enumerate(model["vocab"])}

    def needed(self, model: Values, used: Collection[str]) -> set[str]:
        """Return the unknown piece, bytes, the characters that occur, and the piece of the lowest score.

        The lowest score sets that of a character without a piece.
        """
        pieces = model["vocab"]
        unknown = [] if model["unk_id"] is None else [pieces[model["unk_id"]][0]]
        lowest = min(pieces, key=lambda piece: piece[1])[0]
        letters = {letter for token in used for letter in token}
        return {lowest, *unknown, *letters, *_fallback(piece for piece, _ in pieces)}

    def keeping(self, model: Values, ids: Mapping[str, int]) -> Values:
        """Return the model with fewer pieces."""
        kept = sorted((piece for piece in model["vocab"] if piece[0] in ids), key=lambda piece: ids[piece[0]])
        places = {piece: number for number, (piece, _) in enumerate(kept)}
        unknown = None if model["unk_id"] is None else places[model["vocab"][model["unk_id"]][0]]
        return {**model, "vocab": kept, "unk_id": unknown}


class BytePairs(WordLevel):
    """Merges of two pieces into one, in the order in which they were learned."""

    def needed(self, model: Values, used: Collection[str]) -> set[str]:
        """Return the pieces that the used ones are merged from, step by step; bytes; and the unknown token.

        Within a piece that a text ends up with, the merges are those of the piece standing alone.
        """
        ranks = {pair: rank for rank, pair in enumerate(map(_pair, model["merges"]))}
        prefix, suffix = model["continuing_subword_prefix"] or "", model["end_of_word_suffix"] or ""
        known: dict[str, int] = model["vocab"]
        found = {token for token in (model["unk_token"],) if token is not None} | set(_fallback(known))
        for token in used:
            found.update(_derived(token, ranks, prefix, suffix))
        return found

    def keeping(self, model: Values, ids: Mapping[str, int]) -> Values:
        """Return the model with fewer tokens, and the merges whose parts and result all stay."""
        prefix = model["continuing_subword_prefix"] or ""
        merges = [
            merge
            for merge, (left, right) in zip(model["merges"], map(_pair, model["merges"]), strict=True)
            if left in ids and right in ids and left + right.removeprefix(prefix) in ids
        ]
        return {**super().keeping(model, ids), "merges": merges}


FAMILIES: dict[str, TokenModel] = {
    "WordLevel": WordLevel(),
    "WordPiece": WordPiece(),
    "Unigram": Unigram(),
    "BPE": BytePairs(),
}
"""`model.type` of a tokenizer.json -> how it is trimmed."""


def _fallback(tokens: Collection[str] | Iterator[str]) -> Iterator[str]:
    """Yield the pieces that stand for single bytes of text without other pieces."""
    return (token for token in tokens if _BYTE.fullmatch(token))


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _derived(token: str, ranks: Mapping[tuple[str, str], int], prefix: str, suffix: str) -> set[str]:
    """Return a token with every piece that it is merged from, the single characters first.

    >>> sorted(_derived("abc", {("b", "c"): 0, ("a", "bc"): 1}, "", ""))
    ['a', 'abc', 'b', 'bc', 'c']
    """
    start = prefix if prefix and token.startswith(prefix) else ""
    end = suffix if suffix and token.endswith(suffix) else ""
    letters = list(token.removeprefix(start).removesuffix(end))
    if not letters:
        return {token}
    pieces = [letters[0], *(prefix + letter for letter in letters[1:])]
    pieces[0], pieces[-1] = start + pieces[0], pieces[-1] + end
    found = {token, *pieces}
    while len(pieces) > 1:
        rank, place = min((ranks.get(pair, len(ranks)), place) for place, pair in enumerate(pairwise(pieces)))
        if rank == len(ranks):
            break
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1].removeprefix(prefix)]
        found.add(pieces[place])
    return found
