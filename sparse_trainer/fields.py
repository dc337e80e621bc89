"""Fields of a dataclass: checked against a mapping (names, types, what is missing), read off command lines, renamed."""

import argparse
import dataclasses
import enum
import functools
import json
import logging
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from sparse_trainer.errors import ArgumentError, RecipeError, nearest, shown

_UNIONS = (typing.Union, types.UnionType)
_OLD_NAMES: dict[type, Mapping[str, str]] = {}
AUTO: Final = "auto"
"""For `multiple_of`: what kernels read and, under a time, what the table says; as if nothing was given."""
T = TypeVar("T")
logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    PerKind: TypeAlias = Any
    Multiple: TypeAlias = Any
else:

    class _NumberOrMapping(type):
        """Counts numbers and mappings among the instances of `PerKind`."""

        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, float | int | Mapping) and not isinstance(value, bool)

    class PerKind(metaclass=_NumberOrMapping):
        """A number, or one per kind of unit. As a function it is what argparse calls on the text of an option.

        >>> PerKind("0.5"), PerKind('{"heads": 0.75}')
        (0.5, {'heads': 0.75})
        """

        def __new__(cls, text: str) -> Any:
            try:
                value = json.loads(text)
            except ValueError:
                value = None
            if not isinstance(value, PerKind):
                raise argparse.ArgumentTypeError(
                    f"{text!r} is neither a number nor one per kind, as JSON: '{{\"heads\": 0.75}}'."
                )
            return value

    class _OrAuto(_NumberOrMapping):
        """Counts "auto" among the instances, too."""

        def __instancecheck__(cls, value: object) -> bool:
            return (isinstance(value, str) and value == AUTO) or super().__instancecheck__(value)

    class Multiple(metaclass=_OrAuto):
        """What counts are multiples of: a number, one per kind of unit, or "auto".

        >>> Multiple("64"), Multiple("auto")
        (64, 'auto')
        """

        def __new__(cls, text: str) -> Any:
            return AUTO if text == AUTO else PerKind(text)


def understands_old_names(**old: str) -> Callable[[type[T]], type[T]]:
    """Return a decorator of dataclasses whose fields were renamed: `old_name="new_name"`.

    Instances can still be made, read and set by the old names; new files and parsers know the new ones only.
    """

    def decorate(cls: type[T]) -> type[T]:
        made = cls.__init__

        @functools.wraps(made)
        def __init__(self: T, **values: Any) -> None:
            made(self, **renamed(cls, values, cls.__name__))

        setattr(cls, "__init__", __init__)  # noqa: B010 - mypy: a method is not assigned to
        for name, new in old.items():
            setattr(cls, name, _alias(new))
        _OLD_NAMES[cls] = old
        return cls

    return decorate


def renamed(cls: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return values for the fields of a dataclass, those under old names under their new ones.

    Raises:
        ArgumentError: a field has two values.
    """
    current = dict(values)
    for name, new in _OLD_NAMES.get(cls, {}).items():
        if name in current and new in current:
            raise ArgumentError(f"{where}: {name}, {new}", "are one option, renamed.", f"Drop {name}.")
        if name in current:
            logger.warning("%s: %s is called %s now.", where, name, new)
            current[new] = current.pop(name)
    return current


def _alias(new: str) -> property:
    """Return a property that stands for another attribute."""
    return property(lambda self: getattr(self, new), lambda self, value: setattr(self, new, value))


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
    values = renamed(cls, values, where)
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
        if option is float and isinstance(value, str) and _is_number(value) and not _is_endless(float(value)):
            return float(value)
        # It reads no as false.
        if (
            value is False
            and isinstance(option, type)
            and issubclass(option, enum.Enum)
            and _matches("no", option)
        ):
            return "no"
    raise RecipeError(where, *_complaint(value, hint))


def option(default: Any, help: str) -> Any:
    """Return a dataclass field with a text for `--help`; a list is made anew for every instance."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a field, made anew where there is a factory."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def changed_fields(options: object) -> frozenset[str]:
    """Return the names of the fields of a dataclass instance that are not at their default."""
    assert dataclasses.is_dataclass(options)
    assert not isinstance(options, type)
    return frozenset(f.name for f in dataclasses.fields(options) if getattr(options, f.name) != default_of(f))


def check_types(options: object, cls: type) -> None:
    """Raise `ArgumentError` for a field of dataclass `cls` whose value in `options` is of the wrong type.

    Nothing is converted. For true and false 1 and 0 do, as old scripts write them.
    """
    for name, hint in typing.get_type_hints(cls).items():
        value = getattr(options, name)
        is_flag = hint is bool and isinstance(value, int)
        if not (is_flag and value in (0, 1)) and not any(_matches(value, o) for o in _options(hint)):
            raise ArgumentError(name, *_complaint(value, hint))


def check_counts(least: int = 1, **counts: int | None) -> None:
    """Raise `ArgumentError` for a count below `least`; None was not asked for.

    >>> check_counts(batch_size=8, limit=None)
    """
    for name, count in counts.items():
        if count is not None and count < least:
            raise ArgumentError(name, f"{count} is too small.", f"Give {least} or more.")


def check_positive(where: str, value: float) -> None:
    """Raise `ArgumentError` for a number that is not above 0."""
    if not value > 0:
        raise ArgumentError(where, f"{value!r} is not positive.", "Give a positive number.")


def check_not_negative(where: str, value: float) -> None:
    """Raise `ArgumentError` for a number below 0."""
    if not value >= 0:
        raise ArgumentError(where, f"{value!r} is negative.", "Give 0 or more.")


def check_share(where: str, value: float, interval: str, remedy: str) -> None:
    """Raise `ArgumentError` for a number outside an interval from 0 to 1; brackets tell which ends belong to it.

    >>> check_share("cooldown_ratio", 0.3, "[0, 1)", "Give a fraction of training.")
    """
    inside = 0 < value < 1 or (value == 0 and interval[0] == "[") or (value == 1 and interval[-1] == "]")
    if not inside:
        raise ArgumentError(where, f"{value!r} is not in {interval}.", remedy)


def check_seed(seed: int) -> None:
    """Raise `ArgumentError` for a seed that not every generator takes: torch's, numpy's and Python's.

    >>> check_seed(42)
    """
    if not 0 <= seed < 2**32:
        raise ArgumentError("seed", f"{seed} is not from 0 to {2**32 - 1}.", "Give e.g. 42.")


def _complaint(value: Any, hint: Any) -> tuple[str, str]:
    """Return what is wrong with a value, and what would do."""
    wanted = " or ".join(dict.fromkeys(_spelled(option) for option in _options(hint)))
    lists = [option for option in _options(hint) if typing.get_origin(option) in (list, tuple)]
    if lists and isinstance(value, list | tuple):
        items = [item for item in value if not _matches(item, typing.get_args(lists[0])[0])]
        return f"{shown(items[0])} in it is {_found(items[0])}.", f"Give {wanted}."
    return f"{shown(value)} is {_found(value)}.", f"Give {wanted}."


def _found(value: object) -> str:
    """Return what a value is, as an author of recipes knows it."""
    return "no finite number" if _is_endless(value) else _article(type(value).__name__)


def _is_endless(value: object) -> bool:
    """Tell NaN and the infinities: no option of ours means them."""
    return isinstance(value, float) and not math.isfinite(value)


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
        return isinstance(value, float | int) and not isinstance(value, bool) and not _is_endless(value)
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
    names = {
        str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null",
        PerKind: "a number, or a mapping with one per kind",
        Multiple: "a number, a mapping with one per kind, or auto",
    }  # fmt: skip
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
