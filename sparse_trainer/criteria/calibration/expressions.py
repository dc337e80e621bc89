"""Criteria as text: `wanda`, `obs(rounds=16)`, `wanda + 0.5 fisher`."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from sparse_trainer.criteria.calibration.base import WidthCriterion
from sparse_trainer.criteria.calibration.registry import WIDTH_CRITERIA
from sparse_trainer.errors import ArgumentError, RecipeError, one_of
from sparse_trainer.fields import checked
from sparse_trainer.files.yaml_text import parse_yaml

C = TypeVar("C")
_TERM = re.compile(
    r"(?:(?P<weight>\d+\.?\d*|\.\d+)\s*\*?\s*)?(?P<name>[A-Za-z][\w-]*)\s*(?:\((?P<options>.*)\))?"
)


def read_criterion(text: str) -> WidthCriterion:
    """Return the criterion that a name means, options in brackets.

    >>> read_criterion("wanda"), read_criterion("obs(rounds=16)").rounds
    (Wanda(), 16)

    Raises:
        ArgumentError: an unknown name or option; the nearest known one is given.
    """
    name, options = split_options(text)
    one_of("criterion", name, WIDTH_CRITERIA)
    return with_options(WIDTH_CRITERIA[name], options, f"criterion {name}")


def with_options(cls: type[C], options: Mapping[str, Any], where: str) -> C:
    """Return a criterion made of options.

    Raises:
        ArgumentError: an unknown option, or a value of the wrong type.
    """
    try:
        return cls(**checked(cls, options, where))
    except RecipeError as error:
        raise ArgumentError(error.where, error.what, error.remedy) from error


def written(criterion: object, registry: Mapping[str, type] = WIDTH_CRITERIA) -> str:
    """Return a criterion as text that `read_criterion` reads: its name, and the options that are not the default.

    One that has no name here is called by its class.

    >>> written(read_criterion("obs(rounds=16, centred=false)"))
    'obs(rounds=16)'
    """
    cls = type(criterion)
    name = next((name for name, known in registry.items() if known is cls), cls.__name__)
    if not dataclasses.is_dataclass(criterion):
        return name
    changed = {
        field.name: value
        for field in dataclasses.fields(criterion)
        if field.init and (value := getattr(criterion, field.name)) != field.default
    }
    options = ", ".join(f"{option}={_in_yaml(value)}" for option, value in changed.items())
    return f"{name}({options})" if options else name


def _in_yaml(value: object) -> str:
    return str(value) if isinstance(value, str) else json.dumps(value, default=str)


def read_sum(text: str) -> str | Mapping[str, float]:
    """Return one criterion as it is written, or the criteria of a sum with their weights.

    >>> read_sum("obs(rounds=2)"), read_sum("wanda + 0.5 fisher")
    ('obs(rounds=2)', {'wanda': 1.0, 'fisher': 0.5})
    """
    terms = [_TERM.fullmatch(term.strip()) for term in text.split(" + ")]
    if len(terms) == 1 and (terms[0] is None or terms[0]["weight"] is None):
        return text
    weights: dict[str, float] = {}
    for term in terms:
        if term is None:
            raise ArgumentError("criterion", f"{text!r} is no sum.", "Write e.g. 'wanda + 0.5 fisher'.")
        name = term["name"] + (f"({term['options']})" if term["options"] is not None else "")
        weights[name] = weights.get(name, 0.0) + float(term["weight"] or 1.0)
    return weights


def split_options(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name, and the options with their values read as YAML.

    >>> split_options("taylor-2nd(level=unit)")
    ('taylor_2nd', {'level': 'unit'})
    """
    term = _TERM.fullmatch(text.strip())
    if term is None or term["weight"] is not None:
        return text, {}
    pairs = [pair.partition("=") for pair in (term["options"] or "").split(",") if pair.strip()]
    options: dict[str, Any] = {}
    for key, _, value in pairs:
        if key.strip() in options:
            raise ArgumentError(f"criterion {text}", f"{key.strip()!r} stands here twice.", "Drop one.")
        try:
            options[key.strip()] = parse_yaml(value, f"criterion {text}: {key.strip()}")
        except RecipeError as error:
            raise ArgumentError(error.where, error.what, error.remedy) from error
    return term["name"].replace("-", "_"), options
