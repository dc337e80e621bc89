"""Conversations as tokens, with the labels of answers only: which characters of a rendered text are answers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from jinja2 import TemplateError

from sparse_trainer.errors import DataError, shown
from sparse_trainer.inputs.labels import IGNORED

Message = Mapping[str, Any]
ASSISTANT: Final = "assistant"
_GENERATION: Final = re.compile(r"\{%-?\s*generation\s*-?%\}")
_MASK: Final = "assistant_masks"


@dataclass(frozen=True, kw_only=True)
class Marked:
    """A text, and the places of the answers in it."""

    text: str
    answers: tuple[tuple[int, int], ...]
    """First character of each answer, and the first behind it."""


def marks_answers(template: str) -> bool:
    """Tell whether a chat template says itself which parts the assistant writes: `{% generation %}`."""
    return _GENERATION.search(template) is not None


def by_template(tokenizer: Any, messages: Sequence[Message]) -> dict[str, list[int]]:
    """Return tokens and labels of a conversation whose template marks answers.

    Raises:
        DataError: The template cannot be applied.
    """
    found = _applied(tokenizer, messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = found["input_ids"], found[_MASK]
    return {
        "input_ids": ids,
        "labels": [i if is_answer else IGNORED for i, is_answer in zip(ids, mask, strict=True)],
    }


def by_prefix(tokenizer: Any, messages: Sequence[Message], first: int = 0) -> Marked:
    """Return a conversation as text, with the answers of the assistant from message `first` on.

    An answer is what the conversation up to and with it has beyond the conversation before it, once the assistant was
    given the word. That holds only where a template adds to what it has written; so both are checked to be the
    beginning of the whole.

    Raises:
        DataError: The template cannot be applied, or rewrites earlier messages.
    """
    whole: str = _applied(tokenizer, messages, tokenize=False)
    answers = []
    for number, message in enumerate(messages):
        if message["role"] != ASSISTANT or number < first:
            continue
        before: str = _applied(tokenizer, messages[:number], tokenize=False, add_generation_prompt=True)
        after: str = _applied(tokenizer, messages[: number + 1], tokenize=False)
        if not (whole.startswith(after) and after.startswith(before)):
            raise DataError(
                "chat_template",
                f"writes other text before message {number} once the conversation goes on, so that its answers cannot "
                "be told from the rest.",
                "Give a template that marks them with {% generation %} (task.chat_template_file).",
            )
        answers.append((len(before), len(after)))
    return Marked(text=whole, answers=tuple(answers))


def tokens_of(tokenizer: Any, marked: Marked, before: Sequence[int] = ()) -> dict[str, list[int]]:
    """Return tokens and labels: a token that shares a character with an answer counts, all others are ignored.

    Args:
        before: Special tokens to put in front.
    """
    encoding = tokenizer(marked.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    labels = [
        token if any(start < last and end > first for first, last in marked.answers) else IGNORED
        for token, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
    ]
    return {
        "input_ids": [*before, *encoding["input_ids"]],
        "labels": [*(IGNORED for _ in before), *labels],
    }


def _applied(tokenizer: Any, messages: Sequence[Message], **options: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(list(messages), **options)
    except (TemplateError, TypeError, ValueError, ArithmeticError, RecursionError, KeyError) as error:
        raise DataError(
            "chat_template", f"cannot be applied ({error}).", "Correct the row, or give another template."
        ) from error


def checked_messages(value: Any, where: str) -> list[dict[str, Any]]:
    """Return messages with role and text.

    Raises:
        DataError: No list of messages.
    """
    is_list = isinstance(value, list) and len(value) > 0
    if not is_list or not all(
        isinstance(message, Mapping)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        for message in value
    ):
        raise DataError(
            where, f"{shown(value)} is no list of messages.",
            "Write [{role: user, content: ...}, {role: assistant, content: ...}].",
        )  # fmt: skip
    # Sets fill up keys that other rows have with null.
    return [{key: entry for key, entry in message.items() if entry is not None} for message in value]
