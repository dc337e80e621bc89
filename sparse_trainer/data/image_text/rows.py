"""Rows of images with text from a local file: what they show, what is asked, and what the right answer is."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import PIL.Image
from datasets import Dataset

from sparse_trainer.data.openable import check_open, said_by
from sparse_trainer.data.readers import TABLES, ending, read_table
from sparse_trainer.errors import DataError, shown

_ASSISTANT: Final = "assistant"
_USER: Final = "user"
_PATHS: Final = ("image", "path")
"""Keys of a part of a message that may name its image."""
_FORM: Final = "Give every row `image`, a path, and `text`; or see docs/image-text.md for the other forms."

Part = str | None
"""What a message is made of: a text, or None where an image goes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What one side of a conversation says."""

    role: str
    parts: tuple[Part, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """The parts that are text."""
        return tuple(part for part in self.parts if part is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRow:
    """Images, a conversation about them, and how it ends."""

    where: str
    """File and number, for messages."""
    images: tuple[Path, ...]
    """In the order of their places in the conversation."""
    turns: tuple[Turn, ...]
    """The conversation up to the answer."""
    choices: tuple[str, ...] = ()
    """Answers to choose from; none where the model writes its own."""
    answers: tuple[str, ...] = ()
    """Right answers, one per person who was asked; of choices, the right one; none where nothing is asked."""

    @property
    def gold(self) -> int:
        """Number of the right choice."""
        return self.choices.index(self.answers[0])

    @property
    def answer(self) -> str | None:
        """The answer that most gave, the first of equals; None where there is none."""
        return max(self.answers, key=self.answers.count) if self.answers else None


def holds_images(file: str | Path) -> bool:
    """Tell whether the rows of a file have images: a column of them, or messages with parts that are images.

    Raises:
        DataError: It cannot be read.
    """
    path = Path(file)
    if ending(path) not in TABLES:
        return False
    table = read_table(path, str(path))
    if {"image", "images"} & set(table.column_names):
        return True
    said = table[0].get("messages")
    messages = said if isinstance(said, list) else []
    return any(None in _parts(message.get("content")) for message in messages if isinstance(message, Mapping))


def read_image_rows(table: Dataset, file: Path, numbers: Iterable[int]) -> list[ImageRow]:
    """Return some rows of a file.

    Raises:
        DataError: A row without an image or a text, whose images are more or fewer than their places, or whose right
            answer is none of its choices: its number is named.
    """
    return [_row(table[number], file, f"{file}, row {number}") for number in numbers]


def check_image_files(rows: Sequence[ImageRow], where: str) -> None:
    """Open every image of some rows once.

    Raises:
        DataError: Some do not open: they are counted and named.
    """
    paths = dict.fromkeys(str(path) for row in rows for path in row.images)
    table = Dataset.from_dict({"image": list(paths)})
    check_open(table, "image", _problem, where, "images", "Replace them, or drop their rows.")


def opened(path: Path, where: str) -> PIL.Image.Image:
    """Return an image in RGB.

    Raises:
        DataError: It does not open.
    """
    try:
        with PIL.Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        problem = f"the image {path} does not open ({said_by(error)})."
        raise DataError(where, problem, "Replace it, or drop the row.") from error


def _problem(path: str) -> str | None:
    try:
        opened(Path(path), path)
    except DataError as error:
        return said_by(error.__cause__ or error)
    return None


def _row(row: Mapping[str, Any], file: Path, where: str) -> ImageRow:
    turns, inside = _turns(row, where)
    names = _texts(row.get("images"), where, "images") or _one_text(row.get("image")) or inside
    if not names:
        raise DataError(where, "has no image.", _FORM)
    turns = _with_places(turns, len(names), where)
    choices, answers = _answers(row, where)
    if not answers and len(turns) > 1 and turns[-1].role == _ASSISTANT:
        turns, answers = turns[:-1], ("\n".join(turns[-1].texts),)
    paths = tuple(file.parent / name for name in names)
    return ImageRow(where=where, images=paths, turns=turns, choices=choices, answers=answers)


def _turns(row: Mapping[str, Any], where: str) -> tuple[tuple[Turn, ...], tuple[str, ...]]:
    """Return the conversation of a row, and the images that are named inside."""
    messages = row.get("messages")
    if messages is None:
        text = next((row[name] for name in ("text", "question") if row.get(name) is not None), None)
        if not isinstance(text, str) or not text.strip():
            raise DataError(where, "has no text.", _FORM)
        return (Turn(role=_USER, parts=(text,)),), ()
    turns: list[Turn] = []
    names: list[str | None] = []
    for message in messages if isinstance(messages, list) else [None]:
        said = message if isinstance(message, Mapping) else {}
        role, content = said.get("role"), said.get("content")
        parts = _parts(content)
        if not parts or not isinstance(role, str):
            raise DataError(where, "has a message without role or content.", _FORM)
        turns.append(Turn(role=role, parts=parts))
        listed = content if isinstance(content, list) else []
        names += [_named(part) for part in listed if isinstance(part, Mapping)]
    if not any(turn.role == _USER for turn in turns):
        raise DataError(where, "has no message of the user.", _FORM)
    return tuple(turns), tuple(name for name in names if name is not None)


def _parts(content: object) -> tuple[Part, ...]:
    """Return the parts of a message: a text, or a list of `{"type": "text", "text": …}` and `{"type": "image"}`."""
    if isinstance(content, str):
        return (content,)
    listed = content if isinstance(content, list) else []
    found = [part for part in listed if isinstance(part, Mapping)]
    return tuple(None if part.get("type") == "image" else str(part.get("text") or "") for part in found)


def _named(part: Mapping[str, Any]) -> str | None:
    if part.get("type") != "image":
        return None
    return next((part[key] for key in _PATHS if isinstance(part.get(key), str)), None)


def _with_places(turns: tuple[Turn, ...], count: int, where: str) -> tuple[Turn, ...]:
    """Return a conversation with a place for each image: in front of the user's first text, where it has none."""
    places = sum(turn.parts.count(None) for turn in turns)
    if places == 0:
        first = next(number for number, turn in enumerate(turns) if turn.role == _USER)
        shown_first = Turn(role=_USER, parts=((None,) * count + turns[first].parts))
        return (*turns[:first], shown_first, *turns[first + 1 :])
    if places != count:
        raise DataError(
            where, f"has {count} images, and its messages have places for {places}.",
            'Give one {"type": "image"} in a message for each image, or none.',
        )  # fmt: skip
    return turns


def _answers(row: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the choices of a row, if any, and the right answers."""
    choices = _texts(row.get("choices"), where, "choices")
    given = _texts(row.get("answers"), where, "answers") or _one_text(row.get("answer"))
    if not choices:
        return (), given
    label = row.get("label")
    if label is None and given:
        label = choices.index(given[0]) if given[0] in choices else -1
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(choices):
        raise DataError(
            where, f"the right one of its {len(choices)} choices is not known.",
            f"Give `label`, 0 to {len(choices) - 1}, or `answer`, the text of one.",
        )  # fmt: skip
    if len(set(choices)) < len(choices) or len(choices) < 2:
        raise DataError(where, "its choices are fewer than two, or equal.", "Give two or more that differ.")
    return choices, (choices[label],)


def _texts(value: object, where: str, column: str) -> tuple[str, ...]:
    """Return a list of texts; of answers as VQA has them, `{"answer": text}`, the texts."""
    if value is None or value == []:
        return ()
    listed = value if isinstance(value, list) else [None]
    entries = [entry.get("answer") if isinstance(entry, Mapping) else entry for entry in listed]
    texts = tuple(entry for entry in entries if isinstance(entry, str) and entry.strip())
    if len(texts) < len(entries):
        raise DataError(
            where, f"`{column}` is {shown(value)}, no list of texts.", "Give json or parquet with a list."
        )
    return texts


def _one_text(value: object) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) and value.strip() else ()
