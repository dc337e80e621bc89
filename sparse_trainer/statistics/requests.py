"""What a criterion can ask of a calibration pass, and what it gets."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Protocol, Self, TypeVar

from patchers.units import BLOCK_KINDS, Group, Kind
from sparse_trainer.errors import DataError
from sparse_trainer.statistics.calibration_pass import CalibrationPass

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

READ_BY_A_LINEAR: Final = tuple(kind for kind in BLOCK_KINDS if kind.gated == "input")
"""Kinds whose units are input features of a linear, where a hook sees them and whose weights it can compare."""


class Collector(Protocol[R_co]):
    """Streams the numbers of all requests of one class over a calibration pass."""

    @property
    def paths(self) -> Collection[str]:
        """Modules that it looks at."""

    @property
    def one_by_one(self) -> bool:
        """Whether every batch must hold one sequence, without padding."""

    def attach(self) -> Iterable[AbstractContextManager[Any]]:
        """Register hooks, and return what takes them away again when the pass is over."""

    def results(self) -> "Mapping[Statistic[Any], Mapping[str, R_co]]":
        """Return the result of each request, by key; keys that no batch reached are absent."""


class Statistic(Protocol[R_co]):
    """A request for numbers of a calibration pass: a frozen dataclass, whose fields say exactly which.

    `collect` knows none by name: a request says what it needs of the pass, and makes the collector of its class.
    """

    kinds: ClassVar[tuple[Kind, ...]]
    """Kinds of unit that it can be asked for."""
    in_stacked_experts: ClassVar[bool]
    """Whether it exists where no linear of its own reads the units, but one tensor for all experts."""

    @property
    def loss(self) -> str | None:
        """The loss whose gradients it reads: `labels`, the model's own, or one that its hooks add; None = none."""

    def key(self, group: Group) -> str:
        """Return the key of what belongs to a group: a module path, or the group's name for numbers per unit."""

    @classmethod
    def collector(cls, requests: Sequence[Self], run: CalibrationPass) -> Collector[R_co]:
        """Return what collects all requests of this class in one pass."""


def unsupported_reason(group: Group, requests: Iterable[Statistic[Any]]) -> str | None:
    """Return why something cannot be collected for the units of a group, None where all can."""
    for request in requests:
        if group.kind not in request.kinds:
            return f"{group.kind} are no input features of a linear"
        if group.consumer_tensor is not None and not request.in_stacked_experts:
            return "its units lie in stacked experts, whose inputs and weights no hook sees one by one"
    return None


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What one calibration pass collected."""

    tokens: int = 0
    """Real tokens seen; images or sounds where there are no tokens."""
    sequences: int = 0
    found: Mapping[Statistic[Any], Mapping[str, Any]] = field(default_factory=dict)
    """The result of each request, by module path, or by name of the group for numbers per unit."""

    def of(self, request: Statistic[R]) -> Mapping[str, R]:
        """Return the result of a request, by key.

        Raises:
            DataError: it was not collected.
        """
        if request not in self.found:
            raise DataError("statistics", f"hold no {request}.", "Ask for it when they are collected.")
        return self.found[request]

    def by_group(self, request: Statistic[R], groups: Iterable[Group]) -> dict[str, R]:
        """Return the result of a request, by the names of these groups."""
        found = self.of(request)
        return {group.name: found[request.key(group)] for group in groups}

    def missing(self, groups: Iterable[Group], requests: Iterable[Statistic[Any]]) -> str | None:
        """Return the first group of which something that is asked for was not collected, None where all is there."""
        for request in requests:
            found = self.found.get(request, {})
            name = next((group.name for group in groups if request.key(group) not in found), None)
            if name is not None:
                return name
        return None
