"""What a criterion of single weights has to offer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, runtime_checkable

from torch import Tensor

from sparse_trainer.errors import DataError
from sparse_trainer.statistics.requests import R, Statistic, Statistics

# Shape legend: O x I = a weight, outputs by inputs.

Compare = Literal["row", "tensor", "global"]
COMPARE: Final[tuple[Compare, ...]] = ("row", "tensor", "global")
"""Among which weights the best stay: those of an output, of a linear, of all linears."""


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """At most `n` of every `m` consecutive inputs of a row are not zero."""

    n: int
    m: int


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What must remain of the weights of one linear."""

    density: float
    compare: Compare
    pattern: Pattern | None


@runtime_checkable
class ElementCriterion(Protocol):
    """Says which weights of linears stay. A frozen dataclass, whose fields are its options.

    It is a `ScoresWeights` or a `RefitsWeights` as well.
    """

    @property
    def compare(self) -> Compare:
        """Among which weights the best stay, as published."""

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return what has to be collected; nothing, for a criterion that looks at weights only."""


@runtime_checkable
class ScoresWeights(Protocol):
    """Scores weights, which stay as they are or become zero."""

    def scores(self, weights: Mapping[str, Tensor], statistics: Statistics) -> dict[str, Tensor]:
        """Return scores, higher = keep, of weights [O, I] in float32 or float64, both by path of the linear."""


@runtime_checkable
class RefitsWeights(Protocol):
    """Chooses the zeros of a linear one after the other, and refits the weights that are left."""

    def check(self, ask: Ask) -> None:
        """Raise `ArgumentError` for what it cannot be asked."""

    def refit(self, weight_OI: Tensor, path: str, statistics: Statistics, ask: Ask) -> Tensor:
        """Return the new weight [O, I], with zeros, of a weight in float32 or float64."""


def found_for(path: str, request: Statistic[R], statistics: Statistics) -> R:
    """Return what was collected of a linear.

    Raises:
        DataError: no batch ran through it.
    """
    found = statistics.of(request)
    if path not in found:
        raise DataError(
            path, "no calibration batch ran through it.", "Give the inputs that reach it, or protect it."
        )
    return found[path]
