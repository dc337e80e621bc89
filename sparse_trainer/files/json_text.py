"""Read JSON that nobody here wrote: one typed error that names the file, whatever is wrong with it."""

import json
from pathlib import Path
from typing import Any

from sparse_trainer.errors import CheckpointError, shown

_INT64 = 2**63


def read_object(file: Path, remedy: str, *, constants: bool = False) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        remedy: What to do where it cannot be read.
        constants: Whether NaN and Infinity may stand in it, as transformers writes them into configs.

    Raises:
        CheckpointError: The file cannot be read, is no JSON, says one thing twice, or holds no object.
    """
    try:
        text = file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(str(file), f"cannot be read ({error}).", remedy) from error
    values = parse_json(text, str(file), remedy, constants=constants)
    if not isinstance(values, dict):
        raise CheckpointError(str(file), f"does not hold an object but {shown(values)}.", remedy)
    return values


def parse_json(text: str, where: str, remedy: str, *, constants: bool = False) -> object:
    """Return the value of JSON text.

    Raises:
        CheckpointError: It is no JSON; says one thing twice; or holds a number or a text that cannot be meant.

    >>> parse_json('{"a": [1, 2.5, null]}', "plan", "Write it again.")
    {'a': [1, 2.5, None]}
    """
    try:
        value: object = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_whole,
            parse_constant=float if constants else _refuse,
        )
        if "\\u" in text:  # the only way to write half of a character
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(where, f"cannot be read: it is not JSON ({error}).", remedy) from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        for name, value in pairs:
            if values[name] != value:
                raise ValueError(f"the key {shown(name)} stands twice, with two values")
    return values


def _whole(digits: str) -> int:
    value = int(digits) if len(digits) < 20 else _INT64
    if not -_INT64 <= value < _INT64:
        raise ValueError(f"the number {digits[:20]}... is beyond 64 bits")
    return value


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number")
