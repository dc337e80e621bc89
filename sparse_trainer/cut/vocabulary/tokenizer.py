"""A fast tokenizer without some of its tokens; which are needed, and what all of them are called afterwards."""

import json
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sparse_trainer.cut.vocabulary.families import FAMILIES, TokenModel, Values
from sparse_trainer.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"
_AT_ONCE = 512
"""Texts that are tokenized together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FastTokenizer:
    """What a tokenizer.json says."""

    values: Values
    family: TokenModel

    @property
    def added(self) -> dict[str, int]:
        """Return the ids of tokens that are found before a text is cut: special ones, and what users added."""
        return {token["content"]: token["id"] for token in self.values["added_tokens"]}

    def ids(self) -> dict[str, int]:
        """Return the id of every token; those that the model of the tokenizer knows come first."""
        return {**self.family.ids(self.values["model"]), **self.added}

    def kept(self, used: Collection[int]) -> dict[str, int]:
        """Return the tokens that stay, and their ids so far, in the order of their new ids.

        These are those that are used, what they need, all added ones and those around texts, and the bytes of a
        tokenizer that falls back on them.
        """
        model, ids = self.values["model"], self.ids()
        used = {*used, *_frame_ids(self.values["post_processor"])}
        tokens = [token for token, number in ids.items() if number in used]
        stays = {*tokens, *self.added, *self.family.needed(model, tokens), *self._letters(ids)}
        known = self.family.ids(model)
        ordered = sorted(
            (token not in known, number, token) for token, number in ids.items() if token in stays
        )
        return {token: number for _, number, token in ordered}

    def keeping(self, kept: Iterable[str]) -> Values:
        """Return the JSON of the tokenizer with these tokens only; their order is that of their new ids."""
        new = {token: number for number, token in enumerate(kept)}
        old = self.ids()
        moved = {old[token]: number for token, number in new.items()}
        values = dict(self.values)
        values["model"] = self.family.keeping(values["model"], new)
        values["added_tokens"] = [
            {**token, "id": new[token["content"]]}
            for token in sorted(values["added_tokens"], key=lambda token: new[token["content"]])
        ]
        values["post_processor"] = _moved_frame(values["post_processor"], moved)
        if values["padding"] is not None:
            padding = values["padding"]
            values["padding"] = {**padding, "pad_id": moved.get(padding["pad_id"], padding["pad_id"])}
        return values

    def _letters(self, ids: Iterable[str]) -> Iterator[str]:
        """Yield the letters that stand for bytes, in a tokenizer that writes text as bytes."""
        parts = (self.values[name] for name in ("normalizer", "pre_tokenizer", "decoder"))
        if not any('"ByteLevel"' in json.dumps(part) for part in parts):
            return
        alphabet, suffix = (
            set(pre_tokenizers.ByteLevel.alphabet()),
            self.values["model"].get("end_of_word_suffix"),
        )
        for token in ids:
            if token in alphabet or (suffix and token.removesuffix(suffix) in alphabet):
                yield token


def read_fast(tokenizer: PreTrainedTokenizerBase) -> FastTokenizer:
    """Return what a tokenizer consists of.

    Raises:
        CheckpointError: It is none of the tokenizers library, or of a kind that cannot be trimmed.
    """
    known = ", ".join(FAMILIES)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(
            type(tokenizer).__name__,
            "is a tokenizer in Python, whose vocabulary cannot be trimmed.",
            f"Give a model with a {TOKENIZER_FILE} ({known}).",
        )
    values: Values = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = values["model"]["type"]
    if kind not in FAMILIES:
        raise CheckpointError(
            type(tokenizer).__name__,
            f"a tokenizer of kind {kind} cannot be trimmed.",
            f"Give a model with one of these: {known}.",
        )
    return FastTokenizer(values=values, family=FAMILIES[kind])


def rebuilt(
    tokenizer: PreTrainedTokenizerBase, values: Values, ids: Mapping[str, int]
) -> PreTrainedTokenizerBase:
    """Return a tokenizer of the same class and settings, made from other JSON.

    Args:
        ids: What it has to call its tokens.

    Raises:
        CheckpointError: Its class makes something else of the JSON.
    """
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        (Path(scratch) / TOKENIZER_FILE).write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
        made: PreTrainedTokenizerBase = type(tokenizer).from_pretrained(scratch)
    # What it says of where it comes from is about the scratch folder.
    made.name_or_path = tokenizer.name_or_path
    if made.get_vocab() != dict(ids):
        raise CheckpointError(
            type(tokenizer).__name__,
            "does not take a smaller vocabulary: it numbers its tokens in a way of its own.",
            "Please report this tokenizer.",
        )
    return made


def pieces_of(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Iterator[list[int]]:
    """Yield the token ids of each text, whole and without special tokens around it."""
    source = iter(texts)
    while batch := list(islice(source, _AT_ONCE)):
        encoded = tokenizer(
            batch, add_special_tokens=False, truncation=False, padding=False, return_attention_mask=False,
            return_token_type_ids=False, verbose=False,
        )  # fmt: skip
        yield from encoded["input_ids"]


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Counter[int]:
    """Return how often each token occurs in texts."""
    counts: Counter[int] = Counter()
    for ids in pieces_of(tokenizer, texts):
        counts.update(ids)
    return counts


def _frame_ids(part: Any) -> Iterator[int]:
    """Yield the ids that a post-processor puts around texts."""
    if not isinstance(part, dict):
        return
    for each in part.get("processors", ()):
        yield from _frame_ids(each)
    yield from (part[name][1] for name in ("sep", "cls") if name in part)
    for token in part.get("special_tokens", {}).values():
        yield from token["ids"]


def _moved_frame(part: Any, moved: Mapping[int, int]) -> Any:
    """Return a post-processor, which puts special tokens around texts, with their new ids."""
    if not isinstance(part, dict):
        return part
    done = dict(part)
    if "processors" in done:
        done["processors"] = [_moved_frame(each, moved) for each in done["processors"]]
    for name in ("sep", "cls"):
        if name in done:
            token, number = done[name]
            done[name] = [token, moved[number]]
    if "special_tokens" in done:
        done["special_tokens"] = {
            name: {**token, "ids": [moved[number] for number in token["ids"]]}
            for name, token in done["special_tokens"].items()
        }
    return done
