"""Write a yes/no question set in the format of BoolQ whose answers cannot be guessed without the passage.

A passage is about two things of one kind. The question names one of them and asks whether a property has some value.
Passage and question form are drawn before the answer is, and a wrong value is drawn as the right one is, so that
neither the passage alone nor the question alone says anything about the answer.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, TypedDict, TypeVar, cast

from sparse_trainer.errors import DataError
from sparse_trainer.files.yaml_text import read_yaml

Split = Literal["train", "validation"]
T = TypeVar("T")
_TABLES: Final = Path(__file__).with_name("world.yaml")

VALIDATION_SHARE = 5
"""Every fifth name is for validation alone: no name, passage or question occurs in both splits."""
DISTRACTOR_SHARE = 0.1
"""How often a wrong value is the one that the passage gives to the *other* thing, where it gives one."""
FILLER_SHARE = 0.2
"""How often a passage holds a sentence that answers nothing."""


class Row(TypedDict):
    """One example in the format of BoolQ."""

    question: str
    passage: str
    label: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Attribute:
    """One property that a passage can state and a question can ask about."""

    values: Sequence[str]
    """What the property can be; every value can be true and can be asked for."""
    statements: Sequence[str]
    """Ways to state it: `{s}` is the subject, `{v}` the value."""
    questions: Sequence[str]
    """Ways to ask for it: `{n}` is the full name, `{v}` the value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Domain:
    """One kind of thing that passages are about."""

    first: Sequence[str]
    """First parts of names."""
    second: Sequence[str]
    """Second parts of names."""
    name: str
    """How a name is put together from `{a}` and `{b}`."""
    again: Sequence[str]
    """How a passage refers to the same thing a second time."""
    attributes: Sequence[Attribute]
    """What can be said of it."""
    fillers: Sequence[str]
    """Sentences that answer none of the questions."""


@dataclass(frozen=True, slots=True)
class Form:
    """One way to ask for one attribute of one kind of thing."""

    domain: Domain
    attribute: int
    question: str


@dataclass(frozen=True, slots=True)
class _Thing:
    """One named thing and what the passage says of it."""

    name: str
    again: str
    facts: dict[int, str]
    """Attribute number -> value."""


@cache
def domains() -> dict[str, Domain]:
    """Return the kinds of thing that passages are about."""
    found = {}
    for name, fields in cast(dict[str, Any], read_yaml(_TABLES)).items():
        attributes = [Attribute(**attribute) for attribute in fields.pop("attributes")]
        found[name] = Domain(attributes=attributes, **fields)
    return found


@cache
def forms() -> tuple[Form, ...]:
    """Return all ways to ask for all attributes."""
    return tuple(
        Form(domain, number, question)
        for domain in domains().values()
        for number, attribute in enumerate(domain.attributes)
        for question in attribute.questions
    )


def generate(split: Split, num_rows: int, seed: int = 42) -> list[Row]:
    """Write `num_rows` different examples; the same arguments give the same rows.

    Every question form is answered yes as often as no.

    >>> rows = generate("train", 400)
    >>> rows == generate("train", 400), sum(row["label"] for row in rows)
    (True, 200)
    """
    if num_rows < 2:
        raise DataError("data: rows of the generated set", f"{num_rows} is too few.", "Ask for 2 or more.")
    rng = random.Random(f"{split}-{seed}")
    rows: dict[str, Row] = {}
    while len(rows) < num_rows:
        for form in rng.sample(forms(), len(forms())):
            for label in (0, 1):
                row = _row(rng, split, form, label)
                while row["passage"] in rows:
                    row = _row(rng, split, form, label)
                rows[row["passage"]] = row
    written = list(rows.values())[:num_rows]
    rng.shuffle(written)
    return written


def _row(rng: random.Random, split: Split, form: Form, label: int) -> Row:
    """Write one example; the passage is finished before `label` is looked at."""
    domain = form.domain
    asked, other = _things(rng, split, form)
    passage = _passage(rng, domain, asked, other)
    truth = asked.facts[form.attribute]
    value = (
        truth if label else _wrong_value(rng, domain.attributes[form.attribute], truth, other, form.attribute)
    )
    return Row(question=form.question.format(n=asked.name, v=value).lower(), passage=passage, label=label)


def _things(rng: random.Random, split: Split, form: Form) -> tuple[_Thing, _Thing]:
    """Draw the thing the question is about and another of its kind that differs from it in every shared property."""
    domain = form.domain
    (name, again), (other_name, other_again) = _names(rng, split, domain)
    others = _without(range(len(domain.attributes)), form.attribute)
    numbers = [form.attribute, *rng.sample(others, rng.choice((0, 1, 2)))]
    facts = {number: rng.choice(domain.attributes[number].values) for number in numbers}
    shared = rng.sample(numbers, min(len(numbers), rng.choice((0, 1, 2))))
    other_facts = {
        number: rng.choice(_without(domain.attributes[number].values, facts[number])) for number in shared
    }
    return _Thing(name, again, facts), _Thing(other_name, other_again, other_facts)


def _names(rng: random.Random, split: Split, domain: Domain) -> list[tuple[str, str]]:
    """Draw two names of the split that share no part, each with a way to refer to it again."""
    drawn: list[tuple[str, str]] = []
    used: set[str] = set()
    while len(drawn) < 2:
        first, second = rng.randrange(len(domain.first)), rng.randrange(len(domain.second))
        a, b = domain.first[first], domain.second[second]
        held_out = (first * len(domain.second) + second) % VALIDATION_SHARE == 0
        if held_out == (split == "validation") and not used & {a, b}:
            used |= {a, b}
            drawn.append((domain.name.format(a=a, b=b), rng.choice(domain.again).format(a=a, b=b)))
    return drawn


def _passage(rng: random.Random, domain: Domain, asked: _Thing, other: _Thing) -> str:
    """State the facts of both things, one thing after the other, in any order."""
    things = [asked, other]
    rng.shuffle(things)
    sentences = [sentence for thing in things for sentence in _sentences(rng, domain, thing)]
    if rng.random() < FILLER_SHARE:
        sentences.append(rng.choice(domain.fillers))
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def _sentences(rng: random.Random, domain: Domain, thing: _Thing) -> list[str]:
    """State each fact of one thing: by its full name first, by a shorter reference from then on."""
    numbers = rng.sample(list(thing.facts), len(thing.facts))
    subjects = [thing.name, *[thing.again] * len(numbers)][: len(numbers)]
    return [
        rng.choice(domain.attributes[number].statements).format(s=subject, v=thing.facts[number])
        for number, subject in zip(numbers, subjects, strict=True)
    ]


def _wrong_value(rng: random.Random, attribute: Attribute, truth: str, other: _Thing, number: int) -> str:
    """Draw a value that is not the truth, often the one the passage gives to the other thing."""
    if number in other.facts and rng.random() < DISTRACTOR_SHARE:
        return other.facts[number]
    return rng.choice(_without(attribute.values, truth))


def _without(values: Sequence[T], value: T) -> list[T]:
    """Return `values` less one of them."""
    return [candidate for candidate in values if candidate != value]
