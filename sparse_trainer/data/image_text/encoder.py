"""Rows of images with text as inputs of a model, made by its processor: to calibrate on, to score, to answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from jinja2 import TemplateError
from torch import Tensor

from sparse_trainer.data.image_text.rows import ImageRow, Turn, opened
from sparse_trainer.data.openable import said_by
from sparse_trainer.errors import ArgumentError, DataError
from sparse_trainer.inputs.labels import IGNORED
from sparse_trainer.inputs.limits import check_positions

# Shape legend: T = tokens.

_ANSWERS_APART: Final = ("PaliGemmaProcessor",)
"""Processors of models that read a prompt in both directions, and want the answer behind it as `suffix`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnsweredInputs:
    """A prompt with an answer, as one sequence."""

    inputs: dict[str, Tensor]
    first: int
    """Position of the answer's first token."""
    count: int
    """Tokens of the answer."""


@final
class RowEncoder:
    """Makes inputs of one row at a time: processors give images of several sizes as differently many patches.

    With a chat template, the processor's own, a row is a conversation in it. Without one, the tokens of its images
    stand in front of its texts.

    Args:
        processor: Of the model, e.g. `AutoProcessor.from_pretrained(folder)`.
        positions: Tokens that the model has positions for; None = not known.

    Raises:
        ArgumentError: A processor without a tokenizer, an image processor or an image token.
    """

    def __init__(self, processor: Any, positions: int | None = None) -> None:
        check_image_processor(processor)
        self.processor, self.positions = processor, positions
        self._name = type(processor).__name__
        self._apart = self._name in _ANSWERS_APART
        self._templated = getattr(processor, "chat_template", None) is not None

    def calibration(self, row: ImageRow) -> dict[str, Tensor]:
        """Return a row with its answer, and labels: [1, T].

        Those of a row with an answer are the answer, and what ends it; else its text. What the processor puts in place
        of an image has none. Where it wants the answer apart, the prompt is read in both directions, and the text of a
        row without an answer is the answer.

        Raises:
            DataError: The processor makes no inputs of it; its text has an image's token.
        """
        if self._apart:
            prompt, answer = self._split(row)
            inputs = self._processed(row, prompt, answer)
            return {name: value.long() if name == "labels" else value for name, value in inputs.items()}
        text = self._text(row, row.answer)
        inputs = self._processed(row, text)
        labels_1T = self._labels(inputs["input_ids"], text)
        before = self._before(row)
        if row.answer is not None and text.startswith(before):
            labels_1T[:, : -self._tokens_behind(before, text)] = IGNORED
        return inputs | {"labels": labels_1T}

    def prompt(self, row: ImageRow) -> dict[str, Tensor]:
        """Return a row up to where the answer begins.

        Raises:
            DataError: The processor makes no inputs of it; its text has an image's token.
        """
        text = self._front(row) if self._apart else self._before(row)
        return {name: value for name, value in self._processed(row, text).items() if name != "labels"}

    def answered(self, row: ImageRow, answer: str) -> AnsweredInputs:
        """Return a row with an answer: the tokens beyond those of `prompt(row)`.

        Raises:
            DataError: The processor makes no inputs of it.
        """
        if self._apart:
            inputs = self._processed(row, self._front(row), answer)
            counts_T = inputs.pop("labels")[0] != IGNORED
            # The last token says that the answer ends.
            first = int(counts_T.long().argmax())
            return AnsweredInputs(inputs=inputs, first=first, count=max(1, int(counts_T.sum()) - 1))
        before = self._before(row)
        text = self._until_answer(row, before, answer)
        inputs = self._processed(row, text)
        length, count = inputs["input_ids"].shape[1], self._tokens_behind(before, text)
        return AnsweredInputs(inputs=inputs, first=length - count, count=count)

    def decoded(self, ids_T: Tensor) -> str:
        """Return tokens as text."""
        text: str = self.processor.tokenizer.decode(ids_T, skip_special_tokens=True)
        return text

    def _split(self, row: ImageRow) -> tuple[str, str]:
        """Return prompt and answer; of a row without an answer, its images and its text."""
        if row.answer is not None:
            return self._front(row), row.answer
        return self._places(row), "\n".join(text for turn in row.turns for text in turn.texts)

    def _before(self, row: ImageRow) -> str:
        """Return a row up to where the answer begins, with the token that the processor puts each image in place of."""
        return self._filled(row, row.turns, answering=True) if self._templated else self._front(row)

    def _text(self, row: ImageRow, answer: str | None) -> str:
        """Return a row with an answer, if any, and with what its template puts behind it."""
        if not self._templated:
            return self._front(row) if answer is None else _joined(self._front(row), answer)
        turns = row.turns if answer is None else (*row.turns, Turn(role="assistant", parts=(answer,)))
        return self._filled(row, turns)

    def _until_answer(self, row: ImageRow, before: str, answer: str) -> str:
        """Return a row with an answer, and nothing behind it."""
        whole = self._text(row, answer) if self._templated else ""
        # Templates know what stands between the two; some rewrite the prompt, or trim the answer.
        end = whole.find(answer, len(before)) if whole.startswith(before) else -1
        return _joined(before, answer) if end < 0 else whole[: end + len(answer)]

    def _front(self, row: ImageRow) -> str:
        """Return the images, then the texts of a row, for processors without a template."""
        text = "\n".join(text for turn in row.turns for text in turn.texts)
        return self._places(row) + ("" if self._apart else "\n") + text

    def _places(self, row: ImageRow) -> str:
        token: str = self.processor.image_token
        return token * len(row.images)

    def _filled(self, row: ImageRow, turns: Sequence[Turn], *, answering: bool = False) -> str:
        messages = [{"role": turn.role, "content": [_content(part) for part in turn.parts]} for turn in turns]
        try:
            filled: str = self.processor.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=answering
            )
        except (TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
            raise DataError(
                row.where, f"the chat template of {self._name} cannot be filled with it ({said_by(error)}).",
                "Correct the roles of its messages, or drop the row.",
            ) from error  # fmt: skip
        return filled

    def _processed(self, row: ImageRow, text: str, answer: str | None = None) -> dict[str, Tensor]:
        self._check_places(row, text, answer)
        options: dict[str, Any] = {} if answer is None else {"suffix": [answer]}
        if self._wrote_first_token(text):
            options["add_special_tokens"] = False
        images = [opened(path, row.where) for path in row.images]
        try:
            made = self.processor(images=images, text=[text], return_tensors="pt", **options)
        except (ValueError, TypeError, RuntimeError, IndexError, KeyError) as error:
            raise DataError(
                row.where, f"{self._name} makes no inputs of it ({said_by(error)}).",
                "Correct or drop the row, or use the processor of this model.",
            ) from error  # fmt: skip
        inputs = {name: value for name, value in made.items() if isinstance(value, Tensor)}
        check_positions(row.where, inputs["input_ids"].shape[1], self.positions)
        return inputs

    def _check_places(self, row: ImageRow, text: str, answer: str | None) -> None:
        token = self.processor.image_token
        if any(token in said for said in (*_texts_of(row), answer or "")):
            raise DataError(
                row.where, f"its text has the token of an image, {token}.",
                "Take it out of the text: it is put there for the images of the row.",
            )  # fmt: skip
        if text.count(token) != len(row.images):
            raise DataError(
                row.where, f"has {len(row.images)} images, and {self._name} makes places for {text.count(token)}.",
                "Give as many images as its chat template takes, or drop the row.",
            )  # fmt: skip

    def _wrote_first_token(self, text: str) -> bool:
        """Tell whether the template wrote the token with which a text begins: then no other is wanted."""
        begin = self.processor.tokenizer.bos_token
        return self._templated and bool(begin) and text.startswith(begin)

    def _tokens(self, text: str) -> list[int]:
        """Return the tokens of a text, with one for each image."""
        special = not self._wrote_first_token(text)
        ids: list[int] = self.processor.tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def _tokens_behind(self, before: str, text: str) -> int:
        """Return how many tokens a text has beyond its beginning, at least one."""
        return max(1, len(self._tokens(text)) - len(self._tokens(before)))

    def _labels(self, ids_1T: Tensor, text: str) -> Tensor:
        """Return the labels of a row, [1, T]: its tokens, but for those that the processor puts in place of images."""
        image = {self.processor.tokenizer.convert_tokens_to_ids(self.processor.image_token)}
        unseen = torch.tensor(sorted((set(ids_1T[0].tolist()) - set(self._tokens(text))) | image))
        return ids_1T.masked_fill(torch.isin(ids_1T, unseen), IGNORED)


def check_image_processor(processor: Any) -> None:
    """Raise `ArgumentError` for a processor without a tokenizer, an image processor or an image token."""
    # A tokenizer or an image processor alone has not both parts; processors of sound have no image token.
    for part, what in (
        ("tokenizer", "tokenizer"),
        ("image_processor", "image processor"),
        ("image_token", "image token"),
    ):
        if getattr(processor, part, None) is None:
            raise ArgumentError(
                "processor", f"{type(processor).__name__} has no {what}.",
                "Load the model's own with AutoProcessor; its folder needs the files of tokenizer and image processor.",
            )  # fmt: skip


def _texts_of(row: ImageRow) -> tuple[str, ...]:
    said = tuple(text for turn in row.turns for text in turn.texts)
    return (*said, *row.choices, *row.answers)


def _content(part: str | None) -> dict[str, str]:
    return {"type": "image"} if part is None else {"type": "text", "text": part}


def _joined(before: str, answer: str) -> str:
    """Return an answer behind a text, with a space between where there is none.

    >>> _joined("Answer:", "yes"), _joined("assistant ", "yes")
    ('Answer: yes', 'assistant yes')
    """
    return before + ("" if before[-1:].isspace() else " ") + answer
