"""Values against the fields of a dataclass."""

import enum
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from sparse_trainer.errors import RecipeError
from sparse_trainer.fields import checked


class Switch(enum.StrEnum):
    NO = "no"
    STEPS = "steps"


@dataclass
class Options:
    number: float = 0.0
    count: int | None = None
    names: tuple[str, ...] = ()
    choice: Literal["a", "b"] = "a"
    anything: Any = None
    mapping: dict[str, Any] | None = None
    switch: Switch = Switch.NO


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("number", 1, 1),
        ("number", "1e-5", 1e-5),
        ("switch", False, "no"),
        ("count", None, None),
        ("names", ["x", "y"], ("x", "y")),
        ("choice", "b", "b"),
        ("anything", {"a": [1]}, {"a": [1]}),
        ("mapping", {"a": 1}, {"a": 1}),
    ],
)
def test_good_values_arrive_in_the_form_of_the_field(key: str, given: object, expected: object) -> None:
    assert checked(Options, {key: given}, "f: s") == {key: expected}


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("number", True),
        ("number", "fast"),
        ("count", 1.0),
        ("count", True),
        ("names", "x"),
        ("names", [1]),
        ("choice", "c"),
        ("mapping", [1]),
    ],
)
def test_other_values_are_refused_by_name(key: str, given: object) -> None:
    with pytest.raises(RecipeError, match=rf"f: s\.{key}: "):
        checked(Options, {key: given}, "f: s")
