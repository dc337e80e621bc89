"""Options of commands that are the fields of a dataclass: written down there, with type and default, and only there."""

import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Final, TypeVar

import typer

from sparse_trainer.errors import ArgumentError, RecipeError
from sparse_trainer.fields import AUTO, checked

CALLED = {
    "batch_sizes": "batch_size",
    "directory": "out",
    "file": "calibration_file",
    "files": "data",
    "latency_batch": "batch",
    "latency_phase": "phase",
    "latency_runtime": "runtime",
    "name_or_path": "model",
    "plugins": "plugin",
    "source": "calibration",
}
"""Options of functions and recipes that commands call otherwise."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")]
Values = dict[str, Any]
"""Fields of a dataclass that a command line gives."""
T = TypeVar("T")
_KEYWORD = inspect.Parameter.KEYWORD_ONLY


class Fields:
    """Fields of a dataclass that a command takes as options: name -> help.

    Args:
        panel: The heading under which help lists them.
        unset: Whether an option that is not given is left out, instead of having the default of its field.
    """

    def __init__(self, cls: type, panel: str | None = None, /, *, unset: bool = False, **helps: str) -> None:
        self.cls, self.panel, self.unset, self.helps = cls, panel, unset, helps

    def parameters(self) -> Iterator[tuple[str, inspect.Parameter]]:
        """Yield each field with its typer option."""
        hints = typing.get_type_hints(self.cls)
        defaults = {field.name: field.default for field in fields(self.cls)}
        for name, help_text in self.helps.items():
            kind, default = _type_of(hints[name]), defaults[name]
            if self.unset or default is MISSING or kind == list[str]:
                default = None
            option, flag = CALLED.get(name, name), []
            if defaults[name] is False:
                flag = [f"--{option.replace('_', '-')}"]
            info = typer.Option(*flag, help=help_text, rich_help_panel=self.panel)
            hint: Any = Annotated[kind if default is not None else kind | None, info]
            yield name, inspect.Parameter(option, _KEYWORD, annotation=hint, default=default)


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose parameters of the type `Annotated[Values, Fields(...)]` are options, one per field."""
    named: dict[str, dict[str, str]] = {}
    parameters = []
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        groups = [each for each in parameter.annotation.__metadata__ if isinstance(each, Fields)]
        if not groups:
            parameters.append(parameter)
            continue
        options = [option for group in groups for option in group.parameters()]
        named[name] = {option.name: field for field, option in options}
        parameters += [option for _, option in options]

    @functools.wraps(command)
    def called(**given: Any) -> None:
        for name, options in named.items():
            values = {field: given.pop(option) for option, field in options.items()}
            given[name] = {field: value for field, value in values.items() if value not in (None, [])}
        command(**given)

    vars(called)["__signature__"] = inspect.Signature(parameters)
    return called


def made(cls: type[T], **values: Any) -> T:
    """Return the dataclass of options that a command line gives, checked against the types of its fields.

    Raises:
        ArgumentError: a value that cannot be meant.
    """
    hints = typing.get_type_hints(cls)
    read = {
        name: per_kind(name, value) if isinstance(value, list) and dict in _origins(hints[name]) else value
        for name, value in values.items()
    }
    try:
        return cls(**checked(cls, read, ""))
    except RecipeError as error:
        raise ArgumentError(error.where.removeprefix("."), error.what, error.remedy) from error


_EXAMPLES: Final = {
    "density": "Give e.g. 0.8.",
    "multiple_of": "Give e.g. 64; left out, it is what kernels read and, under a time, the table says.",
}


def per_kind(name: str, values: list[str]) -> Any:
    """Return one number for all kinds, or numbers by kind.

    >>> per_kind("density", ["0.8"]), per_kind("density", ["heads=0.75", "channels=0.5"])
    (0.8, {'heads': 0.75, 'channels': 0.5})
    >>> per_kind("multiple_of", ["64"]), per_kind("multiple_of", ["auto"])
    (64, 'auto')

    Raises:
        ArgumentError: Not a number, or several without a kind.
    """
    if name == "multiple_of" and values == [AUTO]:
        return AUTO
    if len(values) == 1 and "=" not in values[0]:
        return _number(name, values[0])
    pairs = [value.partition("=") for value in values]
    if not all(kind and text for kind, _, text in pairs):
        raise ArgumentError(
            name, f"{' '.join(values)!r} cannot be meant.", "Give one number, or KIND=NUMBER for each kind."
        )
    return {kind: _number(f"{name}.{kind}", text) for kind, _, text in pairs}


def _number(name: str, text: str) -> int | float:
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError as error:
        remedy = _EXAMPLES.get(name.partition(".")[0], "Give e.g. 8.")
        raise ArgumentError(name, f"{text!r} is no number.", remedy) from error


def _origins(hint: Any) -> list[Any]:
    """Return the types that a field may have, less what is in them: mappings of any sort are `dict`."""
    is_union = typing.get_origin(hint) in (typing.Union, UnionType)
    found = [typing.get_origin(each) or each for each in (typing.get_args(hint) if is_union else [hint])]
    return [dict if origin is Mapping else origin for origin in found]


def _type_of(hint: Any) -> Any:
    """Return what typer reads for a field: a list for several values or one per kind, else a number, a flag or text.

    >>> _type_of(float | None), _type_of(float | dict[str, float]), _type_of(str | dict[str, float])
    (<class 'float'>, list[str], <class 'str'>)
    """
    kinds = [kind for kind in _origins(hint) if kind is not NoneType]
    if tuple in kinds or (dict in kinds and {int, float}.intersection(kinds)):
        return list[str]
    return kinds[0] if kinds[0] in (bool, int, float) else str
