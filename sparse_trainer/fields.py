"""Check a mapping against the fields of a dataclass: names, types, what is missing."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from typing import Any

from sparse_trainer.errors import ArgumentError, RecipeError, nearest, shown

_UNIONS = (typing.Union, types.UnionType)


def checked(cls: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the keyword arguments for dataclass `cls`, numbers and tuples in the form its fields ask for.

    Raises:
        RecipeError: An unknown or missing key, or a value of the wrong type; `where` and the key are named.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Options:
    ...     rate: float
    ...     name: str = "x"
    >>> checked(Options, {"rate": "1e-5"}, "r.yaml: training")
    {'rate': 1e-05}
    """
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in values:
        if key not in known:
            raise RecipeError(f"{where}.{key}", "unknown key.", nearest(str(key), known))
    for key, field in known.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and key not in values:
            raise RecipeError(
                f"{where}.{key}", "missing.", f"Add it, or override it: {_dotted(where)}.{key}=VALUE."
            )
    return {key: _coerced(value, hints[key], f"{where}.{key}") for key, value in values.items()}


def _dotted(where: str) -> str:
    return where.rpartition(" ")[2]


def _coerced(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as `hint` wants it, or raise an error that names `where`."""
    for option in _options(hint):
        if _matches(value, option):
            return _converted(value, option)
    for option in _options(hint):
        # YAML 1.1 reads 1e-5 (no dot) as text.
        if option is float and isinstance(value, str) and _is_number(value):
            return float(value)
    raise RecipeError(where, *_complaint(value, hint))


def check_types(options: Any, cls: type) -> None:
    """Raise `ArgumentError` for a field of dataclass `cls` whose value in `options` is of the wrong type.

    Nothing is converted. For true and false 1 and 0 do, as old scripts write them.
    """
    for name, hint in typing.get_type_hints(cls).items():
        value = getattr(options, name)
        is_flag = hint is bool and isinstance(value, int)
        if not (is_flag and value in (0, 1)) and not any(_matches(value, o) for o in _options(hint)):
            raise ArgumentError(name, *_complaint(value, hint))


def _complaint(value: Any, hint: Any) -> tuple[str, str]:
    """Return what is wrong with a value, and what would do."""
    wanted = " or ".join(dict.fromkeys(_spelled(option) for option in _options(hint)))
    return f"{shown(value)} is {_article(type(value).__name__)}.", f"Give {wanted}."


def _options(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the hint itself."""
    if typing.get_origin(hint) in _UNIONS:
        return typing.get_args(hint)
    return (hint,)


def _matches(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is typing.Literal:
        return value in args
    if origin in _UNIONS:
        return any(_matches(value, option) for option in args)
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(_matches(item, args[0]) for item in value)
    if origin in (dict, Mapping) or hint is dict:
        return isinstance(value, Mapping)
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [member.value for member in hint]
    return isinstance(hint, type) and isinstance(value, hint)


def _converted(value: Any, hint: Any) -> Any:
    if typing.get_origin(hint) is tuple:
        return tuple(value)
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _spelled(hint: Any) -> str:
    """Name a type as a recipe's author knows it."""
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    if hint in names:
        return names[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in _UNIONS:
        return " or ".join(_spelled(option) for option in args)
    if origin in (list, tuple):
        return f"a list of {_spelled(args[0])}"
    if origin in (dict, Mapping) or hint is dict:
        return "a mapping"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in hint)
    return str(hint)


def _article(type_name: str) -> str:
    names = {
        "str": "text", "int": "a whole number", "float": "a number", "bool": "true/false",
        "NoneType": "null", "list": "a list", "dict": "a mapping",
    }  # fmt: skip
    return names.get(type_name, type_name)
