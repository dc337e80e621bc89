"""What a user can ask of masks over single weights, checked before any work is done."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from sparse_trainer.criteria.calibration.expressions import split_options, with_options, written
from sparse_trainer.errors import ArgumentError, one_of, shown
from sparse_trainer.one_shot.elements.base import (
    COMPARE,
    Ask,
    Compare,
    ElementCriterion,
    Pattern,
    RefitsWeights,
)
from sparse_trainer.one_shot.elements.registry import ELEMENT_CRITERIA
from sparse_trainer.statistics.requests import Statistic

WEIGHTS: Final = "weights"
"""What `units` calls single weights: they are no units, for nothing becomes smaller."""


@dataclass(frozen=True, kw_only=True)
class ElementOptions:
    """The options of `prune` that masks over single weights read.

    Raises:
        ArgumentError: an option cannot be meant.
    """

    criterion: object
    density: float
    """Fraction of the weights that stays; `pattern` has its own."""
    pattern: str | None
    """N:M: of every M consecutive inputs of a row N stay."""
    compare: str | None
    """row, tensor or global; None = as the criterion was published."""
    by_block: bool
    """One block at a time where it runs."""

    def __post_init__(self) -> None:
        ask = self.ask
        if isinstance(self.read, RefitsWeights):
            self.read.check(ask)
        if not self.by_block:
            return
        if any(request.loss is not None for request in self.requests):
            raise ArgumentError(
                "by_block", "the criterion needs gradients, through the whole model.",
                "Drop `by_block`, or take wanda or obs.",
            )  # fmt: skip
        if self.is_global:
            raise ArgumentError(
                "by_block",
                "weights of all layers are compared.",
                "Drop it, or set `compare='row'` or 'tensor'.",
            )

    @cached_property
    def read(self) -> ElementCriterion:
        """The criterion."""
        if isinstance(self.criterion, str):
            return element_criterion(self.criterion)
        if isinstance(self.criterion, ElementCriterion) and not isinstance(self.criterion, type):
            return self.criterion
        raise ArgumentError(
            "criterion",
            f"{shown(self.criterion)} scores no single weights.",
            f"Take {', '.join(ELEMENT_CRITERIA)}.",
        )

    @property
    def requests(self) -> tuple[Statistic[Any], ...]:
        """What has to be collected."""
        return self.read.requests()

    @cached_property
    def ask(self) -> Ask:
        """What must remain of every linear."""
        pattern = None if self.pattern is None else read_pattern(self.pattern)
        if pattern is not None and self.compare is not None:
            raise ArgumentError(
                "compare", f"{self.pattern} compares {pattern.m} inputs.", "Drop one of the two."
            )
        if self.compare is not None:
            one_of("compare", self.compare, COMPARE)
        compare: Compare = one_of("compare", self.compare or self.read.compare, COMPARE)
        return Ask(
            density=self.density if pattern is None else pattern.n / pattern.m,
            compare=compare,
            pattern=pattern,
        )

    @property
    def is_global(self) -> bool:
        """Whether weights of all linears are compared."""
        return self.ask.compare == "global" and self.ask.pattern is None

    @property
    def in_order(self) -> bool:
        """Whether each block is masked before the next one is looked at, as Wanda and SparseGPT were published."""
        return bool(self.requests) and not self.is_global and all(r.loss is None for r in self.requests)

    @property
    def scope(self) -> str:
        """What plans say of what was compared."""
        return self.ask.compare if self.pattern is None else self.pattern


def written_of_weights(criterion: ElementCriterion) -> str:
    """Return a criterion as text that `element_criterion` reads.

    >>> written_of_weights(element_criterion("obs(columns=64)"))
    'obs(columns=64)'
    """
    return written(criterion, ELEMENT_CRITERIA)


def element_criterion(text: str) -> ElementCriterion:
    """Return the criterion that a name means, options in brackets.

    >>> element_criterion("obs(columns=64)")
    SparseGPT(columns=64, damping=0.01)

    Raises:
        ArgumentError: an unknown name or option; the nearest known one is given.
    """
    name, options = split_options(text)
    one_of("criterion", name, ELEMENT_CRITERIA)
    return with_options(ELEMENT_CRITERIA[name], options, f"criterion {name}")


def read_pattern(text: str) -> Pattern:
    """Return the pattern that a text such as `2:4` means.

    >>> read_pattern("2:4")
    Pattern(n=2, m=4)

    Raises:
        ArgumentError: it means none.
    """
    found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text)
    if found is None or not 0 < int(found[1]) < int(found[2]):
        raise ArgumentError(
            "pattern", f"{shown(text)} is no N:M with 0 < N < M.", "Give e.g. 2:4: of every 4 inputs 2 stay."
        )
    return Pattern(n=int(found[1]), m=int(found[2]))


def asks_for_weights(units: Collection[str] | None, density: object, pattern: str | None) -> bool:
    """Tell whether single weights are to be pruned.

    Raises:
        ArgumentError: beside other units, or a pattern without them.
    """
    named = units if units is not None else tuple(density) if isinstance(density, Mapping) else ()
    if WEIGHTS not in named:
        if pattern is not None:
            raise ArgumentError("pattern", "is one of single weights.", "Add weights to `units`, or drop it.")
        return False
    others = sorted(set(named) - {WEIGHTS})
    if others:
        raise ArgumentError(
            "units", f"single weights become zero, {others[0]} go: not in one call.",
            f"Prune {others[0]} first, then the weights of the result.",
        )  # fmt: skip
    return True


def density_of_weights(density: float | Mapping[str, float]) -> float:
    """Return the fraction that stays.

    Raises:
        ArgumentError: it is none, or speaks of other units.
    """
    if isinstance(density, Mapping) and set(density) != {WEIGHTS}:
        raise ArgumentError("density", "single weights have one density.", "Give a number, e.g. 0.5.")
    value = density[WEIGHTS] if isinstance(density, Mapping) else density
    if isinstance(value, bool) or not isinstance(value, float | int) or not 0 < value <= 1:
        raise ArgumentError("density", f"{value!r} is not in (0, 1].", "Give the fraction to keep, e.g. 0.5.")
    return float(value)
