"""Text as token ids; what a tokenizer puts around a text is found once, and put around each block."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from sparse_trainer.errors import DataError

_PROBE = "a"
_MESSAGE = "MESSAGE"
_END = 64
"""Characters of a text that its first, or last, words are looked for in."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Special tokens that a tokenizer puts around a text: BOS for many decoders, [CLS] and [SEP] for BERT."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def __len__(self) -> int:
        """Return how many they are."""
        return len(self.before) + len(self.after)

    def around(self, ids: Iterable[int]) -> list[int]:
        """Return ids in their frame."""
        return [*self.before, *ids, *self.after]


def frame_of(tokenizer: Any) -> Frame:
    """Return what a tokenizer puts around a text.

    Raises:
        DataError: It does more than that.
    """
    bare = encode(tokenizer, _PROBE)
    framed: list[int] = tokenizer(_PROBE)["input_ids"]
    start = next((n for n in range(len(framed)) if framed[n : n + len(bare)] == bare), None)
    if start is None:
        raise DataError(
            "tokenizer", f"{_PROBE!r} is {bare} without special tokens, and {framed} with them.",
            "Give one that puts special tokens around a text and leaves the rest as it is.",
        )  # fmt: skip
    return Frame(before=tuple(framed[:start]), after=tuple(framed[start + len(bare) :]))


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text alone, of any length."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def stream(tokenizer: Any, texts: Iterable[str], joint: str, most: int | None) -> list[int]:
    """Return the token ids of texts one after the other.

    Args:
        joint: What stands between two texts.
        most: Read no further text when there are so many ids, or more; None = read all.
    """
    ids: list[int] = []
    for number, text in enumerate(texts):
        ids += encode(tokenizer, joint + text if number else text)
        if most is not None and len(ids) >= most:
            break
    return ids


def as_user_message(tokenizer: Any, text: str) -> list[int]:
    """Return a text as what a user says to an instruct model, by the tokenizer's own template.

    Raises:
        DataError: The tokenizer has no chat template, or a broken one.
    """
    if tokenizer.chat_template is None:
        raise DataError(
            "chat_template",
            "the tokenizer has none.",
            "Calibrate without it, or give an instruct model's tokenizer.",
        )
    message = [{"role": "user", "content": text}]
    try:
        ids: list[int] = tokenizer.apply_chat_template(message, tokenize=True, return_dict=True)["input_ids"]
    except (TemplateError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise DataError(
            "chat_template",
            f"of the tokenizer cannot be applied ({error}).",
            "Calibrate without it, or correct the template.",
        ) from error
    return ids


def in_template(tokenizer: Any, texts: Iterable[str]) -> Iterator[str]:
    """Yield short conversations in a chat template whose messages begin and end as texts do; none without a template.

    What stands beside a message changes how its first and last words are cut, and nothing further inside.
    """
    frame = _conversation(tokenizer)
    if frame is None:
        return
    for text in texts:
        ends = text if len(text) <= 2 * _END else f"{text[:_END]} {text[-_END:]}"
        yield frame.replace(_MESSAGE, ends)


def _conversation(tokenizer: Any) -> str | None:
    """Return a conversation in a tokenizer's chat template, all of whose messages are `_MESSAGE`."""
    if tokenizer.chat_template is None:
        return None
    system, *said = [{"role": role, "content": _MESSAGE} for role in ("system", "user", "assistant")]
    for messages in ([system, *said], said):
        try:
            text: str = tokenizer.apply_chat_template(messages, tokenize=False)
        except (TemplateError, TypeError, ValueError):  # many templates know no system, and raise
            continue
        return text
    return None
