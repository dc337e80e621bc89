"""Parts of a plan, as JSON objects."""

from typing import TypedDict

from patchers.units import Kind


class GroupPlan(TypedDict):
    """What stays of one group."""

    kind: Kind
    layer: int
    size: int
    keep: list[int]


class Recovered(TypedDict):
    """A training after the cut that won back part of what it cost."""

    train: str
    """What learned: lora, norms-and-biases, all."""
    data: str
    teacher: str | None
    """The dense model that was learned from, if any."""
    steps: int
    tokens: int
    """At most: sequences may be shorter than asked for."""
    perplexity_before: float
    """On data that was held out; `perplexity_after` likewise."""
    perplexity_after: float


class KeptTokens(TypedDict):
    """Which tokens of a vocabulary stay."""

    size: int
    """Tokens that the model had embeddings for."""
    keep: list[int]
    """The ids, before the cut, of those that stay, in the order of their new ids."""
    minimum_count: int
    """How often a token had to occur in the corpora."""
    corpora: dict[str, str]
    """Name of a file -> its SHA-256."""


class Milliseconds(TypedDict):
    """Time of one forward pass before and after the cut."""

    dense: float
    compact: float


class Speed(TypedDict):
    """How fast the model was to be, and is."""

    speedup_asked: float | None
    """This, or `milliseconds_asked`."""
    milliseconds_asked: float | None
    speedup_expected: float
    """By the table of times."""
    speedup_measured: float | None
    """None = not measured: the times are those of another device."""
    milliseconds: Milliseconds
    noise: float | None
    """Uncertainty of what was measured, relative to it."""
    conditions: str


class Sizes(TypedDict):
    """A quantity before and after the cut."""

    dense: int
    compact: int
