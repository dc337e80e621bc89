"""The tokenizer of a folder in the words of llama.cpp: byte-level BPE, and BPE of SentencePiece."""

import json
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sparse_trainer.errors import ConversionError
from sparse_trainer.folders.tokenizers import find_tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
"""Sorts of tokens in llama.cpp."""
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _by_case(contractions: str, digits: str) -> str:
    """Return an expression that splits where lower case turns into upper case."""
    start = r"[^\r\n\p{L}\p{N}]?"
    words = (f"{start}{_UPPER}*{_LOWER}+{contractions}", f"{start}{_UPPER}+{_LOWER}*{contractions}")
    return f"{'|'.join(words)}|{digits}{_SIGNS}"


SPLITS = {
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
    _by_case("", r"\p{N}"): "tekken",
    _by_case(f"{_CONTRACTIONS}?", r"\p{N}{1,3}"): "gpt-4o",
}
"""Expression by which a tokenizer splits texts -> what llama.cpp calls it."""
_SPECIAL = ("bos", "eos", "unk", "pad", "sep", "mask")
_REMEDY = "llama.cpp has no such tokenizer, or it is not known here by its parts."


def tokenizer_keys(name: str, size: int) -> dict[str, Any]:
    """Return the keys of the tokenizer of a model.

    Args:
        name: Folder or hub id.
        size: Rows of the embeddings: there are as many tokens in the file.

    Raises:
        ConversionError: there is none, or one that llama.cpp would not imitate.
    """
    tokenizer = find_tokenizer(name)
    place = f"{name}: tokenizer"
    if tokenizer is None:
        raise ConversionError(
            place, "is missing.", "Put the tokenizer beside the model: llama.cpp needs one."
        )
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConversionError(place, f"is a {type(tokenizer).__name__}, no fast tokenizer.", _REMEDY)
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    if parts["model"]["type"] != "BPE":
        raise ConversionError(
            place, f"is of type {parts['model']['type']}, and BPE alone is written.", _REMEDY
        )
    if len(tokenizer) > size:
        raise ConversionError(
            place, f"has {len(tokenizer)} tokens, and the model {size}.", "Give the tokenizer of this model."
        )
    words = (
        _sentencepiece(parts, size) if parts["model"]["byte_fallback"] else _byte_level(parts, size, place)
    )
    keys = {**words, **_special(tokenizer)}
    if isinstance(tokenizer.chat_template, str):
        keys["chat_template"] = tokenizer.chat_template
    return {
        f"tokenizer.{'' if key == 'chat_template' else 'ggml.'}{key}": value for key, value in keys.items()
    }


def _byte_level(parts: Mapping[str, Any], size: int, place: str) -> dict[str, Any]:
    tokens, kinds = _tokens(parts, size)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in parts["model"]["merges"]]
    return {
        "model": "gpt2",
        "pre": _splitter(parts, place),
        "tokens": tokens,
        "token_type": kinds,
        # llama.cpp wants the list, and gguf cannot write an empty one.
        "merges": merges or [f"{tokens[0]} {tokens[0]}"],
    }


def _splitter(parts: Mapping[str, Any], place: str) -> str:
    """Return what llama.cpp calls the way in which texts are split before the merges."""
    steps = parts["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    last, before = steps[-1], steps[:-1]
    fits = parts["normalizer"] is None or parts["normalizer"].get("type") == "NFC"
    if fits and last.get("type") == "ByteLevel" and not last["add_prefix_space"]:
        kinds = [step["type"] for step in before]
        if not kinds and last["use_regex"]:
            return "gpt-2"
        if kinds == ["Digits"] and before[0]["individual_digits"] and last["use_regex"]:
            return "smollm"
        # The expressions match all text: "Removed" what is not matched leaves the same pieces.
        if kinds == ["Split"] and _isolates(before[0]) and not last["use_regex"]:
            found = SPLITS.get(before[0]["pattern"].get("Regex", ""))
            if found is not None:
                return found
    raise ConversionError(
        place, "splits texts in a way that is not known here under a name of llama.cpp.", _REMEDY
    )


def _isolates(split: Mapping[str, Any]) -> bool:
    return (split["behavior"], split["invert"]) in (("Isolated", False), ("Removed", True))


def _sentencepiece(parts: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Return the keys of a BPE of SentencePiece: what merges first has the highest score."""
    tokens, kinds = _tokens(parts, size)
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(parts["model"]["merges"]):
        ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
    before = json.dumps([parts["normalizer"], parts["pre_tokenizer"]])
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "token_type": [
            _BYTE if kind == _NORMAL and len(token) == 6 and token.startswith("<0x") else kind
            for token, kind in zip(tokens, kinds, strict=True)
        ],
        "scores": [float(-ranks.get(token, len(ranks))) for token in tokens],
        "add_space_prefix": '"Prepend"' in before or '"prepend_scheme": "always"' in before
        or '"prepend_scheme": "first"' in before,
    }  # fmt: skip


def _tokens(parts: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Return the tokens and their sorts; numbers without a token are unused."""
    tokens = [f"[PAD{number}]" for number in range(size)]
    kinds = [_UNUSED] * size
    for token, number in parts["model"]["vocab"].items():
        tokens[number], kinds[number] = token, _NORMAL
    for added in parts["added_tokens"]:
        number = added["id"]
        tokens[number], kinds[number] = added["content"], _CONTROL if added["special"] else _USER_DEFINED
    unknown = parts["model"]["unk_token"]
    if unknown in tokens and parts["model"]["byte_fallback"]:
        kinds[tokens.index(unknown)] = _UNKNOWN
    return tokens, kinds


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the numbers of special tokens, and which of them the tokenizer puts around a text."""
    keys: dict[str, Any] = {}
    for name in _SPECIAL:
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            called = {"unk": "unknown", "pad": "padding", "sep": "seperator"}.get(name, name)
            keys[f"{called}_token_id"] = int(number)
    ids = tokenizer("a")["input_ids"]
    keys["add_bos_token"] = bool(ids) and ids[0] == tokenizer.bos_token_id
    keys["add_eos_token"] = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
    return keys
